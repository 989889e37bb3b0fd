//! A container's limits and their changes: what fits its VM.

use std::borrow::Cow;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::{ContainerError, Size, spec::rewrite_limits};
use crate::cgroup::NumberList;
use crate::guest::GuestOs;

/// The kernel's period of a CPU quota if none is set, in microseconds.
const PERIOD: u64 = 100_000;
/// Periods that the kernel takes, in microseconds.
const PERIODS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
/// Least quota that the kernel takes, in microseconds.
const LEAST_QUOTA: i64 = 1_000;

/// Refuses what the VM does not have, with both figures, and leaves out what means nothing in it.
pub(super) fn check(
    resources: LinuxResources,
    os: GuestOs,
    size: Size,
) -> Result<LinuxResources, ContainerError> {
    rewrite_memory_swap(&resources)?;
    let mut notes = Vec::new();
    let mut resources = rewrite_limits(resources, os, &mut notes)?;
    for note in notes {
        tracing::info!("{note}");
    }
    // Device rules are the container's for its life.
    resources.set_devices(None);
    if let Some(cpu) = resources.cpu() {
        check_cpu(cpu, size)?;
    }
    if let Some(memory) = resources.memory() {
        check_memory(memory, size)?;
    }
    check_sets("resources", &resources, size)?;
    for name in resources.unified().iter().flat_map(|unified| unified.keys()) {
        if name.contains('/') || !name.contains('.') || name.starts_with('.') {
            return Err(invalid("resources.unified", format!("{name:?} is no file of a cgroup")));
        }
    }
    Ok(resources)
}

fn check_cpu(cpu: &LinuxCpu, size: Size) -> Result<(), ContainerError> {
    let period = match cpu.period() {
        Some(period) if PERIODS.contains(&period) => period,
        Some(period) if period != 0 => {
            let reason = format!("{period} us is not {} to {} us", PERIODS.start(), PERIODS.end());
            return Err(invalid("resources.cpu.period", reason));
        }
        _ => PERIOD,
    };
    // Not positive: no limit.
    if let Some(quota) = cpu.quota().filter(|quota| *quota > 0) {
        if quota < LEAST_QUOTA {
            let reason = format!("{quota} us is less than the least, {LEAST_QUOTA} us");
            return Err(invalid("resources.cpu.quota", reason));
        }
        if quota.unsigned_abs() > period * u64::from(size.vcpus) {
            let reason = format!(
                "{quota} us in {period} us are more than the {} virtual CPUs that the sandbox's VM has; they are \
                 chosen when it is made, by the annotation org.skep.vcpus",
                size.vcpus
            );
            return Err(invalid("resources.cpu.quota", reason));
        }
    }
    Ok(())
}

/// Memory nodes of a VM.
const NODES: u32 = 1;

/// Refuses processors and memory nodes that the VM does not have: its kernel's word for them is ERANGE. `field` is what
/// the resources are called.
pub(super) fn check_sets(field: &str, resources: &LinuxResources, size: Size) -> Result<(), ContainerError> {
    let cpu = resources.cpu().as_ref();
    let unified = |name| resources.unified().as_ref().and_then(|unified| unified.get(name));
    for (name, list, count, what) in [
        ("cpu.cpus", cpu.and_then(|cpu| cpu.cpus().as_ref()), size.vcpus, "virtual CPUs"),
        ("cpu.mems", cpu.and_then(|cpu| cpu.mems().as_ref()), NODES, "memory nodes"),
        ("unified.cpuset.cpus", unified("cpuset.cpus"), size.vcpus, "virtual CPUs"),
        ("unified.cpuset.mems", unified("cpuset.mems"), NODES, "memory nodes"),
    ] {
        if let Some(list) = list.filter(|list| !list.trim().is_empty()) {
            check_list(format!("{field}.{name}"), list, count, what)?;
        }
    }
    Ok(())
}

fn check_list(field: String, list: &str, count: u32, what: &str) -> Result<(), ContainerError> {
    let highest = list.parse::<NumberList>().map(|list| list.highest());
    match highest {
        Ok(highest) if highest < count => Ok(()),
        Ok(highest) => {
            let reason = format!("{list:?} names {highest}; the sandbox's VM has {count} {what}, from 0 on");
            Err(invalid(field, reason))
        }
        Err(error) => Err(invalid(field, error.to_string())),
    }
}

fn check_memory(memory: &LinuxMemory, size: Size) -> Result<(), ContainerError> {
    for (field, value) in
        [("resources.memory.limit", memory.limit()), ("resources.memory.reservation", memory.reservation())]
    {
        let Some(value) = value else { continue };
        if value < -1 {
            return Err(invalid(field, format!("{value} is no number of bytes; -1 means no limit")));
        }
        if u64::try_from(value).is_ok_and(|value| value > size.memory) {
            let reason = format!(
                "{value} bytes are more than the {} bytes ({} MiB) that the sandbox's VM has; they are chosen when \
                 it is made, by the annotation org.skep.memory-mib",
                size.memory,
                size.memory >> 20
            );
            return Err(invalid(field, reason));
        }
    }
    Ok(())
}

/// The guest has no swap, but what is asked for has to make sense: as in OCI, `swap` is memory and swap together.
fn rewrite_memory_swap(resources: &LinuxResources) -> Result<(), ContainerError> {
    let Some(memory) = resources.memory() else { return Ok(()) };
    match (memory.limit(), memory.swap()) {
        (Some(limit), Some(swap)) if swap > 0 && swap < limit => {
            let reason = format!("{swap} bytes of memory and swap are less than the {limit} bytes of memory");
            Err(invalid("resources.memory.swap", reason))
        }
        _ => Ok(()),
    }
}

fn invalid(what: impl Into<Cow<'static, str>>, reason: String) -> ContainerError {
    ContainerError::Invalid { what: what.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::ErrorKind;

    const SIZE: Size = Size { vcpus: 2, memory: 512 << 20 };

    fn check_json(json: &str) -> Result<String, ContainerError> {
        check(serde_json::from_str(json).unwrap(), GuestOs::Linux, SIZE)
            .map(|fine| serde_json::to_string(&fine).unwrap())
    }

    #[test]
    fn what_fits_is_passed_on() {
        for fine in [
            r#"{"memory":{"limit":536870912}}"#,
            r#"{"memory":{"limit":-1}}"#,
            r#"{"cpu":{"shares":512,"quota":200000,"period":100000}}"#,
            r#"{"cpu":{"quota":-1}}"#,
            r#"{"cpu":{"quota":200000}}"#,
            r#"{"cpu":{"cpus":"0-1","mems":"0"}}"#,
            r#"{"cpu":{"cpus":""}}"#,
            r#"{"pids":{"limit":10}}"#,
            r#"{"unified":{"memory.high":"1000000"}}"#,
        ] {
            assert_eq!(check_json(fine).unwrap(), fine);
        }
    }

    #[test]
    fn what_a_guest_does_not_have_is_left_out() {
        let given = r#"{"memory":{"limit":1048576,"swap":2097152},"hugepageLimits":[{"pageSize":"2MB","limit":0}],
            "devices":[{"allow":false,"access":"rwm"}]}"#;
        assert_eq!(check_json(given).unwrap(), r#"{"memory":{"limit":1048576}}"#);
    }

    #[test]
    fn what_is_too_much_is_refused_with_both_figures() {
        for (json, words) in [
            (r#"{"memory":{"limit":536870913}}"#, ["536870913", "536870912"]),
            (r#"{"memory":{"reservation":1073741824}}"#, ["1073741824", "536870912"]),
            (r#"{"cpu":{"quota":200001}}"#, ["200001", "2 virtual CPUs"]),
            (r#"{"cpu":{"quota":50000,"period":10000}}"#, ["50000 us in 10000 us", "2 virtual CPUs"]),
            (r#"{"cpu":{"cpus":"0,2"}}"#, ["names 2", "has 2 virtual CPUs"]),
            (r#"{"cpu":{"mems":"0-1"}}"#, ["names 1", "has 1 memory nodes"]),
            (r#"{"unified":{"cpuset.cpus":"5"}}"#, ["names 5", "has 2 virtual CPUs"]),
            (r#"{"unified":{"cpuset.mems":"1"}}"#, ["names 1", "has 1 memory nodes"]),
        ] {
            let error = check_json(json).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for json in [
            r#"{"memory":{"limit":-2}}"#,
            r#"{"memory":{"limit":100,"swap":50}}"#,
            r#"{"cpu":{"quota":10}}"#,
            r#"{"cpu":{"period":10}}"#,
            r#"{"cpu":{"cpus":"1-0"}}"#,
            r#"{"cpu":{"cpus":"all"}}"#,
            r#"{"unified":{"../other/memory.max":"1"}}"#,
            r#"{"unified":{"memory":"1"}}"#,
        ] {
            assert_eq!(check_json(json).unwrap_err().kind(), ErrorKind::InvalidArgument, "{json}");
        }
        let error = check_json(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unimplemented);
    }
}

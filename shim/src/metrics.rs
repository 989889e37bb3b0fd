//! What a task uses, as containerd's clients read it.
//!
//! A container's figures are those of its cgroup in the guest: what its limits are about, and what adds up over the
//! containers of a pod. What the VM costs the host beyond that is the pod's own container's, if there is one, and so is
//! what the pod's interfaces carried, which is the host's count.

use std::{collections::HashMap, time::Duration};

use skep::{
    container::{ContainerStats, Size},
    network::Traffic,
    sandbox::{Cost, Sandbox},
};
use skep_containerd_api::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, NetworkStat, PidsStat,
};

/// Devices that are reported; a guest has a handful.
const MAX_DEVICES: usize = 64;

/// A container's figures, none of them more than a VM of that size can have used in a life of `age`: the guest may
/// say anything.
pub(crate) fn metrics(stats: &ContainerStats, size: Size, age: Duration) -> Metrics {
    let most = u64::try_from(age.as_micros()).unwrap_or(u64::MAX).saturating_mul(size.vcpus.into());
    Metrics {
        pids: Some(PidsStat { current: stats.pids_current, limit: stats.pids_max, ..PidsStat::default() })
            .into(),
        cpu: Some(cpu(&stats.cpu, most)).into(),
        memory: Some(memory(stats, size.memory)).into(),
        io: Some(io(stats)).into(),
        memory_events: Some(events(&stats.memory_events)).into(),
        ..Metrics::default()
    }
}

/// What a VM costs the host.
pub(crate) fn of_cost(cost: Cost, size: Size) -> Metrics {
    let cpu = CPUStat { usage_usec: cost.processor_us, ..CPUStat::default() };
    let memory = MemoryStat {
        usage: cost.resident_bytes,
        usage_limit: size.memory,
        anon: cost.resident_bytes,
        ..MemoryStat::default()
    };
    Metrics { cpu: Some(cpu).into(), memory: Some(memory).into(), ..Metrics::default() }
}

/// What a sandbox's interfaces carried; nothing where somebody took them away, which is no reason to tell no other figure.
pub(crate) fn network(sandbox: &Sandbox) -> Vec<NetworkStat> {
    match sandbox.traffic() {
        Ok(traffic) => of_traffic(&traffic),
        Err(error) => {
            tracing::debug!(%error, "the counters of the sandbox's interfaces");
            Vec::new()
        }
    }
}

fn of_traffic(traffic: &[Traffic]) -> Vec<NetworkStat> {
    let stat = |one: &Traffic| NetworkStat {
        name: one.interface.clone(),
        rx_bytes: one.received.bytes,
        rx_packets: one.received.packets,
        rx_errors: one.received.errors,
        rx_dropped: one.received.dropped,
        tx_bytes: one.sent.bytes,
        tx_packets: one.sent.packets,
        tx_errors: one.sent.errors,
        tx_dropped: one.sent.dropped,
        ..NetworkStat::default()
    };
    traffic.iter().map(stat).collect()
}

/// What a container's figures say of its share in the VM's cost.
pub(crate) fn share(metrics: &Metrics) -> Cost {
    Cost { processor_us: metrics.cpu.usage_usec, resident_bytes: metrics.memory.usage }
}

fn cpu(stat: &HashMap<String, u64>, most: u64) -> CPUStat {
    let number = |name: &str| stat.get(name).copied().unwrap_or_default();
    let time = |name: &str| number(name).min(most);
    CPUStat {
        usage_usec: time("usage_usec"),
        user_usec: time("user_usec"),
        system_usec: time("system_usec"),
        nr_periods: number("nr_periods"),
        nr_throttled: number("nr_throttled"),
        throttled_usec: time("throttled_usec"),
        ..CPUStat::default()
    }
}

fn memory(stats: &ContainerStats, most: u64) -> MemoryStat {
    let count = |name: &str| stats.memory.get(name).copied().unwrap_or_default();
    let bytes = |name: &str| count(name).min(most);
    MemoryStat {
        anon: bytes("anon"),
        file: bytes("file"),
        kernel_stack: bytes("kernel_stack"),
        slab: bytes("slab"),
        sock: bytes("sock"),
        shmem: bytes("shmem"),
        file_mapped: bytes("file_mapped"),
        file_dirty: bytes("file_dirty"),
        file_writeback: bytes("file_writeback"),
        anon_thp: bytes("anon_thp"),
        inactive_anon: bytes("inactive_anon"),
        active_anon: bytes("active_anon"),
        inactive_file: bytes("inactive_file"),
        active_file: bytes("active_file"),
        unevictable: bytes("unevictable"),
        slab_reclaimable: bytes("slab_reclaimable"),
        slab_unreclaimable: bytes("slab_unreclaimable"),
        pgfault: count("pgfault"),
        pgmajfault: count("pgmajfault"),
        // Since Linux 5.9 there are two counts where there was one.
        workingset_refault: count("workingset_refault")
            .saturating_add(count("workingset_refault_anon"))
            .saturating_add(count("workingset_refault_file")),
        workingset_activate: count("workingset_activate")
            .saturating_add(count("workingset_activate_anon"))
            .saturating_add(count("workingset_activate_file")),
        workingset_nodereclaim: count("workingset_nodereclaim"),
        pgrefill: count("pgrefill"),
        pgscan: count("pgscan"),
        pgsteal: count("pgsteal"),
        pgactivate: count("pgactivate"),
        pgdeactivate: count("pgdeactivate"),
        pglazyfree: count("pglazyfree"),
        pglazyfreed: count("pglazyfreed"),
        thp_fault_alloc: count("thp_fault_alloc"),
        thp_collapse_alloc: count("thp_collapse_alloc"),
        usage: stats.memory_current.min(most),
        // Without a limit of its own a container is limited by its VM.
        usage_limit: stats.memory_max.min(most),
        max_usage: stats.memory_peak.min(most),
        // There is no swap in the guest.
        swap_usage: 0,
        swap_limit: 0,
        swap_max_usage: 0,
        ..MemoryStat::default()
    }
}

fn io(stats: &ContainerStats) -> IOStat {
    let entries = stats.io.iter().take(MAX_DEVICES).map(|device| IOEntry {
        major: device.major.into(),
        minor: device.minor.into(),
        rbytes: device.rbytes,
        wbytes: device.wbytes,
        rios: device.rios,
        wios: device.wios,
        ..IOEntry::default()
    });
    IOStat { usage: entries.collect(), ..IOStat::default() }
}

fn events(events: &HashMap<String, u64>) -> MemoryEvents {
    let count = |name: &str| events.get(name).copied().unwrap_or_default();
    MemoryEvents {
        low: count("low"),
        high: count("high"),
        max: count("max"),
        oom: count("oom"),
        oom_kill: count("oom_kill"),
        ..MemoryEvents::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep::{container::IoStats, network::Count};

    const SIZE: Size = Size { vcpus: 2, memory: 1 << 20 };

    #[test]
    fn figures_arrive_under_containerds_names() {
        let stats = ContainerStats {
            cpu: [("usage_usec".to_owned(), 7)].into(),
            memory: [("anon".to_owned(), 3), ("workingset_refault_file".to_owned(), 4)].into(),
            memory_events: [("oom_kill".to_owned(), 1)].into(),
            memory_current: 5,
            memory_max: 6,
            pids_current: 2,
            pids_max: u64::MAX,
            io: vec![IoStats { major: 253, rbytes: 9, ..IoStats::default() }],
            ..ContainerStats::default()
        };
        let metrics = metrics(&stats, SIZE, Duration::from_secs(1));
        assert_eq!(
            (metrics.cpu.usage_usec, metrics.memory.anon, metrics.memory.workingset_refault),
            (7, 3, 4)
        );
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit), (5, 6));
        assert_eq!(
            (metrics.pids.current, metrics.pids.limit, metrics.memory_events.oom_kill),
            (2, u64::MAX, 1)
        );
        assert_eq!((metrics.io.usage[0].major, metrics.io.usage[0].rbytes), (253, 9));
    }

    #[test]
    fn a_cost_and_its_shares_are_told_in_the_same_fields() {
        let cost = Cost { processor_us: 7, resident_bytes: 1 << 10 };
        let metrics = of_cost(cost, SIZE);
        assert_eq!(share(&metrics), cost);
        assert_eq!(metrics.memory.usage_limit, SIZE.memory);
    }

    #[test]
    fn traffic_is_told_by_interface() {
        let count = |packets, bytes| Count { packets, bytes, ..Count::default() };
        let told = of_traffic(&[Traffic {
            interface: "eth0".into(),
            received: Count { errors: 3, dropped: 4, ..count(1, 100) },
            sent: count(2, 200),
        }]);
        let [stat] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((stat.name.as_str(), stat.rx_packets, stat.rx_bytes), ("eth0", 1, 100));
        assert_eq!((stat.rx_errors, stat.rx_dropped), (3, 4));
        assert_eq!((stat.tx_packets, stat.tx_bytes), (2, 200));
    }

    #[test]
    fn a_guest_has_used_no_more_than_there_is() {
        let stats = ContainerStats {
            cpu: [("usage_usec".to_owned(), u64::MAX)].into(),
            memory: [("anon".to_owned(), u64::MAX)].into(),
            memory_current: u64::MAX,
            memory_max: u64::MAX,
            io: vec![IoStats::default(); 1000],
            ..ContainerStats::default()
        };
        let metrics = metrics(&stats, SIZE, Duration::from_secs(1));
        assert_eq!(metrics.cpu.usage_usec, 2_000_000);
        assert_eq!((metrics.memory.anon, metrics.memory.usage), (1 << 20, 1 << 20));
        assert_eq!(metrics.memory.usage_limit, 1 << 20);
        assert_eq!(metrics.io.usage.len(), MAX_DEVICES);
    }
}

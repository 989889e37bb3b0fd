//! How large the VM of a container has to be that is in no pod.

use oci_spec::runtime::Spec;
use skep::{
    cgroup::NumberList,
    config::{HostSize, OwnLimits},
    os,
};

/// The kernel's period of processor time, microseconds, where a specification names none.
const PERIOD: u64 = 100_000;

/// The limits in a specification that a VM has to have room for. Nothing or less is none.
pub(super) fn own_limits(spec: &Spec) -> OwnLimits {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let Some(resources) = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) else {
        return OwnLimits::default();
    };
    let cpu = resources.cpu().as_ref().and_then(|cpu| {
        let period = cpu.period().filter(|period| *period > 0).unwrap_or(PERIOD);
        Some((cpu.quota().and_then(positive)?, period))
    });
    let unified = resources.unified().as_ref().and_then(|unified| unified.get("cpuset.cpus"));
    let named = resources.cpu().as_ref().and_then(|cpu| cpu.cpus().as_ref());
    let processors = named.into_iter().chain(unified).filter_map(|list| processors(list)).max();
    let memory = resources.memory().as_ref().and_then(|memory| memory.limit().and_then(positive));
    OwnLimits { cpu, processors, memory }
}

/// One more than the highest number in a list such as `0-1,3`; a list that is none is refused elsewhere.
fn processors(list: &str) -> Option<u64> {
    list.parse::<NumberList>().ok().map(|list| u64::from(list.highest()) + 1)
}

/// This host. What it does not tell bounds nothing.
pub(super) fn host() -> HostSize {
    HostSize {
        processors: std::thread::available_parallelism().map_or(u64::MAX, |count| count.get() as u64),
        memory_mib: os::memory_bytes().map_or(u64::MAX, |bytes| bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_where_there_are_any() {
        let read = |resources: &str| {
            let text = format!(r#"{{"ociVersion": "1.1.0", "linux": {{"resources": {resources}}}}}"#);
            own_limits(&serde_json::from_str(&text).unwrap())
        };
        let limits = read(r#"{"cpu": {"quota": 150000, "period": 50000}, "memory": {"limit": 1024}}"#);
        let expected = OwnLimits { cpu: Some((150_000, 50_000)), processors: None, memory: Some(1024) };
        assert_eq!(limits, expected);
        assert_eq!(read(r#"{"cpu": {"quota": 7}}"#).cpu, Some((7, PERIOD)));
        for none in ["{}", r#"{"cpu": {"quota": -1}, "memory": {"limit": -1}}"#, r#"{"cpu": {"shares": 2}}"#]
        {
            assert_eq!(read(none), OwnLimits::default(), "{none}");
        }
        assert_eq!(
            own_limits(&serde_json::from_str(r#"{"ociVersion": "1.1.0"}"#).unwrap()),
            OwnLimits::default()
        );
    }

    #[test]
    fn processors_are_counted_from_the_highest_that_is_named() {
        for (list, expected) in [
            ("0-1", Some(2)),
            ("3,0-1", Some(4)),
            ("0", Some(1)),
            (" 2 - 4 ", Some(5)),
            ("", None),
            ("all", None),
        ] {
            assert_eq!(processors(list), expected, "{list:?}");
        }
        let text = r#"{"ociVersion": "1.1.0", "linux": {"resources":
            {"cpu": {"cpus": "0"}, "unified": {"cpuset.cpus": "0-2"}}}}"#;
        assert_eq!(own_limits(&serde_json::from_str(text).unwrap()).processors, Some(3));
    }

    #[test]
    fn a_host_has_a_size() {
        let host = host();
        assert!(host.processors >= 1 && host.memory_mib >= 64, "{host:?}");
    }
}

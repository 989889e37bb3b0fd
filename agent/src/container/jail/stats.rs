//! What a container uses, as the kernel counts it for the jail.

use std::path::Path;

use skep_protocol::api::ContainerStatsResponse;

use super::limits::{self, LimitsError};
use super::oom;

/// Reads it, under the names that cgroup v2 has for the same. Processor time is counted in whole seconds.
pub(crate) fn read(jail: &Path) -> Result<ContainerStatsResponse, LimitsError> {
    let (used, set) = (limits::used(jail)?, limits::set(jail)?);
    let find = |list: &[(String, u64)], name: &str| {
        list.iter().find(|(resource, _)| resource == name).map(|(_, amount)| *amount)
    };
    let count = |name| find(&used, name).unwrap_or_default();
    let limit = |name| find(&set, name).unwrap_or(u64::MAX);
    let mut stats = ContainerStatsResponse::new();
    stats.cpu.insert("usage_usec".into(), count("cputime").saturating_mul(1_000_000));
    stats.memory_current = count(limits::MEMORY);
    stats.memory_max = limit(limits::MEMORY);
    stats.memory_events.insert("oom_kill".into(), oom::kills(jail));
    stats.pids_current = count("maxproc");
    stats.pids_max = limit("maxproc");
    Ok(stats)
}

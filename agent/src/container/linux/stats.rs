//! What a container uses, as its cgroup's files tell.

use std::collections::HashMap;
use std::path::Path;

use skep_protocol::api::{ContainerStatsResponse, IoStats};

use super::group::{self, GroupError};

/// Devices of one group that are reported; a guest has a handful.
const DEVICES_MAX: usize = 64;

/// Reads them. Files that the kernel does not have count as empty; a group that is gone is an error.
pub(crate) fn read(group: &Path) -> Result<ContainerStatsResponse, GroupError> {
    // The one file that every kernel has.
    let cpu = std::fs::read_to_string(group.join("cpu.stat")).map_err(group::control("read", group))?;
    let text = |name: &str| std::fs::read_to_string(group.join(name)).unwrap_or_default();
    let value = |name: &str| number(text(name).trim());
    Ok(ContainerStatsResponse {
        cpu: flat(&cpu),
        memory: flat(&text("memory.stat")),
        memory_events: flat(&text("memory.events")),
        memory_current: value("memory.current"),
        memory_max: value("memory.max"),
        memory_peak: value("memory.peak"),
        swap_current: value("memory.swap.current"),
        swap_max: value("memory.swap.max"),
        pids_current: value("pids.current"),
        pids_max: value("pids.max"),
        io: devices(&text("io.stat")),
        ..Default::default()
    })
}

/// A number, or "max" for none at all.
fn number(text: &str) -> u64 {
    if text == "max" { u64::MAX } else { text.parse().unwrap_or_default() }
}

/// Lines of a name and a number.
fn flat(text: &str) -> HashMap<String, u64> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(name, value)| (name.to_owned(), number(value))).collect()
}

/// Lines such as `253:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn devices(text: &str) -> Vec<IoStats> {
    let device = |line: &str| {
        let (device, counts) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let mut stats = IoStats::new();
        (stats.major, stats.minor) = (major.parse().ok()?, minor.parse().ok()?);
        for (name, count) in counts.split(' ').filter_map(|count| count.split_once('=')) {
            let field = match name {
                "rbytes" => &mut stats.rbytes,
                "wbytes" => &mut stats.wbytes,
                "rios" => &mut stats.rios,
                "wios" => &mut stats.wios,
                _ => continue,
            };
            *field = number(count);
        }
        Some(stats)
    };
    text.lines().filter_map(device).take(DEVICES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_every_kind_are_read() {
        let flat = flat("usage_usec 12\nuser_usec 7\nodd\n");
        assert_eq!((flat["usage_usec"], flat["user_usec"], flat.len()), (12, 7, 2));
        assert_eq!((number("max"), number("3"), number("x")), (u64::MAX, 3, 0));
        let devices = devices("253:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5\n7:0 \nodd\n");
        let first = &devices[0];
        assert_eq!((first.major, first.minor), (253, 16));
        assert_eq!((first.rbytes, first.wbytes, first.rios, first.wios), (1, 2, 3, 4));
        assert_eq!((devices.len(), devices[1].major), (2, 7));
    }

    #[test]
    fn a_group_that_is_gone_has_no_figures() {
        assert!(read(Path::new("/no/such/group")).is_err());
    }
}

//! Processes that the kernel killed for want of memory: a container's own, or the guest's.

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::group::{self, GroupError};

const EVENTS: &str = "memory.events";

/// How many processes of the group were killed so far. A group that is gone, or a kernel that does not count: none.
pub(crate) fn kills(group: &Path) -> u64 {
    std::fs::read_to_string(group.join(EVENTS)).map_or(0, |events| count(&events))
}

/// Waits until more than `seen` processes of the group were killed; how many were.
pub(crate) async fn more_kills(group: &Path, seen: u64) -> Result<u64, GroupError> {
    let file = File::open(group.join(EVENTS)).map_err(group::control("watch", group))?;
    // The kernel marks a changed file as having something urgent until it is read anew.
    // SAFETY: an OwnedFd names one open descriptor for as long as it lives.
    let watched = unsafe { AsyncFd::register_with_interest(OwnedFd::from(file), Interest::PRIORITY) };
    let watched = watched.map_err(|e| group::control("watch", group)(e.into()))?;
    loop {
        let kills = read(watched.get_ref()).map_err(group::control("watch", group))?;
        if kills > seen {
            return Ok(kills);
        }
        let ready = watched.ready(Interest::PRIORITY).await;
        ready.map_err(group::control("watch", group))?.clear_ready();
    }
}

/// Holds the group to its limit: the kernel does.
pub(crate) async fn enforce(_: &Path) -> Infallible {
    std::future::pending().await
}

fn read(file: &OwnedFd) -> std::io::Result<u64> {
    // A handful of short lines.
    let mut events = [0; 512];
    let length = File::from(file.try_clone()?).read_at(&mut events, 0)?;
    Ok(count(&String::from_utf8_lossy(&events[..length])))
}

fn count(events: &str) -> u64 {
    group::event(events, "oom_kill").and_then(|count| count.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_and_not_groups_of_them() {
        let events = "low 0\nhigh 0\nmax 17\noom 4\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(count(events), 3);
        assert_eq!(count("oom 4\n"), 0);
        assert_eq!(kills(Path::new("/no/such/group")), 0);
    }
}

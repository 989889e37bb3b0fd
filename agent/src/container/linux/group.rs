//! A container's cgroup: its processes, freezing, killing, and its end.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::devices::DeviceError;
use crate::error::{Code, Refusal};

/// Groups below a container's that are looked at; a container may make as many as it likes.
const GROUPS_MAX: usize = 4096;
/// Process ids reported for one container.
const PIDS_MAX: usize = 65_536;

/// What goes wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    #[error("cannot make the cgroup {path}: {source}", path = .path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot {what} the cgroup {path}: {source}", path = .path.display())]
    Control { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the processes of cgroup {path} did not {what} within {} s", .limit.as_secs(), path = .path.display())]
    Late { what: &'static str, path: PathBuf, limit: Duration },
    #[error(transparent)]
    Devices(#[from] DeviceError),
}

impl From<GroupError> for Refusal {
    fn from(error: GroupError) -> Self {
        let code = match &error {
            GroupError::Late { .. } => Code::DeadlineExceeded,
            GroupError::Devices(DeviceError::Rule { .. } | DeviceError::TooMany(_)) => Code::InvalidArgument,
            _ => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// Makes the group.
pub(crate) fn make(group: &Path) -> Result<(), GroupError> {
    std::fs::create_dir(group).map_err(|source| GroupError::Make { path: group.to_owned(), source })
}

/// Kills every process in the group. A group that is gone has none.
pub(crate) fn kill(group: &Path) -> Result<(), GroupError> {
    match std::fs::write(group.join("cgroup.kill"), "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(control("kill", group)(error)),
        _ => Ok(()),
    }
}

/// The first process has ended, and every other one ends with it: in a PID namespace of its own by itself, in the pod's
/// because nobody would hear of them any more, and they would keep the container's output open.
pub(crate) fn init_ended(group: &Path) -> Result<(), GroupError> {
    kill(group)
}

/// The processes of the group and of those that the container made below it.
pub(crate) fn pids(group: &Path) -> Result<Vec<u32>, GroupError> {
    let mut pids = Vec::new();
    for group in tree(group) {
        match std::fs::read_to_string(group.join("cgroup.procs")) {
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
            // A group of the container's own may go at any time, and a threaded one lists no processes.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(error) => return Err(control("list", &group)(error)),
        }
        pids.truncate(PIDS_MAX);
    }
    pids.sort_unstable();
    Ok(pids)
}

/// Freezes or thaws the group and waits until it is done.
pub(crate) async fn freeze(group: &Path, frozen: bool, limit: Duration) -> Result<(), GroupError> {
    let (value, what) = if frozen { ("1", "freeze") } else { ("0", "thaw") };
    std::fs::write(group.join("cgroup.freeze"), value).map_err(control(what, group))?;
    wait_event(group, "frozen", value, what, limit).await
}

/// Removes the group once its processes are gone, which were killed before.
pub(crate) async fn remove(group: &Path, limit: Duration) -> Result<(), GroupError> {
    if !group.exists() {
        return Ok(());
    }
    wait_event(group, "populated", "0", "end", limit).await?;
    // Children before their parents.
    for group in tree(group).iter().rev() {
        match std::fs::remove_dir(group) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(control("remove", group)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn wait_event(
    group: &Path,
    key: &str,
    value: &str,
    what: &'static str,
    limit: Duration,
) -> Result<(), GroupError> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(500);
    loop {
        let events = std::fs::read_to_string(group.join("cgroup.events")).map_err(control(what, group))?;
        if event(&events, key) == Some(value) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(GroupError::Late { what, path: group.to_owned(), limit });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The value of a line of a flat-keyed file.
pub(super) fn event<'a>(events: &'a str, key: &str) -> Option<&'a str> {
    events.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

/// The group and those below it, parents first.
fn tree(group: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = VecDeque::from([group.to_owned()]);
    while let Some(group) = left.pop_front() {
        if found.len() == GROUPS_MAX {
            break;
        }
        let entries = std::fs::read_dir(&group).into_iter().flatten().flatten();
        left.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        found.push(group);
    }
    found
}

/// The error of an operation on a group.
pub(super) fn control(what: &'static str, group: &Path) -> impl FnOnce(io::Error) -> GroupError {
    let path = group.to_owned();
    move |source| GroupError::Control { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_by_their_whole_key() {
        let events = "populated 1\nfrozen 0\n";
        assert_eq!(event(events, "populated"), Some("1"));
        assert_eq!(event(events, "frozen"), Some("0"));
        assert_eq!(event(events, "pop"), None);
    }

    #[test]
    fn processes_of_nested_groups_count() {
        let group = std::env::temp_dir().join(format!("skep-agent-group-{}", std::process::id()));
        std::fs::create_dir_all(group.join("a/b")).expect("dirs");
        for (dir, procs) in [("", "7\n"), ("a", ""), ("a/b", "9\n3\n")] {
            std::fs::write(group.join(dir).join("cgroup.procs"), procs).expect("procs");
        }
        let found = pids(&group);
        let order = tree(&group);
        std::fs::remove_dir_all(&group).expect("clean");
        assert_eq!(found.expect("pids"), [3, 7, 9]);
        assert_eq!(order, [group.clone(), group.join("a"), group.join("a/b")]);
    }
}

//! Where the agent keeps what belongs to a container.

use std::path::{Path, PathBuf};

use super::names;

/// Bundles: what the agent notes of a container.
pub(crate) const BUNDLES: &str = "/run/skep/containers";
/// What containers wait to be started by, and the state of what makes them.
pub(crate) const STATE: &str = "/run/skep/state";
/// Sockets over which terminals arrive.
pub(crate) const TERMINALS: &str = "/run/skep/tty";

/// The paths of one container, from its checked id.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The bundle directory.
    pub(crate) bundle: PathBuf,
    /// Where its first process waits.
    pub(crate) state: PathBuf,
    /// What holds the container's processes: a cgroup's path in the hierarchy, or the name of a jail.
    pub(crate) group: PathBuf,
}

impl Paths {
    pub(crate) fn new(id: &str) -> Self {
        Self {
            bundle: Path::new(BUNDLES).join(id),
            state: Path::new(STATE).join(id),
            group: names::group(id),
        }
    }

    /// Where the group is found: the directory of the cgroup; a jail by its name.
    pub(crate) fn group_dir(&self) -> PathBuf {
        names::group_dir(&self.group)
    }

    /// By what the mounts of its root are found again.
    pub(crate) fn overlay(&self) -> PathBuf {
        self.bundle.join(names::ROOT)
    }

    /// The socket on which init waits to be started.
    pub(crate) fn notify(&self) -> PathBuf {
        self.state.join(names::START)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longest_id_still_fits_a_socket_path() {
        // FreeBSD's has 104 bytes, Linux's 108, the final zero included: the system that it is built for counts.
        let path = Paths::new(&"x".repeat(76)).notify();
        std::os::unix::net::SocketAddr::from_pathname(path).unwrap();
    }
}

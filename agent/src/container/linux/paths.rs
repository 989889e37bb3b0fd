//! Where the agent keeps what belongs to a container.

use std::path::{Path, PathBuf};

use crate::boot::linux::cgroups;

/// Bundles: what the agent wrote for libcontainer.
pub(crate) const BUNDLES: &str = "/run/skep/containers";
/// libcontainer's own state.
pub(crate) const STATE: &str = "/run/skep/state";
/// Sockets over which terminals arrive.
pub(crate) const TERMINALS: &str = "/run/skep/tty";

/// The paths of one container, from its checked id.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The bundle directory.
    pub(crate) bundle: PathBuf,
    /// libcontainer's directory for the container.
    pub(crate) state: PathBuf,
    /// The cgroup as a path in the hierarchy.
    pub(crate) group: PathBuf,
}

impl Paths {
    pub(crate) fn new(id: &str) -> Self {
        Self {
            bundle: Path::new(BUNDLES).join(id),
            state: Path::new(STATE).join(id),
            group: Path::new(cgroups::GROUP).join(id),
        }
    }

    /// The directory of the cgroup.
    pub(crate) fn group_dir(&self) -> PathBuf {
        let relative = self.group.strip_prefix("/").unwrap_or(&self.group);
        Path::new(cgroups::MOUNT).join(relative)
    }

    /// Where an overlay root is mounted: upper, work and the merged tree.
    pub(crate) fn overlay(&self) -> PathBuf {
        self.bundle.join("overlay")
    }

    /// The socket on which init waits to be started.
    pub(crate) fn notify(&self) -> PathBuf {
        self.state.join(libcontainer::notify_socket::NOTIFY_FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longest_id_still_fits_a_socket_path() {
        let paths = Paths::new(&"x".repeat(76));
        assert!(paths.notify().as_os_str().len() < 108);
        assert!(paths.group_dir().starts_with("/sys/fs/cgroup/skep"));
    }
}

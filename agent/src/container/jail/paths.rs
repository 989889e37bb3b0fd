//! Where the agent keeps what belongs to a container.

use std::path::{Path, PathBuf};

/// Bundles: what the agent notes of a container.
pub(crate) const BUNDLES: &str = "/run/skep/containers";
/// Sockets on which first processes wait to be started.
pub(crate) const STATE: &str = "/run/skep/state";
/// Sockets over which terminals arrive.
pub(crate) const TERMINALS: &str = "/run/skep/tty";

/// The paths of one container, from its checked id.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The bundle directory.
    pub(crate) bundle: PathBuf,
    /// Where the first process waits.
    pub(crate) state: PathBuf,
    /// What holds the container's processes: the name of its jail.
    pub(crate) group: PathBuf,
}

impl Paths {
    pub(crate) fn new(id: &str) -> Self {
        // A jail's name has no dots, which stand for jails within jails, and is no number; an id has no colon.
        let group = PathBuf::from(format!("skep:{}", id.replace('.', ":")));
        Self { bundle: Path::new(BUNDLES).join(id), state: Path::new(STATE).join(id), group }
    }

    /// The same.
    pub(crate) fn group_dir(&self) -> PathBuf {
        self.group.clone()
    }

    /// A link to the container's root, below which its mounts are.
    pub(crate) fn overlay(&self) -> PathBuf {
        self.bundle.join("root")
    }

    /// The socket on which init waits to be started.
    pub(crate) fn notify(&self) -> PathBuf {
        self.state.join("start.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longest_id_still_fits_a_socket_path_and_names_differ() {
        let paths = Paths::new(&"x".repeat(76));
        assert!(paths.notify().as_os_str().len() < 104);
        assert_ne!(Paths::new("a.b").group_dir(), Paths::new("a-b").group_dir());
        assert!(!Paths::new("1.2").group_dir().to_string_lossy().contains('.'));
    }
}

//! How things of a container are called.

use std::path::{Path, PathBuf};

use crate::boot::linux::cgroups;

/// Where an overlay root is mounted, in the bundle: upper, work and the merged tree.
pub(crate) const ROOT: &str = "overlay";
/// The socket on which init waits to be started: libcontainer's.
pub(crate) const START: &str = libcontainer::notify_socket::NOTIFY_FILE;

/// The container's cgroup as a path in the hierarchy.
pub(crate) fn group(id: &str) -> PathBuf {
    Path::new(cgroups::GROUP).join(id)
}

/// The directory of a cgroup.
pub(crate) fn group_dir(group: &Path) -> PathBuf {
    Path::new(cgroups::MOUNT).join(group.strip_prefix("/").unwrap_or(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_below_its_mount() {
        assert!(group_dir(&group("a")).starts_with("/sys/fs/cgroup/skep"));
    }
}

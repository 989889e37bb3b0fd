//! The cgroup hierarchy: version 2, every controller the kernel has, one group for all containers.

use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::files::{read, write};
use super::mounts;
use crate::boot::BootError;

/// Where the hierarchy is mounted.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
/// The group whose children are the containers' groups, as a path in the hierarchy.
pub(crate) const GROUP: &str = "/skep";

/// Mounts the hierarchy and hands every controller down to the containers' groups.
pub(super) fn prepare() -> Result<(), BootError> {
    // nsdelegate: what a container sees as its root group keeps the limits that were set from outside.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("cgroup2"), MOUNT, Some("cgroup2"), flags, Some("nsdelegate"))
        .map_err(|source| BootError::Mount { what: "cgroup2", target: MOUNT.to_owned(), source })?;
    let enable = enable_all(&read("/sys/fs/cgroup/cgroup.controllers")?);
    let group = format!("{MOUNT}{GROUP}");
    write(&Path::new(MOUNT).join("cgroup.subtree_control"), &enable)?;
    mounts::directory(&group)?;
    write(&Path::new(&group).join("cgroup.subtree_control"), &enable)
}

/// "cpu io" becomes "+cpu +io".
fn enable_all(controllers: &str) -> String {
    controllers.split_ascii_whitespace().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_is_enabled_in_one_write() {
        assert_eq!(enable_all("cpuset cpu io memory\n"), "+cpuset +cpu +io +memory");
        assert_eq!(enable_all("\n"), "");
    }
}

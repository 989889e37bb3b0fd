//! containerd on Linux.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use nix::mount::{MntFlags, umount2};

use crate::census;

/// Linux images are the usual ones.
pub(super) const PLATFORM: &[&str] = &[];

/// A command for `program`, in a network namespace of its own, which tells its links and sockets from the machine's.
pub(super) fn alone(program: &Path) -> Command {
    // unshare(1), of util-linux, execs what it is given, so that the child is the program itself.
    let mut command = Command::new("unshare");
    command.arg("--net").arg(program);
    command
}

pub(super) fn unmount(mount: &Path) -> Result<()> {
    Ok(umount2(mount, MntFlags::MNT_DETACH)?)
}

/// Removes what containers left outside of containerd's directory: runc's own state and the cgroups.
pub(super) fn forget(namespace: &str) -> Result<()> {
    // What is not there needs no removal.
    let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(namespace));
    let mut cgroups = census::cgroups(namespace)?;
    cgroups.reverse();
    let mut parents: Vec<PathBuf> = cgroup_parents(namespace);
    cgroups.append(&mut parents);
    for cgroup in cgroups {
        let _ = fs::remove_dir(cgroup);
    }
    Ok(())
}

fn cgroup_parents(namespace: &str) -> Vec<PathBuf> {
    let mut parents = vec![Path::new("/sys/fs/cgroup").join(namespace)];
    if let Ok(entries) = fs::read_dir("/sys/fs/cgroup") {
        parents.extend(entries.filter_map(|entry| Some(entry.ok()?.path().join(namespace))));
    }
    parents.retain(|path| path.is_dir());
    parents
}

//! containerd on FreeBSD.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use nix::mount::{MntFlags, unmount as umount};

use crate::process::run;

pub(super) const PLATFORM: &[&str] = &["--platform", "linux/amd64", "--snapshotter", "native"];

/// A command for `program`: the harness has the whole machine for itself.
pub(super) fn alone(program: &Path) -> Command {
    Command::new(program)
}

pub(super) fn unmount(mount: &Path) -> Result<()> {
    Ok(umount(mount, MntFlags::MNT_FORCE)?)
}

/// Destroys the VMs that a failed case left: no other is on this machine.
pub(super) fn forget(_namespace: &str) -> Result<()> {
    let Ok(vms) = std::fs::read_dir("/dev/vmm") else { return Ok(()) };
    for vm in vms.flatten() {
        let mut command = Command::new("bhyvectl");
        command.arg("--destroy").arg(format!("--vm={}", vm.file_name().to_string_lossy()));
        // One that has just gone is no error.
        run(command)?;
    }
    Ok(())
}

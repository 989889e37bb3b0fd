//! The guest's own file systems, and a root that containers can pivot away from.

use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::boot::BootError;

/// The agent's directories; nothing in a container can reach them.
pub(crate) const RUN: &str = "/run/skep";

/// Where the new root is put together, in the initramfs.
const STAGE: &str = "/root.new";

struct Mount {
    what: &'static str,
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// In mounting order. The root is a tmpfs because the kernel refuses to pivot away from the initramfs.
const MOUNTS: [Mount; 9] = [
    Mount { what: "root", target: "", kind: "tmpfs", flags: SAFE, data: "mode=755,size=1m" },
    Mount { what: "proc", target: "/proc", kind: "proc", flags: SAFE, data: "" },
    Mount { what: "sysfs", target: "/sys", kind: "sysfs", flags: SAFE, data: "" },
    Mount { what: "devtmpfs", target: "/dev", kind: "devtmpfs", flags: MsFlags::MS_NOSUID, data: "mode=755" },
    Mount {
        what: "devpts",
        target: "/dev/pts",
        kind: "devpts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: "mode=620,gid=5,ptmxmode=666",
    },
    Mount { what: "run", target: "/run", kind: "tmpfs", flags: SAFE, data: "mode=755" },
    Mount { what: "tmp", target: "/tmp", kind: "tmpfs", flags: SAFE, data: "mode=1777" },
    // Containers of one sandbox share these, as they share the IPC namespace.
    Mount { what: "shm", target: "/dev/shm", kind: "tmpfs", flags: SAFE, data: "mode=1777" },
    Mount { what: "mqueue", target: "/dev/mqueue", kind: "mqueue", flags: SAFE, data: "" },
];

/// Builds the new root, enters it and leaves the initramfs behind.
pub(crate) fn prepare() -> Result<(), BootError> {
    for entry in &MOUNTS {
        let target = format!("{STAGE}{}", entry.target);
        directory(&target)?;
        mount_at(entry, &target)?;
    }
    // The file goes, the running program stays: nothing has a path to the agent any more, and as it is being
    // executed it cannot be opened for writing through /proc either.
    if let Err(error) = std::fs::remove_file("/init") {
        tracing::warn!("cannot unlink /init: {error}");
    }
    enter(STAGE).map_err(BootError::Root)?;
    directory(RUN)
}

/// Makes `stage` the root of this and every later process. The initramfs cannot be pivoted away from, so the
/// new root is moved over it.
fn enter(stage: &str) -> nix::Result<()> {
    nix::unistd::chdir(stage)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")
}

fn mount_at(entry: &Mount, target: &str) -> Result<(), BootError> {
    mount(Some(entry.what), target, Some(entry.kind), entry.flags, Some(entry.data))
        .map_err(|source| BootError::Mount { what: entry.what, target: target.to_owned(), source })
}

/// Makes a directory with its parents.
pub(crate) fn directory(path: impl AsRef<Path>) -> Result<(), BootError> {
    let path = path.as_ref();
    std::fs::create_dir_all(path)
        .map_err(|source| BootError::Directory { path: path.display().to_string(), source })
}

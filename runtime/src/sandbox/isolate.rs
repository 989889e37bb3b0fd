//! The share directory on a file system of its own, where the host's might run what a guest puts there.
//!
//! bhyve's file server takes any mode that a guest asks for. So what is written beside the mounts must mean nothing to
//! the host, and must not fill it up.

use std::path::Path;

use super::SandboxError;
use crate::journal::{Entry, Journal};
use crate::os::{self, MountRequest};

/// What tmpfs(4) is told: directories to mount on and small files are all that belongs there. The way through it is open:
/// bhyve's file server asks the modes of directories as the guest's user, from its root on (contrib/lib9p/backend/fs.c,
/// `fs_walk`), so that with 0700 a process that is not root finds nothing. From this host's users the sandbox's own
/// directory, which is 0700, keeps it.
const OPTIONS: [&str; 5] = ["nosuid", "noexec", "size=4194304", "inodes=65536", "mode=711"];

/// Mounts it, on FreeBSD.
pub(super) fn isolate(journal: &Journal, share: &Path) -> Result<(), SandboxError> {
    if cfg!(not(target_os = "freebsd")) {
        return Ok(());
    }
    journal.record(Entry::Mount { target: share.to_owned() })?;
    os::mount(&MountRequest {
        fstype: "tmpfs".into(),
        source: "tmpfs".into(),
        target: share.to_owned(),
        options: OPTIONS.map(str::to_owned).into(),
    })?;
    Ok(())
}

//! The containers of the sandbox: what PID 1 knows of them and does with them.

pub(crate) mod faults;
mod heads;
mod id;
#[cfg(target_os = "freebsd")]
mod jail;
mod lifecycle;
#[cfg(target_os = "linux")]
mod linux;
mod lookup;
mod paths;
mod process;
mod program;
mod root;
mod start;
mod table;
mod wanted;

use std::os::unix::fs::DirBuilderExt as _;

#[cfg(target_os = "freebsd")]
use jail::{group, head, join, make, names, oom, pod, rootfs, stats, update};
#[cfg(target_os = "linux")]
pub(crate) use linux::idmap::run as map_ids;
#[cfg(target_os = "linux")]
pub(crate) use linux::pod::keep as keep_pod;
#[cfg(target_os = "linux")]
use linux::{group, head, join, make, names, oom, pod, rootfs, stats, update};
pub(crate) use paths::Paths;
pub(crate) use process::Process;
pub(crate) use table::Containers;

use crate::error::Refusal;

/// Makes the directories in which containers are kept.
pub(crate) fn prepare() -> Result<(), Refusal> {
    // A container's own users pass through the bundles to their root.
    for (path, mode) in [(paths::BUNDLES, 0o711), (paths::STATE, 0o700), (paths::TERMINALS, 0o700)] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(|e| Refusal::internal(format!("cannot make {path}: {e}")))?;
    }
    Ok(())
}

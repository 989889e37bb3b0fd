//! The containers of the sandbox: what PID 1 knows of them and does with them.

mod capabilities;
mod devices;
pub(crate) mod faults;
mod group;
mod id;
mod join;
mod lifecycle;
mod lookup;
mod make;
mod oom;
mod paths;
mod payload;
mod process;
mod rootfs;
mod spec;
mod start;
mod stats;
mod table;
mod update;

use std::os::unix::fs::DirBuilderExt as _;

pub(crate) use paths::Paths;
pub(crate) use process::Process;
pub(crate) use table::Containers;

use crate::error::Refusal;

/// Makes the directories in which containers are kept.
pub(crate) fn prepare() -> Result<(), Refusal> {
    for path in [paths::BUNDLES, paths::STATE, paths::TERMINALS] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| Refusal::internal(format!("cannot make {path}: {e}")))?;
    }
    Ok(())
}

//! Cgroups of this host: where what a sandbox costs is counted and limited.
//!
//! Whoever runs pods names a cgroup for each, and reads and limits there what all of the pod takes. A VM takes it by its
//! VMM, so that lives in it. FreeBSD has no cgroups: there nothing is made and nothing refused.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod none;
mod path;
mod sets;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
use none as system;

use std::path::PathBuf;

pub use path::{CgroupPath, PathError};
pub use sets::{HostSets, NumberList, NumberListError};
pub use system::{Cgroup, join, remove};

/// Something could not be done with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is none of that name.
    #[error("no cgroup {path} below {}: create it first", root.display())]
    Missing {
        /// Its path.
        path: CgroupPath,
        /// Where cgroups are mounted.
        root: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A system without.
    #[error("cgroup {0}: this system has none")]
    Unsupported(CgroupPath),
}

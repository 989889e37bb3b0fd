//! The cgroup that a client wants a shim to run in: it exists already, and the shim, its VMM and all else that it starts
//! are accounted and limited there.

use std::path::PathBuf;
#[cfg(target_os = "linux")]
use std::path::{Component, Path};

/// The shim can't be where it is wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// Not a path below the root of the cgroups.
    #[cfg(target_os = "linux")]
    #[error("option ShimCgroup: `{0}` is not an absolute path without `..`")]
    Path(String),
    /// There is none of that name.
    #[cfg(target_os = "linux")]
    #[error("option ShimCgroup: no cgroup {path} below {}: create it first", root.display())]
    Missing {
        /// Its path.
        path: String,
        /// Where cgroups are mounted.
        root: PathBuf,
    },
    /// The system refused.
    #[cfg(target_os = "linux")]
    #[error("option ShimCgroup: cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// A system without.
    #[cfg(not(target_os = "linux"))]
    #[error("option ShimCgroup: {}: this system has no cgroups", .0.display())]
    None(PathBuf),
}

/// Moves a process into the cgroup `path`, in every hierarchy that has it.
#[cfg(target_os = "linux")]
pub(crate) fn join(path: &str, pid: u32) -> Result<(), CgroupError> {
    let root = Path::new("/sys/fs/cgroup");
    let below = relative(path).ok_or_else(|| CgroupError::Path(path.to_owned()))?;
    let mut joined = false;
    for hierarchy in hierarchies(root)? {
        let cgroup = hierarchy.join(below);
        if !cgroup.is_dir() {
            continue;
        }
        let file = cgroup.join("cgroup.procs");
        std::fs::write(&file, pid.to_string()).map_err(|error| CgroupError::Io {
            action: "move the shim by",
            path: file,
            error,
        })?;
        joined = true;
    }
    if joined { Ok(()) } else { Err(CgroupError::Missing { path: path.to_owned(), root: root.to_owned() }) }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn join(path: &str, _pid: u32) -> Result<(), CgroupError> {
    Err(CgroupError::None(path.into()))
}

#[cfg(target_os = "linux")]
fn relative(path: &str) -> Option<&Path> {
    let below = Path::new(path).strip_prefix("/").ok()?;
    below.components().all(|part| matches!(part, Component::Normal(_))).then_some(below)
}

/// Where processes are put into cgroups: the one hierarchy of version 2, or each controller's of version 1. Where both
/// are mounted, controllers are version 1's, and containerd and runc use those.
#[cfg(target_os = "linux")]
fn hierarchies(root: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    const VERSION_1: u64 = 0x0027_e0eb;
    const VERSION_2: u64 = 0x6367_7270;
    let kind = |path: &Path| rustix::fs::statfs(path).map(|stat| stat.f_type.cast_unsigned());
    let failed = |error: std::io::Error| CgroupError::Io { action: "list", path: root.to_owned(), error };
    if kind(root).map_err(|error| failed(error.into()))? == VERSION_2 {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Other names of a hierarchy are symbolic links.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && kind(&entry.path()) == Ok(VERSION_1) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(relative("/shims/a"), Some(Path::new("shims/a")));
        for bad in ["", "shims", "/../etc", "/a/../../b"] {
            assert_eq!(relative(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_cgroup_that_does_not_exist_is_named() {
        let error = join("/no/such/cgroup", std::process::id()).unwrap_err().to_string();
        assert!(error.contains("/no/such/cgroup"), "{error}");
    }
}

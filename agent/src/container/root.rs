//! The root of a container as the host shares it.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::Refusal;

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("rootfs {0:?}: not an absolute path")]
    Relative(PathBuf),
    #[error("rootfs {path:?}: {source}; is the share mounted, and the container's root in it?")]
    Missing { path: PathBuf, source: io::Error },
    #[error("rootfs {0:?}: not a directory")]
    NotDirectory(PathBuf),
}

impl From<RootError> for Refusal {
    fn from(error: RootError) -> Self {
        Self::invalid(error.to_string())
    }
}

/// Checks that the shared directory is there.
pub(crate) fn check(shared: &Path) -> Result<(), RootError> {
    if !shared.is_absolute() {
        return Err(RootError::Relative(shared.to_owned()));
    }
    match std::fs::metadata(shared) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(RootError::NotDirectory(shared.to_owned())),
        Err(source) => Err(RootError::Missing { path: shared.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_root_is_named() {
        let text = |path: &str| check(Path::new(path)).expect_err(path).to_string();
        assert!(text("/no/such/root").starts_with("rootfs \"/no/such/root\": No such file"));
        assert_eq!(text("relative"), "rootfs \"relative\": not an absolute path");
        assert_eq!(text("/etc/passwd"), "rootfs \"/etc/passwd\": not a directory");
        assert!(check(Path::new("/")).is_ok());
    }
}

//! What is mounted below a container's root, and its end.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::Refusal;
use crate::os::mounts;

/// Why something stays mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot read {path}: {source}", path = .path.display())]
    Link { path: PathBuf, source: io::Error },
    #[error("cannot list mounts: {0}")]
    List(nix::Error),
    #[error("cannot unmount {path}: {source}", path = .path.display())]
    Unmount { path: PathBuf, source: nix::Error },
}

impl From<RootfsError> for Refusal {
    fn from(error: RootfsError) -> Self {
        Self::internal(error.to_string())
    }
}

/// Unmounts what a container had mounted, as far as it got: all of it is tried. `link` points at its root.
pub(crate) fn remove(link: &Path) -> Result<(), RootfsError> {
    let root = match std::fs::read_link(link) {
        Ok(root) => root,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(RootfsError::Link { path: link.to_owned(), source }),
    };
    let mut result = Ok(());
    // A read-only root is a mount itself.
    for path in mounts::below(&root).map_err(RootfsError::List)?.into_iter().chain([root]) {
        if let Err(source) = mounts::unmount(&path) {
            result = Err(RootfsError::Unmount { path, source });
        }
    }
    result
}

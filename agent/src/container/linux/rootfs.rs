//! The root of a container that is an overlay above the directory the host shares.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Code, Refusal};

/// Why there is no overlay.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("rootfs {0:?}: an overlay's lower path cannot contain ':' or ','")]
    Name(PathBuf),
    #[error("cannot make the overlay's directory {path}: {source}", path = .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot mount {what} on {path}: {source}", path = .path.display())]
    Mount { what: &'static str, path: PathBuf, source: nix::Error },
}

impl From<RootfsError> for Refusal {
    fn from(error: RootfsError) -> Self {
        let code = match &error {
            RootfsError::Directory { .. } | RootfsError::Mount { .. } => Code::Internal,
            RootfsError::Name(_) => Code::InvalidArgument,
        };
        Self::new(code, error.to_string())
    }
}

/// Mounts an overlay at `at`: the shared tree below, a tmpfs of its own above. Returns the merged root.
pub(crate) fn overlay(shared: &Path, at: &Path) -> Result<PathBuf, RootfsError> {
    if shared.as_os_str().as_encoded_bytes().iter().any(|b| matches!(b, b':' | b',')) {
        return Err(RootfsError::Name(shared.to_owned()));
    }
    let make = |path: &Path| {
        std::fs::create_dir_all(path)
            .map_err(|source| RootfsError::Directory { path: path.to_owned(), source })
    };
    make(at)?;
    // Its own tmpfs, so that a full container fills nothing of the agent's.
    mount(Some("overlay"), at, Some("tmpfs"), MsFlags::empty(), Some("mode=711"))
        .map_err(|source| RootfsError::Mount { what: "a tmpfs", path: at.to_owned(), source })?;
    let [upper, work, merged] = ["upper", "work", "root"].map(|name| at.join(name));
    for path in [&upper, &work, &merged] {
        make(path)?;
    }
    // The merged root looks as the upper directory does, and should look as the shared one.
    copy_owner(shared, &upper).map_err(|source| RootfsError::Directory { path: upper.clone(), source })?;
    let data =
        format!("lowerdir={},upperdir={},workdir={}", shared.display(), upper.display(), work.display());
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        .map_err(|source| RootfsError::Mount { what: "an overlay", path: merged.clone(), source })?;
    Ok(merged)
}

fn copy_owner(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    std::fs::set_permissions(to, metadata.permissions())
}

/// Unmounts what `overlay` mounted, as far as it got.
pub(crate) fn remove(at: &Path) -> Result<(), RootfsError> {
    for path in [at.join("root"), at.to_owned()] {
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Not a mount, or not there: nothing to undo.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(source) => return Err(RootfsError::Mount { what: "nothing", path, source }),
        }
    }
    Ok(())
}

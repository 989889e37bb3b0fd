//! Removing a directory without ever leaving its mount.
//!
//! A sandbox's directory has host directories mounted below it. If one of them is still there, deleting what is in it
//! would delete a user's data; so the whole removal is refused as soon as a mount is met.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{mounts_below, system};

/// A directory could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Something is mounted at or below it; nothing was deleted below the mount.
    #[error("{} is not removed: something is mounted on {}", dir.display(), mount.display())]
    Mounted {
        /// The directory.
        dir: PathBuf,
        /// Where.
        mount: PathBuf,
    },
    /// The mounts below it cannot be told.
    #[error(transparent)]
    Mounts(#[from] super::MountError),
    /// The system refused.
    #[error("cannot remove {}: {source}", path.display())]
    System {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Directories deeper than this are not ours.
const MOST_DEPTH: usize = 128;

/// Removes `dir` with all that is in it. Symbolic links are removed, not followed. That it does not exist is success.
pub fn remove_tree(dir: &Path) -> Result<(), TreeError> {
    if let Some(mount) = mounts_below(dir)?.into_iter().next() {
        return Err(TreeError::Mounted { dir: dir.to_owned(), mount });
    }
    let error = |source: Errno| TreeError::System { path: dir.to_owned(), source: source.into() };
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Err(error(Errno::INVAL)) };
    let name = c_string(name.as_encoded_bytes());
    let parent =
        match rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(error(e)),
        };
    remove_in(parent.as_fd(), &name, dir, MOST_DEPTH)
}

/// A name that the system gave has no zero in it.
fn c_string(name: &[u8]) -> CString {
    CString::new(name).unwrap_or_default()
}

fn remove_in(parent: BorrowedFd<'_>, name: &CString, path: &Path, depth: usize) -> Result<(), TreeError> {
    let error = |source: Errno| TreeError::System { path: path.to_owned(), source: source.into() };
    if depth == 0 {
        return Err(error(Errno::LOOP));
    }
    let dir = match system::open_same_mount(parent, name) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        // A mount made since the list was read.
        Err(Errno::XDEV) => return Err(TreeError::Mounted { dir: path.to_owned(), mount: path.to_owned() }),
        Err(e) => return Err(error(e)),
    };
    for entry in Dir::read_from(&dir).map_err(error)? {
        let entry = entry.map_err(error)?;
        let inner = entry.file_name();
        if inner == c"." || inner == c".." {
            continue;
        }
        let inner_path = path.join(String::from_utf8_lossy(inner.to_bytes()).as_ref());
        let is_dir = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => {
                let stat = rustix::fs::statat(&dir, inner, AtFlags::SYMLINK_NOFOLLOW).map_err(error)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            _ => false,
        };
        if is_dir {
            remove_in(dir.as_fd(), &inner.to_owned(), &inner_path, depth - 1)?;
            continue;
        }
        match rustix::fs::unlinkat(&dir, inner, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::BUSY) => {
                return Err(TreeError::Mounted { dir: path.to_owned(), mount: inner_path });
            }
            Err(e) => return Err(TreeError::System { path: inner_path, source: e.into() }),
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(error(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_goes_and_what_links_point_to_stays() {
        let base = tempfile::tempdir().unwrap();
        let outside = base.path().join("outside");
        std::fs::write(&outside, "keep").unwrap();
        let dir = base.path().join("dir");
        std::fs::create_dir_all(dir.join("a/b/c")).unwrap();
        std::fs::write(dir.join("a/file"), "x").unwrap();
        std::os::unix::fs::symlink(base.path(), dir.join("a/link")).unwrap();
        std::os::unix::fs::symlink(&outside, dir.join("link")).unwrap();
        remove_tree(&dir).unwrap();
        assert!(!dir.exists());
        assert_eq!(std::fs::read_to_string(outside).unwrap(), "keep");
        remove_tree(&dir).unwrap();
        remove_tree(&base.path().join("no/such/dir")).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_mount_below_stops_it() {
        use crate::os::{MountRequest, mount, unmount};

        let base = tempfile::tempdir().unwrap();
        let user = base.path().join("user");
        std::fs::create_dir(&user).unwrap();
        std::fs::write(user.join("data"), "precious").unwrap();
        let dir = base.path().join("dir");
        let rootfs = dir.join("share/rootfs");
        std::fs::create_dir_all(&rootfs).unwrap();
        crate::os::in_private_namespace(|| {
            mount(&MountRequest {
                fstype: "bind".into(),
                source: user.clone(),
                target: rootfs.clone(),
                options: vec!["bind".into()],
            })
            .unwrap();
            let error = remove_tree(&dir).unwrap_err();
            assert!(matches!(&error, TreeError::Mounted { mount, .. } if *mount == rootfs), "{error}");
            // Nor does the walk itself enter a mount that the list did not show, the same file system or not.
            let parent = std::fs::File::open(rootfs.parent().unwrap()).unwrap();
            assert_eq!(system::open_same_mount(&parent, c"rootfs").unwrap_err(), Errno::XDEV);
            assert_eq!(std::fs::read_to_string(user.join("data")).unwrap(), "precious");
            unmount(&rootfs).unwrap();
            remove_tree(&dir).unwrap();
            assert_eq!(std::fs::read_to_string(user.join("data")).unwrap(), "precious");
        });
    }
}

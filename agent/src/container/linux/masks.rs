//! Masked paths: what a container is not to see.
//!
//! libcontainer mounts on a symbolic link itself, which leaves what the link leads to in sight by its own name. runc
//! follows links, as mount(2) does, and so do we.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::null::is_null;
use crate::error::Refusal;

/// Covers `paths` in this process's mount namespace, whose root is the container's: directories by an empty read-only
/// one, everything else by /dev/null. Paths that lead nowhere are passed over.
pub(super) fn cover(paths: &[PathBuf]) -> Result<(), Refusal> {
    for path in paths {
        let fail = |e: io::Error| {
            Refusal::internal(format!("linux.maskedPaths: cannot mask {}: {e}", path.display()))
        };
        if let Some(found) = find(path).map_err(fail)? {
            cover_one(&found).map_err(fail)?;
        }
    }
    Ok(())
}

/// The end of `path`, links followed.
fn find(path: &Path) -> io::Result<Option<File>> {
    match File::options().read(true).custom_flags(libc::O_PATH).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn cover_one(found: &File) -> io::Result<()> {
    // The file that was found, whatever its path may lead to by now.
    let target = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    if found.metadata()?.is_dir() {
        mount(Some("tmpfs"), &target, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>)?;
        return Ok(());
    }
    // An image can have something else at that place.
    let null = File::options().read(true).custom_flags(libc::O_PATH).open("/dev/null")?;
    if !is_null(&null.metadata()?) {
        return Err(io::Error::other("/dev/null is not the null device"));
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", null.as_raw_fd()));
    mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

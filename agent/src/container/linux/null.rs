//! The null device.

use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use crate::container::program;

/// Whether it is the null device.
pub(super) fn is_null(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == nix::sys::stat::makedev(1, 3)
}

/// libcontainer reopens /dev/null within the container, for reading only: writing has to work too.
pub(super) fn repair() -> io::Result<()> {
    for (fd, file) in program::stdio() {
        if file.metadata().is_ok_and(|metadata| is_null(&metadata)) {
            let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
            // SAFETY: replaces one of this process's own standard descriptors.
            if unsafe { libc::dup2(null.as_raw_fd(), fd) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

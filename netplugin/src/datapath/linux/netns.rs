//! Working inside another network namespace.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::{io, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::datapath::DatapathError;

/// An open network namespace.
#[derive(Debug)]
pub(super) struct Netns {
    path: String,
    pub(super) file: File,
}

impl Netns {
    /// Opens the namespace at `path`, which must be one, and not the one we are in.
    pub(super) fn open(path: &str) -> Result<Self, DatapathError> {
        let wrong = |why: String| DatapathError::Netns { path: path.to_owned(), why };
        let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
        let inode = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
        let own = File::open("/proc/thread-self/ns/net").map_err(|error| wrong(error.to_string()))?;
        // All namespaces are files of one file system (nsfs).
        let (own, other) = (inode(&own), inode(&file));
        match (own, other) {
            (Ok(own), Ok(other)) if own == other => Err(wrong("is the host's own".to_owned())),
            (Ok(own), Ok(other)) if own.0 != other.0 => Err(wrong("is not a network namespace".to_owned())),
            (Ok(_), Ok(_)) => Ok(Self { path: path.to_owned(), file }),
            (Err(error), _) | (_, Err(error)) => Err(wrong(error.to_string())),
        }
    }

    /// Runs `work` inside, on a thread of its own: the caller's never leaves its namespace.
    pub(super) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, DatapathError> + Send,
    ) -> Result<T, DatapathError> {
        let wrong = |why: String| DatapathError::Netns { path: self.path.clone(), why };
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                        .map_err(|error| wrong(format!("cannot be entered: {}", io::Error::from(error))))?;
                    work()
                })
                .join()
                .unwrap_or_else(|_| Err(wrong("the thread inside panicked".to_owned())))
        })
    }
}

/// Writes a setting of the calling thread's network namespace. One that the kernel does not have (IPv6 is not
/// built in, or off) is none of ours.
pub(super) fn set_sysctl(path: &str, value: &str) -> Result<(), DatapathError> {
    let file = Path::new("/proc/sys/net").join(path);
    match std::fs::read_to_string(&file) {
        Ok(current) if current.trim() == value => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    std::fs::write(&file, value)
        .map_err(|error| super::netlink::kernel(format!("set {} to {value}", file.display()), error))
}

/// Reads a setting of the calling thread's network namespace.
pub(super) fn sysctl(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/net").join(path)).ok()?;
    Some(text.trim().to_owned())
}

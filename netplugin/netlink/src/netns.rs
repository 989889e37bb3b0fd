//! Network namespaces, and working inside of them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The calling thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("network namespace {}: {why}", path.display())]
pub struct NetnsError {
    /// Where it is.
    pub path: PathBuf,
    /// Why not.
    pub why: String,
}

/// An open network namespace, which stays as long as it is open.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Opens the namespace at `path`, which must be one, and not the one we are in.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        let wrong = |why: String| NetnsError { path: path.to_owned(), why };
        let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
        let own = File::open(OWN).map_err(|error| wrong(error.to_string()))?;
        // All namespaces are files of one file system (nsfs).
        match (identity(&own), identity(&file)) {
            (Ok(own), Ok(other)) if own == other => Err(wrong("is the host's own".to_owned())),
            (Ok(own), Ok(other)) if own.0 != other.0 => Err(wrong("is not a network namespace".to_owned())),
            (Ok(_), Ok(_)) => Ok(Self { path: path.to_owned(), file }),
            (Err(error), _) | (_, Err(error)) => Err(wrong(error.to_string())),
        }
    }

    /// Makes a namespace without a name: it ends with its last process and its last descriptor.
    pub fn create() -> Result<Self, NetnsError> {
        let wrong = |why: String| NetnsError { path: PathBuf::from("(new)"), why };
        let unshared = || -> io::Result<File> {
            // SAFETY: only the network namespace of this thread changes, which ends right here; descriptors stay
            // shared with the other threads.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            File::open(OWN)
        };
        // The caller's thread never leaves its namespace.
        let made = thread::scope(|scope| scope.spawn(unshared).join());
        match made {
            Ok(Ok(file)) => Ok(Self { path: PathBuf::from("(the sandbox's own)"), file }),
            Ok(Err(error)) => Err(wrong(format!("cannot be made: {error}"))),
            Err(_) => Err(wrong("the thread that makes it panicked".to_owned())),
        }
    }

    /// What it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `path` is the same namespace.
    pub fn is(&self, path: &Path) -> bool {
        match (identity(&self.file), File::open(path).and_then(|file| identity(&file))) {
            (Ok(ours), Ok(other)) => ours == other,
            _ => false,
        }
    }

    /// Runs `work` inside, on a thread of its own: the caller's never leaves its namespace.
    pub fn run<T: Send, E: From<NetnsError> + Send>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        let wrong = |why: String| E::from(NetnsError { path: self.path.clone(), why });
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter().map_err(|error| wrong(format!("cannot be entered: {error}")))?;
                    work()
                })
                .join()
                .unwrap_or_else(|_| Err(wrong("the thread inside panicked".to_owned())))
        })
    }

    /// Moves the calling thread into it, for good. One system call: it may be made between fork and exec.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_other_namespace_is_refused() {
        let refused = |path: &str| Netns::open(path).unwrap_err().to_string();
        assert!(refused("/proc/thread-self/ns/net").ends_with("is the host's own"));
        assert!(refused("/dev/null").ends_with("is not a network namespace"));
        assert!(refused("/nonexistent").starts_with("network namespace /nonexistent: No such file"));
    }

    #[test]
    fn work_is_done_inside_and_the_caller_stays_outside() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let netns = Netns::create().unwrap();
        let links = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count();
        let before = std::fs::read_link(OWN).unwrap();
        let inside = netns.run(|| Ok::<_, NetnsError>((std::fs::read_link(OWN).unwrap(), links()))).unwrap();
        assert_ne!(inside.0, before);
        assert_eq!(std::fs::read_link(OWN).unwrap(), before);
        assert!(!netns.is(Path::new(OWN)));
    }
}

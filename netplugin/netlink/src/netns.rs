//! Network namespaces, and working inside of them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::net::{AddressFamily, SocketType};
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

    /// The number that the kernel gave it, which no other namespace has until the next boot; none before Linux 5.14.
    /// Its inode's number says less: the next namespace may have it.
    pub fn cookie(&self) -> Result<Option<u64>, NetnsError> {
        self.run(|| {
            own_cookie().map_err(|error| NetnsError {
                path: self.path.clone(),
                why: format!("its number cannot be read: {error}"),
            })
        })
    }

    /// Whether `path` still leads to a network namespace, and, if its `cookie` is known, to that one. What cannot be
    /// looked at counts as living.
    pub fn lives(path: impl AsRef<Path>, cookie: Option<u64>) -> bool {
        let path = path.as_ref();
        // Waits for nobody: a descriptor's number may be a pipe's since.
        let file = match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
            Ok(file) => file,
            // Or a socket's, which has no other way to be opened.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return false,
            Err(error) => {
                return !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
            }
        };
        let (Ok(own), Ok(there)) = (File::open(OWN).and_then(|file| identity(&file)), identity(&file)) else {
            return true;
        };
        // The number of a process or descriptor that ended may be another's, which leads to no namespace, or to
        // whatever that one has.
        if own == there || own.0 != there.0 {
            return false;
        }
        let Some(cookie) = cookie else { return true };
        let there = Self { path: path.to_owned(), file }.cookie();
        !there.is_ok_and(|there| there.is_some_and(|there| there != cookie))
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

/// The number of the calling thread's namespace (`SO_NETNS_COOKIE`, socket(7)).
fn own_cookie() -> io::Result<Option<u64>> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut len: libc::socklen_t = 8;
    // SAFETY: the option is a number of 8 bytes, for which there is room, and both pointers live through the call.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    match status {
        0 => Ok(Some(cookie)),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
            error => Err(error),
        },
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

    #[test]
    fn another_namespace_under_the_same_path_is_another() {
        assert!(!Netns::lives("/nonexistent", None));
        assert!(!Netns::lives("/dev/null", None));
        assert!(!Netns::lives(OWN, None), "the host's own is no container's");
        // A descriptor's number that is another file's since.
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let (reader, _) = std::io::pipe().unwrap();
        for number in [socket.as_raw_fd(), reader.as_raw_fd()] {
            assert!(!Netns::lives(format!("/proc/self/fd/{number}"), None));
        }
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (one, two) = (Netns::create().unwrap(), Netns::create().unwrap());
        let path = format!("/proc/self/fd/{}", one.file.as_raw_fd());
        let cookie = one.cookie().unwrap();
        assert!(cookie.is_some() && cookie == one.cookie().unwrap());
        assert!(Netns::lives(&path, cookie) && Netns::lives(&path, None));
        assert!(!Netns::lives(&path, two.cookie().unwrap()));
    }
}

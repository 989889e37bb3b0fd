//! The socket a shim listens on: one for each sandbox, at a path that whoever asks for the sandbox can work out.

use std::{
    fs, io,
    os::unix::{
        fs::DirBuilderExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{fs::FlockOperation, io::Errno};
use sha2::{Digest as _, Sha256};

/// How long another shim may take to claim its socket.
const LOCK: Duration = Duration::from_secs(5);

/// A socket could not be claimed or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The system refused.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Somebody holds the lock.
    #[error("{} is locked by another shim for more than {LOCK:?}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

/// What became of a claim.
#[derive(Debug)]
pub(crate) enum Claim {
    /// A shim listens there.
    Running,
    /// The caller does now.
    Bound(UnixListener),
}

/// Where the shim of a sandbox listens. Short: a unix socket's path has at most 104 bytes.
pub(crate) fn path(state_dir: &Path, namespace: &str, group: &str) -> PathBuf {
    let mut hash = Sha256::new();
    hash.update(namespace);
    // Neither contains a zero, so no two pairs are the same text.
    hash.update([0]);
    hash.update(group);
    let hash = hash.finalize();
    let short = hash.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    state_dir.join("s").join(format!("{short:016x}"))
}

/// The address of a socket as containerd takes it.
pub(crate) fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Finds the shim that listens at `path`, or listens there.
pub(crate) fn claim(path: &Path) -> Result<Claim, SocketError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
    let _lock = lock(dir)?;
    match UnixStream::connect(path) {
        Ok(_) => return Ok(Claim::Running),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A shim that is gone: nothing else makes files here.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove", path))?;
        }
        Err(error) => return Err(failed("connect to", path)(error)),
    }
    UnixListener::bind(path).map(Claim::Bound).map_err(failed("listen on", path))
}

/// Removes a socket, so that no new caller finds it. That there is none is no error.
pub(crate) fn remove(path: &Path) -> Result<(), SocketError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    if !dir.exists() {
        return Ok(());
    }
    let _lock = lock(dir)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> SocketError {
    move |error| SocketError::Io { action, path: path.to_owned(), error }
}

/// Held while its descriptor is open.
fn lock(dir: &Path) -> Result<fs::File, SocketError> {
    let file = fs::File::open(dir).map_err(failed("open", dir))?;
    let deadline = Instant::now() + LOCK;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::WOULDBLOCK) => return Err(SocketError::Locked { path: dir.to_owned() }),
            Err(error) => return Err(failed("lock", dir)(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_short_and_differ() {
        let long = "x".repeat(76);
        assert!(path(Path::new("/var/run/skep"), &long, &long).as_os_str().len() < 60);
        let state = Path::new("/run/skep");
        assert_ne!(path(state, "a", "bc"), path(state, "ab", "c"));
    }

    #[test]
    fn one_shim_for_each_socket() {
        let state = tempfile::tempdir().unwrap();
        let path = path(state.path(), "ns", "g");
        let Claim::Bound(listener) = claim(&path).unwrap() else { panic!("not bound") };
        assert!(matches!(claim(&path).unwrap(), Claim::Running));
        // Killed: its socket is left over, and taken.
        drop(listener);
        assert!(path.exists());
        assert!(matches!(claim(&path).unwrap(), Claim::Bound(_)));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn of_many_at_once_one_binds() {
        let state = tempfile::tempdir().unwrap();
        let path = path(state.path(), "ns", "g");
        let claims: Vec<Claim> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| claim(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(claims.iter().filter(|claim| matches!(claim, Claim::Bound(_))).count(), 1);
    }
}

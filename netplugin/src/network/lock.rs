//! The lock over all records of a directory.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::files::{StateError, io};

/// How long a call waits for others to be done with the files.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// Holds the lock until dropped (and, by the kernel, no longer than the process lives).
#[derive(Debug)]
pub struct Lock {
    _file: LockFile,
}

impl Lock {
    /// Waits for the lock that the file at `path` is, for a bounded time.
    pub(crate) fn take(path: &Path) -> Result<Self, StateError> {
        let file = LockFile::open(path)?;
        file.wait()?;
        Ok(Self { _file: file })
    }
}

/// The lock's file, for who takes the lock often.
#[derive(Debug)]
pub(crate) struct LockFile {
    file: File,
    path: PathBuf,
}

/// Holds the lock until dropped.
#[derive(Debug)]
pub(crate) struct Held<'a>(&'a LockFile);

impl LockFile {
    /// Opens the file at `path`, which is made if there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(io("open", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Whether somebody has removed it: others then lock another file, and this one keeps nobody out.
    pub(crate) fn is_removed(&self) -> Result<bool, StateError> {
        Ok(self.file.metadata().map_err(io("look at", &self.path))?.nlink() == 0)
    }

    /// Waits for the lock, for a bounded time.
    pub(crate) fn hold(&self) -> Result<Held<'_>, StateError> {
        self.wait()?;
        Ok(Held(self))
    }

    fn wait(&self) -> Result<(), StateError> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let mut pause = Duration::from_micros(200);
        loop {
            match flock(self.file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(io("lock", &self.path)(errno.into())),
            }
            if Instant::now() > deadline {
                return Err(StateError::Locked { path: self.path.clone(), limit: LOCK_TIMEOUT });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Fails for what is no open file only, which this is.
        let _ = flock(self.0.file.as_fd(), FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_lock_keeps_others_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let counter = dir.path().join("counter");
        fs::write(&counter, "0").unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _lock = Lock::take(&path).unwrap();
                        let n: u32 = fs::read_to_string(&counter).unwrap().parse().unwrap();
                        fs::write(&counter, (n + 1).to_string()).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_to_string(&counter).unwrap(), "160");
    }
}

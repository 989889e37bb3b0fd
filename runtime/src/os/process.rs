//! Processes by identity: pid and start time, so that a recycled pid is never taken for the process that had it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::system;

pub use rustix::process::Signal;

/// A process, as long as it or its zombie exists; never another that got its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::unsafe_derive_deserialize, reason = "any pid and start time name some process or none")]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: u32,
    /// When it started after the system did, in the system's own unit: clock ticks on Linux (`proc_pid_stat(5)`),
    /// microseconds on FreeBSD (`ki_start` of `sys/user.h`, `kern.boottime`).
    pub start: u64,
}

/// What a process could not be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The system refused.
    #[error("cannot {action} process {pid}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Of which process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// It still runs.
    #[error("process {pid} has not exited within {} ms after SIGKILL", waited.as_millis())]
    Survives {
        /// Which process.
        pid: u32,
        /// How long it was given.
        waited: Duration,
    },
}

impl ProcessIdentity {
    /// Who has this pid now, if anybody.
    pub fn of(pid: u32) -> Result<Option<Self>, ProcessError> {
        let start = system::start_time(pid).map_err(|source| ProcessError::System {
            action: "look up",
            pid,
            source,
        })?;
        Ok(start.map(|start| Self { pid, start }))
    }

    /// The calling process.
    pub fn own() -> Result<Self, ProcessError> {
        let pid = std::process::id();
        match Self::of(pid)? {
            Some(own) => Ok(own),
            None => Err(ProcessError::System {
                action: "look up",
                pid,
                source: io::Error::other("it is the calling process but is not listed; is /proc mounted?"),
            }),
        }
    }

    /// Whether it still exists and runs: a zombie does not.
    pub fn is_alive(&self) -> Result<bool, ProcessError> {
        Ok(match self.exit_fd()? {
            None => false,
            Some(fd) => !wait_readable(&fd, Duration::ZERO).map_err(self.error("look up"))?,
        })
    }

    /// Sends `signal`, if it still exists; says whether it did.
    pub fn signal(&self, signal: Signal) -> Result<bool, ProcessError> {
        match self.exit_fd()? {
            None => Ok(false),
            Some(fd) => system::signal(&fd, self.pid, signal).map_err(self.error("signal")),
        }
    }

    /// Kills it with SIGKILL and waits until it is gone, at most for `limit`. Blocks. That it does not exist is success.
    pub fn kill_and_wait(&self, limit: Duration) -> Result<(), ProcessError> {
        let Some(fd) = self.exit_fd()? else { return Ok(()) };
        system::signal(&fd, self.pid, Signal::KILL).map_err(self.error("kill"))?;
        if wait_readable(&fd, limit).map_err(self.error("wait for"))? {
            Ok(())
        } else {
            Err(ProcessError::Survives { pid: self.pid, waited: limit })
        }
    }

    /// Waits until it is gone by itself, at most for `limit`; whether it is. Blocks.
    pub fn wait(&self, limit: Duration) -> Result<bool, ProcessError> {
        match self.exit_fd()? {
            None => Ok(true),
            Some(fd) => wait_readable(&fd, limit).map_err(self.error("wait for")),
        }
    }

    /// Something that tells when it exits; nothing if it is gone already.
    pub fn watch(&self) -> Result<Option<ExitWatch>, ProcessError> {
        let Some(fd) = self.exit_fd()? else { return Ok(None) };
        // SAFETY: the descriptor is open, and nobody but the AsyncFd, which owns it, closes or replaces it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map_err(|e| self.error("watch")(e.into()))?;
        Ok(Some(ExitWatch { fd, process: *self }))
    }

    /// A descriptor that is readable once the process has exited.
    fn exit_fd(&self) -> Result<Option<OwnedFd>, ProcessError> {
        let Some(fd) = system::exit_fd(self.pid).map_err(self.error("watch"))? else { return Ok(None) };
        // Only now that the descriptor holds whoever has the pid does its start time say who that is.
        Ok((Self::of(self.pid)? == Some(*self)).then_some(fd))
    }

    fn error(&self, action: &'static str) -> impl Fn(io::Error) -> ProcessError + use<> {
        let pid = self.pid;
        move |source| ProcessError::System { action, pid, source }
    }
}

/// Tells when a process exits, whoever its parent is. Nothing is polled.
#[derive(Debug)]
pub struct ExitWatch {
    fd: AsyncFd<OwnedFd>,
    process: ProcessIdentity,
}

impl ExitWatch {
    /// Returns when the process has exited. Its parent has still to reap it.
    pub async fn exited(&self) -> Result<(), ProcessError> {
        // Readiness is never cleared: an exit stays.
        let _ready = self.fd.readable().await.map_err(self.process.error("wait for"))?;
        Ok(())
    }
}

/// Start time of the calling process, by system calls alone: may be called between fork and exec.
pub fn own_start_time() -> io::Result<u64> {
    system::own_start_time()
}

/// Processor time that a process has used, of all its threads, in microseconds.
pub fn processor_us(pid: u32) -> Result<u64, ProcessError> {
    system::processor_us(pid).map_err(|source| ProcessError::System {
        action: "read the processor time of",
        pid,
        source,
    })
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: u32) -> Result<u64, ProcessError> {
    system::resident_bytes(pid).map_err(|source| ProcessError::System {
        action: "read the memory of",
        pid,
        source,
    })
}

/// Whether `fd` becomes readable within `limit`.
fn wait_readable(fd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(n) => return Ok(n > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> std::process::Child {
        std::process::Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[test]
    fn own_identity_is_alive() {
        let own = ProcessIdentity::own().unwrap();
        assert_eq!(own.start, own_start_time().unwrap());
        assert!(own.is_alive().unwrap());
        assert!(resident_bytes(own.pid).unwrap() > 100_000);
    }

    #[test]
    fn another_start_time_is_another_process() {
        let mut child = sleeper();
        let real = ProcessIdentity::of(child.id()).unwrap().unwrap();
        let other = ProcessIdentity { start: real.start + 1, ..real };
        assert!(!other.is_alive().unwrap());
        assert!(!other.signal(Signal::KILL).unwrap());
        other.kill_and_wait(Duration::from_secs(5)).unwrap();
        assert!(real.is_alive().unwrap(), "the wrong process was signalled");
        real.kill_and_wait(Duration::from_secs(60)).unwrap();
        assert!(!real.is_alive().unwrap(), "a zombie is not alive");
        child.wait().unwrap();
        assert_eq!(ProcessIdentity::of(real.pid).unwrap(), None);
        real.kill_and_wait(Duration::ZERO).unwrap();
    }

    #[tokio::test]
    async fn an_exit_is_seen_without_reaping() {
        let mut child = sleeper();
        let process = ProcessIdentity::of(child.id()).unwrap().unwrap();
        let watch = process.watch().unwrap().unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), watch.exited()).await.is_err());
        assert!(process.signal(Signal::TERM).unwrap());
        tokio::time::timeout(Duration::from_secs(60), watch.exited()).await.unwrap().unwrap();
        // Any number of times.
        watch.exited().await.unwrap();
        child.wait().unwrap();
        assert!(process.watch().unwrap().is_none());
    }
}

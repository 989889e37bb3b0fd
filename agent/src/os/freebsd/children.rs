//! Telling that a child has ended: a kqueue that counts SIGCHLD.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when children may have ended.
#[derive(Debug)]
pub(crate) struct ChildSignals(AsyncFd<OwnedFd>);

impl ChildSignals {
    /// Before any child is started, and where an event loop runs.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: makes a descriptor, touches no memory.
        let queue = unsafe { libc::kqueue() };
        if queue == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: made just now, so nobody else owns it.
        let queue = unsafe { OwnedFd::from_raw_fd(queue) };
        // What is counted here is so however the signal is disposed of: kqueue(2), EVFILT_SIGNAL.
        let mut change = event();
        change.ident = libc::SIGCHLD.cast_unsigned() as libc::uintptr_t;
        change.filter = libc::EVFILT_SIGNAL;
        change.flags = libc::EV_ADD | libc::EV_CLEAR;
        // SAFETY: one change is passed and no event asked for.
        let added = unsafe {
            libc::kevent(queue.as_raw_fd(), &raw const change, 1, std::ptr::null_mut(), 0, std::ptr::null())
        };
        if added == -1 {
            return Err(io::Error::last_os_error());
        }
        // A kqueue can be waited for to be read only.
        // SAFETY: an OwnedFd names one open descriptor for as long as it lives.
        let watched = unsafe { AsyncFd::register_with_interest(queue, Interest::READABLE) };
        watched.map(Self).map_err(io::Error::from)
    }

    /// Waits until at least one child has ended since the last time.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut event = event();
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: room for one event, and a time that lives through the call.
        let count = unsafe {
            libc::kevent(self.0.get_ref().as_raw_fd(), std::ptr::null(), 0, &raw mut event, 1, &raw const now)
        };
        if count == -1 {
            return Err(io::Error::last_os_error());
        }
        ready.clear_ready();
        Ok(())
    }
}

fn event() -> libc::kevent {
    // SAFETY: a kevent is numbers and a pointer that may be null.
    unsafe { std::mem::zeroed() }
}

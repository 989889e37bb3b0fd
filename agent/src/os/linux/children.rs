//! Telling that a child has ended: signalfd(2).

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::unix::AsyncFd;

/// Tells when children may have ended.
#[derive(Debug)]
pub(crate) struct ChildSignals(AsyncFd<SignalFd>);

impl ChildSignals {
    /// Before any child is started, and where an event loop runs.
    pub(crate) fn new() -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // SAFETY: a SignalFd owns its descriptor and never changes it.
        Ok(Self(unsafe { AsyncFd::register(signals) }.map_err(io::Error::from)?))
    }

    /// Waits until at least one child has ended since the last time.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // One signal stands for any number of exits.
        while let Ok(Some(_)) = self.0.get_ref().read_signal() {}
        ready.clear_ready();
        Ok(())
    }
}

//! There is no vsock here: FreeBSD has no virtio driver for it.

use std::convert::Infallible;

use crate::fdio::FdStream;

/// Why the guest cannot be reached by vsock.
#[derive(Debug, thiserror::Error)]
#[error("vsock port {0}: FreeBSD guests have no vsock; use skep.channel=console")]
pub(crate) struct VsockError(u32);

/// A listener that cannot be.
#[derive(Debug)]
pub(crate) struct Listener(Infallible);

impl Listener {
    pub(crate) fn new(port: u32) -> Result<Self, VsockError> {
        Err(VsockError(port))
    }

    #[allow(clippy::unused_async, reason = "as on Linux, where there are connections to wait for")]
    pub(crate) async fn accept(&self) -> Result<FdStream, VsockError> {
        match self.0 {}
    }
}

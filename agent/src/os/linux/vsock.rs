//! The vsock channel: a listener on which the host opens plain byte streams.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};
use tokio::io::unix::AsyncFd;

use crate::fdio::{FdStream, watched};

/// Why the guest cannot be reached by vsock.
#[derive(Debug, thiserror::Error)]
#[error("vsock port {port}: {source}")]
pub(crate) struct VsockError {
    port: u32,
    source: std::io::Error,
}

/// A listening vsock socket.
#[derive(Debug)]
pub(crate) struct Listener {
    port: u32,
    fd: AsyncFd<OwnedFd>,
}

impl Listener {
    /// Listens on `port` for whoever the hypervisor lets through.
    pub(crate) fn new(port: u32) -> Result<Self, VsockError> {
        let fd = Self::open(port).map_err(|source| VsockError { port, source })?;
        Ok(Self { port, fd })
    }

    fn open(port: u32) -> std::io::Result<AsyncFd<OwnedFd>> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
        listen(&fd, Backlog::new(4)?)?;
        watched(fd)
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Result<FdStream, VsockError> {
        let fail = |source| VsockError { port: self.port, source };
        loop {
            let mut ready = self.fd.readable().await.map_err(fail)?;
            let accepted = ready.try_io(|fd| {
                // SAFETY: no address is asked for, so no memory is written.
                let new = unsafe {
                    libc::accept4(
                        fd.as_raw_fd(),
                        std::ptr::null_mut(),
                        std::ptr::null_mut(),
                        libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                    )
                };
                if new == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                // SAFETY: accept4 made this descriptor just now, and nothing else knows it.
                FdStream::new(unsafe { OwnedFd::from_raw_fd(new) })
            });
            if let Ok(accepted) = accepted {
                return accepted.map_err(fail);
            }
        }
    }
}

//! The virtio-console port on which the host talks to the agent: a terminal, `/dev/vtcon/<name>`.

use std::fs::OpenOptions;
use std::future::Future as _;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::fdio::{poll_write, read_once, watched};

const DEVICE: &str = "/dev/vtcon/skep.agent";
/// The driver learns names from the host after it found the device, so the port may come a little late.
const WAIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long a port whose host side is closed is left alone.
const PAUSE: Duration = Duration::from_millis(20);

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error("no {DEVICE} within {} s", WAIT.as_secs())]
    Missing,
    #[error("cannot open {DEVICE}: {0}")]
    Open(io::Error),
    #[error("cannot make a byte stream of {DEVICE}: {0}")]
    Raw(nix::Error),
    #[error("cannot watch the port: {0}")]
    Watch(io::Error),
}

/// The port as a byte stream that never ends.
#[derive(Debug)]
pub(crate) struct Port {
    fd: AsyncFd<OwnedFd>,
    /// Set while a port that read as ended is left alone.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Port {
    /// Waits for the port named `skep.agent` and opens it.
    pub(crate) async fn open() -> Result<Self, PortError> {
        let deadline = Instant::now() + WAIT;
        while !Path::new(DEVICE).exists() {
            if Instant::now() >= deadline {
                return Err(PortError::Missing);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(DEVICE)
            .map_err(PortError::Open)?;
        let mut settings = tcgetattr(&file).map_err(PortError::Raw)?;
        cfmakeraw(&mut settings);
        tcsetattr(&file, SetArg::TCSANOW, &settings).map_err(PortError::Raw)?;
        Ok(Self { fd: watched(file.into()).map_err(PortError::Watch)?, pause: None })
    }
}

impl AsyncRead for Port {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(cx));
                this.pause = None;
            }
            let mut guard = ready!(this.fd.poll_read_ready(cx))?;
            match guard.try_io(|fd| read_once(fd, buf)) {
                // Nobody at the other end, for now.
                Ok(Ok(0)) if buf.remaining() > 0 => this.pause = Some(Box::pin(tokio::time::sleep(PAUSE))),
                Ok(done) => return Poll::Ready(done.map(drop)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        poll_write(&self.fd, cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

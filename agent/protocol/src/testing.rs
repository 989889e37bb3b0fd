//! Channels for tests (feature `testing`).
//!
//! [`bhyve_console`] is a virtio-console port as bhyve of FreeBSD 13 to 15 has it, with a unix socket on the host's
//! side and the guest's driver behind it:
//! - it drops what the host sends before the guest's driver has posted buffers, and a guest's driver drops what
//!   comes before the port is opened;
//! - it closes the host's connection when the guest's buffers run out in the middle of a burst;
//! - it drops what the guest sends while no host is connected, and reports success;
//! - it never tells the guest that a host came or went;
//! - it takes one connection, and closes a second right after accepting it;
//! - it reads and writes nothing while it is stopped.

mod bhyve;

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::api::Agent;
use crate::channel::Channel;
use crate::link::{Config, Limits};
use crate::{Closed, Session, StdioRegistry};

/// [`crate::serve_channel`] on a console, as a guest with these limits.
pub async fn serve_console(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    limits: Limits,
    handler: Arc<dyn Agent + Send + Sync>,
    stdio: StdioRegistry,
) -> io::Result<()> {
    crate::serve::serve_console(io, limits, handler, stdio).await
}

/// A host's session over a byte channel whose peer has been greeted.
pub async fn session_over(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Result<Session, Closed> {
    Session::over(Channel::plain(io)).await
}

/// A host's session over the paced console port `io`; `None` if the guest did not take it up.
pub async fn paced_session_over(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Option<Session> {
    Session::over(crate::connect::take_up(io, Config::PACED_HOST).await.ok()?).await.ok()
}

/// A host's session over the console port `io`; `None` if the guest did not take it up.
pub async fn console_session_over(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Option<Session> {
    Session::over(crate::connect::take_up(io, Config::HOST).await.ok()?).await.ok()
}

pub use bhyve::{BhyveConsole, Buffers, ClosedPort, Counts, GuestPort, Travel, bhyve_console};

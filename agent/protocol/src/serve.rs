//! The guest's side: the agent serves one host at a time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::PROTOCOL_VERSION;
use crate::api::{Agent, create_agent};
use crate::channel::Driver;
use crate::connect::{greeting, read_greeting};
use crate::header::Header;
use crate::link::{Config, Event, Link};
use crate::mux::{self, MuxStream};
use crate::registry::StdioRegistry;
use crate::stdio::StdioStream;

/// How long a host's greeting and a stream's header may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// What the agent's channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind {
    /// A virtio-console port, which loses what it carries when nobody listens: the link layer goes over it.
    Console,
    /// The same where the VMM paces the port: see [`crate::Endpoint::PacedConsole`].
    PacedConsole,
    /// A reliable byte stream with an end, such as an accepted vsock connection.
    Stream,
}

/// Serves the agent over `io`.
///
/// On a `Console` one session follows the other for ever; it returns only when `io` fails. A port that reads
/// as ended, polls as hung up or takes nothing because no host is connected has not failed: `io` is to be pending
/// then, without spinning, until that changes, and a read of 0 bytes is taken for the end of the port. What `io`
/// has buffered of another connection's bytes does no harm.
///
/// On a `Stream` it returns at the end of the one session that a stream carries; the agent then accepts the
/// next.
///
/// A new session ends the one before: its streams break and its calls are dropped. All runs on the caller's
/// runtime, which may have a single thread.
pub async fn serve_channel(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    kind: ChannelKind,
    handler: Arc<dyn Agent + Send + Sync>,
    stdio: StdioRegistry,
) -> io::Result<()> {
    // The connections end when the server is dropped.
    let (_server, sessions) = start(handler, stdio).await?;
    match kind {
        ChannelKind::Stream => {
            let mut io = tokio::io::BufStream::new(io);
            let greeting_read = tokio::time::timeout(HEADER_TIMEOUT, read_greeting(&mut io)).await;
            let host = greeting_read.map_err(|_| io::ErrorKind::TimedOut)?.map_err(io::Error::other)?;
            // Answered in any case: the host then knows both versions.
            io.write_all(greeting().as_bytes()).await?;
            io.flush().await?;
            if host != PROTOCOL_VERSION {
                let text = format!("the host speaks protocol version {host}, this agent {PROTOCOL_VERSION}");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
            sessions.run(io).await
        }
        ChannelKind::Console => console(io, sessions, Config::GUEST).await,
        ChannelKind::PacedConsole => console(io, sessions, Config::PACED_GUEST).await,
    }
}

/// A guest's console with other limits than those of the system that this runs on.
#[cfg(any(test, feature = "testing"))]
pub(crate) async fn serve_console(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    limits: crate::link::Limits,
    handler: Arc<dyn Agent + Send + Sync>,
    stdio: StdioRegistry,
) -> io::Result<()> {
    let (_server, sessions) = start(handler, stdio).await?;
    console(io, sessions, Config { limits, ..Config::GUEST }).await
}

async fn start(
    handler: Arc<dyn Agent + Send + Sync>,
    stdio: StdioRegistry,
) -> io::Result<(Server, Sessions)> {
    let (calls, incoming) = mpsc::channel::<MuxStream>(1);
    let listener = Listener::new(stream::unfold(incoming, async |mut incoming| {
        let stream = incoming.recv().await?;
        Some((Ok(stream), incoming))
    }));
    let mut server = Server::new().add_listener(listener).register_service(create_agent(handler));
    server.start().await.map_err(io::Error::other)?;
    Ok((server, Sessions { calls, stdio }))
}

/// One session after the other on a console port, until that fails.
async fn console(
    io: impl AsyncRead + AsyncWrite + Unpin,
    sessions: Sessions,
    config: Config,
) -> io::Result<()> {
    let mut driver = Driver::new(io, |now| Link::guest(config, now));
    // At most one; it is aborted when this is dropped.
    let mut running = JoinSet::new();
    loop {
        match driver.next_event().await? {
            Event::Began { session } => {
                running.shutdown().await;
                let (sessions, stream) = (sessions.clone(), driver.link().stream(session));
                running.spawn(async move { sessions.run(stream).await });
            }
            Event::Ended { end, .. } => {
                tracing::info!(%end, "session ended");
                running.shutdown().await;
            }
            Event::Version { peer } => tracing::error!(peer, "the host speaks another protocol version"),
        }
    }
}

/// Where the streams of a session go.
#[derive(Clone)]
struct Sessions {
    calls: mpsc::Sender<MuxStream>,
    stdio: StdioRegistry,
}

impl Sessions {
    /// Runs one session over a reliable byte stream until that ends.
    async fn run(&self, io: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        self.stdio.clear();
        let has_calls = Arc::new(AtomicBool::new(false));
        let ended = mux::guest(io, |stream| {
            tokio::spawn(accept(stream, Arc::clone(&has_calls), self.calls.clone(), self.stdio.clone()));
        })
        .await;
        self.stdio.clear();
        ended
    }
}

/// Reads a stream's header and passes the stream on. One that is not understood is dropped, which resets it.
async fn accept(
    mut stream: MuxStream,
    has_calls: Arc<AtomicBool>,
    calls: mpsc::Sender<MuxStream>,
    stdio: StdioRegistry,
) {
    let header = match tokio::time::timeout(HEADER_TIMEOUT, Header::read(&mut stream)).await {
        Ok(Ok(header)) => header,
        Ok(Err(error)) => return tracing::warn!(%error, "stream of the host refused"),
        Err(_) => return tracing::warn!("stream of the host refused: no header within {HEADER_TIMEOUT:?}"),
    };
    // Writing nothing tells the host's yamux that the stream is taken; it opens at most 256 ahead of that.
    if stream.write(&[]).await.is_err() {
        return;
    }
    match header {
        Header::Ttrpc { version: PROTOCOL_VERSION } if !has_calls.swap(true, Ordering::Relaxed) => {
            let _ = calls.send(stream).await;
        }
        Header::Ttrpc { .. } => tracing::warn!(%header, "stream of the host refused"),
        Header::Stdio { token } => stdio.offer(token, StdioStream::new(stream, None)),
    }
}

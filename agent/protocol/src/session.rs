//! The host's session with one guest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use crate::PROTOCOL_VERSION;
use crate::calls::AgentCalls;
use crate::channel::{ByteChannel, Channel, LinkHandle};
use crate::closing::{CallsStream, Closed, ask};
use crate::connect::{ConnectError, Endpoint};
use crate::header::Header;
use crate::mux::{self, OpenRefused, Opener};
use crate::stdio::StdioStream;

/// A session with the agent of one guest. Cheap to clone; it ends when the last clone is dropped.
///
/// An idle session never ends by silence, since a stopped VM is silent for as long as it pleases. A session ends
/// when the channel breaks (the VMM closed it), when the guest begins anew or breaks the protocol, by
/// [`Session::close`], and on a console when the guest leaves data unacknowledged for minutes and was not said
/// to be stopped ([`Session::set_paused`]). Every call but the wait for a process has its own timeout. Whether
/// the VM lives is for the owner of its process to say.
#[derive(Debug, Clone)]
pub struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    opener: Opener,
    calls: AgentCalls,
    completed: Arc<AtomicU64>,
    next_token: AtomicU64,
    /// Why the session is to end.
    close: watch::Sender<Option<&'static str>>,
    closed: watch::Receiver<Option<Closed>>,
    link: Option<LinkHandle>,
}

/// Why a stdio stream was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The session has ended.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// As many streams as a session has are open.
    #[error("too many stdio streams in one sandbox: {} are open", mux::MAX_STREAMS)]
    TooMany,
    /// The stream broke while its header was written.
    #[error("could not open stdio stream {token}: {source}")]
    Io {
        /// The token the stream was for.
        token: u64,
        /// What happened.
        source: io::Error,
    },
}

impl Session {
    /// Connects to the agent, trying again within `timeout` while the guest boots.
    pub async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Self, ConnectError> {
        let channel = crate::connect::connect(endpoint, timeout).await?;
        Self::over(channel)
            .await
            .map_err(|closed| ConnectError::Lost { endpoint: endpoint.to_string(), reason: closed.reason })
    }

    /// Begins a session over an established channel.
    pub(crate) async fn over(channel: Channel) -> Result<Self, Closed> {
        let (close, mut asked) = watch::channel(None);
        let (ended, closed) = watch::channel(None);
        let until = async move {
            // An error means that the session was dropped, which the driver sees by itself.
            if asked.wait_for(Option::is_some).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let (opener, driver) = mux::host::<ByteChannel>(channel.bytes, until);
        let why = close.subscribe();
        tokio::spawn(async move {
            let reason = match driver.await {
                Ok(()) => why.borrow().unwrap_or("dropped by this host").to_owned(),
                Err(error) => error.to_string(),
            };
            ended.send_replace(Some(Closed { reason }));
        });

        let gone = || Closed { reason: "the channel broke at once".to_owned() };
        let (mut calls_stream, permit) = opener.open().await.map_err(|_| gone())?;
        // The calls' stream lives as long as the session: its place is never given back.
        permit.forget();
        let header = Header::Ttrpc { version: PROTOCOL_VERSION }.to_line();
        calls_stream.write_all(header.as_bytes()).await.map_err(|_| gone())?;
        let calls_stream = CallsStream::new(calls_stream, close.clone());
        let client = ttrpc::r#async::Client::new(ttrpc::r#async::transport::Socket::new(calls_stream));

        let completed = Arc::new(AtomicU64::new(0));
        Ok(Self(Arc::new(Inner {
            opener,
            calls: AgentCalls::new(client, Arc::clone(&completed), closed.clone()),
            completed,
            // Tokens of different sessions differ, so that one left in the guest names nothing here.
            next_token: AtomicU64::new((u64::from(channel.session) << 32) | 1),
            close,
            closed,
            link: channel.link,
        })))
    }

    /// The calls of the agent.
    pub fn agent(&self) -> AgentCalls {
        self.0.calls.clone()
    }

    /// A token that names a stdio stream in calls; never 0, never the same twice.
    pub fn draw_token(&self) -> u64 {
        self.0.next_token.fetch_add(1, Ordering::Relaxed)
    }

    /// Opens the stdio stream that a call names by `token`. May be done before or after that call is sent, and
    /// costs no round trip: a stream the guest does not want is an error when used.
    pub async fn open_stdio(&self, token: u64) -> Result<StdioStream, OpenError> {
        let (mut stream, permit) = self.0.opener.open().await.map_err(|refused| match refused {
            OpenRefused::TooMany => OpenError::TooMany,
            OpenRefused::Closed => OpenError::Closed(self.reason()),
        })?;
        let header = Header::Stdio { token }.to_line();
        stream.write_all(header.as_bytes()).await.map_err(|source| OpenError::Io { token, source })?;
        Ok(StdioStream::new(stream, Some(permit)))
    }

    /// Unary calls that the agent answered on this session, the waits for processes not counted.
    pub fn round_trips(&self) -> u64 {
        self.0.completed.load(Ordering::Relaxed)
    }

    /// Resolves when the session has ended, with the reason; any number of callers.
    pub async fn closed(&self) -> Closed {
        let mut closed = self.0.closed.clone();
        match closed.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(closed)) => closed,
            _ => self.reason(),
        }
    }

    /// Says that the VM was stopped, or goes on: meanwhile the session asks nothing of it, and its silence does
    /// not count. Calls keep their timeouts.
    pub fn set_paused(&self, paused: bool) {
        if let Some(link) = &self.0.link {
            link.set_paused(paused);
        }
    }

    /// Ends the session for all its clones, at once: streams break, calls fail, and the guest, when it hears of
    /// it, waits for the next session.
    pub async fn close(&self) {
        ask(&self.0.close, "closed by this host");
        self.closed().await;
    }

    fn reason(&self) -> Closed {
        let known = self.0.closed.borrow().clone();
        known.unwrap_or_else(|| Closed { reason: "its task is gone".to_owned() })
    }
}

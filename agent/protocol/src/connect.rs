//! Reaching the agent: which socket, what is said on it first, and how long it may take.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::PROTOCOL_VERSION;
use crate::channel::{Bytes, Channel, Driver, draw_session};
use crate::header::{HeaderError, read_line};
use crate::link::{Config, Event, Link};

/// Where a guest's agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The unix socket of the guest's virtio-console port. Carries the link layer.
    Console(PathBuf),
    /// The same where the VMM paces the port: it takes from either side no more than the other has room for, and loses
    /// nothing. Frames and window are larger.
    PacedConsole(PathBuf),
    /// A unix socket that is a reliable byte channel to the agent.
    Stream(PathBuf),
    /// A unix socket on which `CONNECT <port>` reaches the guest's vsock, as vhost-device-vsock offers it.
    Vsock {
        /// The socket.
        uds: PathBuf,
        /// The vsock port the agent listens on.
        port: u32,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Console(path) | Self::PacedConsole(path) => write!(f, "console socket {}", path.display()),
            Self::Stream(path) => write!(f, "socket {}", path.display()),
            Self::Vsock { uds, port } => write!(f, "vsock port {port} behind {}", uds.display()),
        }
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No agent answered in time.
    #[error("no agent answered on {endpoint} within {waited:?}: {last}")]
    Timeout {
        /// Where.
        endpoint: String,
        /// How long.
        waited: Duration,
        /// What was waited for, or the last failure.
        last: String,
    },
    /// The agent speaks another version of this protocol.
    #[error("the agent on {endpoint} speaks protocol version {guest}, this host {PROTOCOL_VERSION}")]
    Version {
        /// Where.
        endpoint: String,
        /// The agent's version.
        guest: u32,
    },
    /// The agent answered and the session ended right away.
    #[error("the session with the agent on {endpoint} ended at once: {reason}")]
    Lost {
        /// Where.
        endpoint: String,
        /// For people.
        reason: String,
    },
}

/// First and longest pause between two attempts to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// How long one attempt on a byte channel waits for the agent's greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest greeting, its newline included.
const MAX_GREETING: usize = 16;

/// Longest answer to `CONNECT`.
const MAX_CONNECT_ANSWER: usize = 64;

/// Why an attempt failed.
pub(crate) enum Attempt {
    /// Try again.
    Failed(String),
    /// Trying again changes nothing.
    Version(u32),
}

impl From<std::io::Error> for Attempt {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<HeaderError> for Attempt {
    fn from(error: HeaderError) -> Self {
        Self::Failed(format!("greeting of the agent: {error}"))
    }
}

/// Connects and shakes hands, again and again until it works or `timeout` is over.
pub(crate) async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Channel, ConnectError> {
    let deadline = Instant::now() + timeout;
    let mut pause = RETRY.0;
    let mut doing = "connecting".to_owned();
    loop {
        let error = match tokio::time::timeout_at(deadline, attempt(endpoint, &mut doing)).await {
            Ok(Ok(channel)) => return Ok(channel),
            Ok(Err(Attempt::Version(guest))) => {
                return Err(ConnectError::Version { endpoint: endpoint.to_string(), guest });
            }
            Ok(Err(Attempt::Failed(text))) => format!("{doing}: {text}"),
            Err(_) => format!("{doing}: no answer"),
        };
        if Instant::now() + pause >= deadline {
            return Err(ConnectError::Timeout {
                endpoint: endpoint.to_string(),
                waited: timeout,
                last: error,
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

async fn attempt(endpoint: &Endpoint, doing: &mut String) -> Result<Channel, Attempt> {
    let mut say = |text: &str| text.clone_into(doing);
    say("connecting");
    match endpoint {
        Endpoint::Console(path) | Endpoint::PacedConsole(path) => {
            let socket = open(path).await?;
            say("waiting for the agent to take up the session");
            let paced = matches!(endpoint, Endpoint::PacedConsole(_));
            take_up(socket, if paced { Config::PACED_HOST } else { Config::HOST }).await
        }
        Endpoint::Stream(path) => {
            let socket = open(path).await?;
            say("waiting for the agent's greeting");
            greet(socket).await
        }
        Endpoint::Vsock { uds, port } => {
            let mut socket = open(uds).await?;
            say("waiting for the agent to listen on its vsock port");
            let connected = async {
                socket.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
                Ok::<_, Attempt>(read_line(&mut socket, MAX_CONNECT_ANSWER).await?)
            };
            let line = within(connected).await?;
            if !line.starts_with(b"OK") {
                return Err(Attempt::Failed(format!("refused: {:?}", String::from_utf8_lossy(&line))));
            }
            say("waiting for the agent's greeting");
            greet(socket).await
        }
    }
}

async fn open(path: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(path).await
}

async fn within<T>(step: impl Future<Output = Result<T, Attempt>>) -> Result<T, Attempt> {
    tokio::time::timeout(GREETING_TIMEOUT, step)
        .await
        .unwrap_or_else(|_| Err(Attempt::Failed(format!("no answer within {GREETING_TIMEOUT:?}"))))
}

/// The line both sides begin a byte channel with.
pub(crate) fn greeting() -> String {
    format!("skep {PROTOCOL_VERSION}\n")
}

/// Reads the peer's greeting; its version.
pub(crate) async fn read_greeting(io: &mut (impl AsyncReadExt + Unpin)) -> Result<u32, HeaderError> {
    let line = read_line(io, MAX_GREETING).await?;
    let version =
        line.strip_prefix(b"skep ").and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    version.ok_or_else(|| HeaderError::Unknown(String::from_utf8_lossy(&line).into_owned()))
}

/// Begins a session of the link layer. Waits as long as it takes: the guest may still have to boot.
pub(crate) async fn take_up(
    socket: impl Bytes + Unpin + 'static,
    config: Config,
) -> Result<Channel, Attempt> {
    let session = draw_session();
    let mut driver = Driver::new(socket, |now| Link::host(config, session, now));
    match driver.next_event().await? {
        Event::Began { .. } => {
            let link = driver.link().clone();
            let bytes = Box::pin(link.stream(session));
            tokio::spawn(driver.run());
            Ok(Channel { bytes, session, link: Some(link) })
        }
        Event::Version { peer } => Err(Attempt::Version(peer)),
        Event::Ended { end, .. } => Err(Attempt::Failed(end.to_string())),
    }
}

async fn greet(mut socket: UnixStream) -> Result<Channel, Attempt> {
    let exchange = async {
        socket.write_all(greeting().as_bytes()).await?;
        Ok(read_greeting(&mut socket).await?)
    };
    match within(exchange).await? {
        PROTOCOL_VERSION => Ok(Channel::plain(BufStream::new(socket))),
        other => Err(Attempt::Version(other)),
    }
}

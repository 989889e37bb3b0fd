//! From boot to serving the host, for as long as the guest lives.

use std::convert::Infallible;
use std::sync::Arc;

use skep_protocol::api::Agent;
use skep_protocol::{ChannelKind, StdioRegistry, serve_channel};

use crate::boot::{self, BootError, Options, cmdline::Channel};
use crate::container::{self, Containers};
use crate::error::Refusal;
use crate::os::children::ChildSignals;
use crate::os::port::{Port, PortError};
use crate::os::vsock::{Listener, VsockError};
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use crate::service::Service;
use crate::{clock, fatal, limits};

/// Why a guest ends before the host wants it to.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Containers(#[from] Refusal),
    #[error("cannot run an event loop: {0}")]
    Runtime(std::io::Error),
    #[error("cannot watch for the end of processes: {0}")]
    Children(std::io::Error),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error("the channel to the host failed: {0}")]
    Channel(std::io::Error),
}

/// Is the guest, from its first instruction to its last.
pub(crate) fn run() -> ! {
    let started_ns = clock::boottime_ns();
    fatal::install();
    let Err(error) = start(started_ns);
    fatal::die(&error.to_string())
}

fn start(started_ns: i64) -> Result<Infallible, ServeError> {
    let options = boot::prepare()?;
    limits::install(options.call);
    container::prepare()?;
    // One thread: the helpers are forks, which nothing but a single thread makes safe.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Runtime)?;
    runtime.block_on(serve(options, started_ns))
}

async fn serve(options: Options, started_ns: i64) -> Result<Infallible, ServeError> {
    let reaper = Arc::new(Reaper::default());
    let signals = ChildSignals::new().map_err(ServeError::Children)?;
    let reaping = tokio::spawn({
        let reaper = Arc::clone(&reaper);
        async move { reaper.run(signals).await }
    });
    let stdio = StdioRegistry::new();
    let host = serve_host(options.channel, stdio.clone(), |ready_ns| {
        let containers = Containers::new(reaper, stdio.clone());
        Arc::new(Service::new(Sandbox::new(started_ns, ready_ns), containers, stdio))
    });
    tokio::select! {
        served = host => served,
        error = reaping => Err(ServeError::Children(error.unwrap_or_else(std::io::Error::other))),
    }
}

async fn serve_host(
    channel: Channel,
    stdio: StdioRegistry,
    service: impl FnOnce(i64) -> Arc<Service>,
) -> Result<Infallible, ServeError> {
    match channel {
        Channel::Console | Channel::PacedConsole => {
            let port = Port::open().await?;
            let handler: Arc<dyn Agent + Send + Sync> = service(clock::boottime_ns());
            let paced = channel == Channel::PacedConsole;
            let kind = if paced { ChannelKind::PacedConsole } else { ChannelKind::Console };
            serve_channel(port, kind, handler, stdio).await.map_err(ServeError::Channel)?;
            Err(ServeError::Channel(std::io::ErrorKind::UnexpectedEof.into()))
        }
        Channel::Vsock(number) => {
            let listener = Listener::new(number)?;
            let handler: Arc<dyn Agent + Send + Sync> = service(clock::boottime_ns());
            loop {
                let stream = listener.accept().await?;
                let served =
                    serve_channel(stream, ChannelKind::Stream, Arc::clone(&handler), stdio.clone()).await;
                if let Err(error) = served {
                    // The host that opened it went away; the next one opens another.
                    tracing::info!("a session ended: {error}");
                }
            }
        }
    }
}

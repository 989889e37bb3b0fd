//! `serve`: the shim itself.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use skep::config::LogLevel;
use skep_containerd_api::{Task, create_sandbox, create_streaming, task_services};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use ttrpc::r#async::{Server, transport::Listener};

use crate::{
    cli::Args,
    convert::chain,
    events::Publisher,
    lingering, log,
    pod::Pod,
    sandbox::SandboxService,
    service::Service,
    socket,
    start::{bundle, load_config},
    streaming::StreamingService,
};

/// How long containerd may take to accept the last events; it gives the whole of a shutdown 3 s.
const FLUSH: Duration = Duration::from_millis(1500);
/// How long containerd is given to hang up once it has its answer.
const HANG_UP: Duration = Duration::from_millis(500);
/// How long answers that are under way may take.
const CLOSE: Duration = Duration::from_secs(1);

/// Serves until containerd says that it is done.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let bundle = bundle(args)?;
    // A session of its own: signals to containerd's terminal or group are not meant for it.
    rustix::process::setsid().context("a session of its own")?;
    let state = bundle.state()?.with_context(|| {
        format!("{} is missing: serve is run by start", bundle.path("skep.json").display())
    })?;
    let config = load_config(&state.config)?;
    let level = match config.log.level {
        LogLevel::Trace => LogLevel::Trace,
        _ if args.debug => LogLevel::Debug,
        configured => configured,
    };
    log::start(&bundle.path("log"), level);
    let listener = take_listener()?;
    // The bundle is removed while the shim may still be here.
    std::env::set_current_dir("/").context("/")?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let publisher = Publisher::start(&args.namespace, state.ttrpc_address.as_deref());
        let socket = state.socket.clone();
        let pod = Pod::new(args.namespace.clone(), state, bundle, config, publisher);
        serve(Arc::new(pod), listener, &socket).await
    });
    if let Err(error) = &served {
        tracing::error!("{}", chain(error));
    }
    // What still blocks (a mount on a dead server) is not waited for.
    runtime.shutdown_background();
    served
}

async fn serve(pod: Arc<Pod>, listener: UnixListener, path: &std::path::Path) -> anyhow::Result<()> {
    let finished = Arc::new(Notify::new());
    let service: Arc<dyn Task + Send + Sync> =
        Arc::new(Service::new(Arc::clone(&pod), Arc::clone(&finished)));
    let sandbox = Arc::new(SandboxService::new(Arc::clone(&pod), Arc::clone(&finished)));
    let (connections, clients) = lingering::accept(listener).context("the listening socket")?;
    let streaming = Arc::new(StreamingService::new(Arc::clone(&pod.streams)));
    let mut server = Server::new()
        .add_listener(Listener::new(connections))
        .register_service(task_services(&service))
        .register_service(create_sandbox(sandbox))
        .register_service(create_streaming(streaming));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    server.start().await?;
    tracing::debug!(version = skep::VERSION, "serving");
    let asked = tokio::select! {
        () = finished.notified() => true,
        _ = terminate.recv() => { tracing::info!("asked to end by SIGTERM"); false }
        _ = interrupt.recv() => { tracing::info!("asked to end by SIGINT"); false }
    };
    // First, so that no new container is sent to a shim that ends.
    if let Err(error) = socket::remove(path) {
        tracing::warn!(%error, "the socket stays");
    }
    pod.end().await;
    pod.publisher.flush(FLUSH).await;
    // An answer and the end of its connection that arrive together are a "ttrpc: closed" to containerd's client, which
    // takes either; after ShutdownSandbox that is an error.
    if asked && tokio::time::timeout(HANG_UP, clients.gone()).await.is_err() {
        tracing::debug!("containerd has not hung up");
    }
    if tokio::time::timeout(CLOSE, server.shutdown()).await.is_err() {
        tracing::debug!("requests were still open");
    }
    Ok(())
}

/// The listening socket, which `start` made standard input.
fn take_listener() -> anyhow::Result<UnixListener> {
    let stdin = std::io::stdin();
    let listener: OwnedFd = stdin.as_fd().try_clone_to_owned().context("standard input")?;
    let null = std::fs::File::open("/dev/null").context("/dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("standard input")?;
    let listener = UnixListener::from(listener);
    listener.local_addr().context("standard input is not a socket: serve is run by start")?;
    Ok(listener)
}

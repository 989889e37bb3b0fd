//! An agent for tests, and guests that run it behind every kind of channel.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use skep_protocol::api::{self, Agent, TtrpcContext};
use skep_protocol::link::Limits;
use skep_protocol::testing::{BhyveConsole, Buffers, Travel, bhyve_console, serve_console};
use skep_protocol::{
    ChannelKind, Code, ConnectError, Endpoint, Session, StdioRegistry, StdioStream, serve_channel,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// Long enough for the slowest machine; nothing waits so long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Answers a few calls; a container is a task that moves bytes.
#[derive(Default)]
pub(crate) struct TestAgent {
    pub(crate) stdio: StdioRegistry,
    pausing: AtomicBool,
    /// Bytes that the container "flood" has got rid of.
    pub(crate) flooded: Arc<AtomicUsize>,
    /// Streams of containers that broke.
    pub(crate) broken: Arc<AtomicUsize>,
}

impl TestAgent {
    pub(crate) fn is_pausing(&self) -> bool {
        self.pausing.load(Ordering::SeqCst)
    }
}

/// What the container "flood" has to say, bytes.
pub(crate) const FLOOD: usize = 4 << 20;

#[async_trait::async_trait]
impl Agent for TestAgent {
    async fn create_sandbox(
        &self,
        _context: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> ttrpc::Result<api::CreateSandboxResponse> {
        let agent_version = format!("agent of {}", request.sandbox_id);
        Ok(api::CreateSandboxResponse { agent_version, ..Default::default() })
    }

    /// "flood" writes without end to its stdout; any other copies stdin to stdout, until EOF.
    async fn create_container(
        &self,
        _context: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        let tokens = request.stdio.unwrap_or_default();
        let registry = self.stdio.clone();
        let (flooded, broken) = (Arc::clone(&self.flooded), Arc::clone(&self.broken));
        tokio::spawn(async move {
            let mut output = registry.claim(tokens.stdout, PATIENCE).await.unwrap();
            let done = if request.container_id == "flood" {
                flood(&mut output, &flooded).await
            } else {
                let mut input = registry.claim(tokens.stdin, PATIENCE).await.unwrap();
                tokio::io::copy(&mut input, &mut output).await.map(drop)
            };
            match done {
                Ok(()) => output.shutdown().await.unwrap(),
                Err(_) => drop(broken.fetch_add(1, Ordering::SeqCst)),
            }
        });
        Ok(api::CreateContainerResponse::default())
    }

    async fn wait_process(
        &self,
        _context: &TtrpcContext,
        _request: api::ProcessRequest,
    ) -> ttrpc::Result<api::WaitProcessResponse> {
        Ok(api::WaitProcessResponse { exit_status: 3, ..Default::default() })
    }

    /// Never answers.
    async fn pause_container(
        &self,
        _context: &TtrpcContext,
        _request: api::ContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.pausing.store(true, Ordering::SeqCst);
        std::future::pending().await
    }

    async fn start_process(
        &self,
        _context: &TtrpcContext,
        _request: api::StartProcessRequest,
    ) -> ttrpc::Result<api::StartProcessResponse> {
        Err(api::error(Code::NOT_FOUND, "no such process"))
    }
}

async fn flood(output: &mut StdioStream, flooded: &AtomicUsize) -> std::io::Result<()> {
    while flooded.load(Ordering::SeqCst) < FLOOD {
        output.write_all(&[b'f'; 1024]).await?;
        flooded.fetch_add(1024, Ordering::SeqCst);
    }
    Ok(())
}

/// A guest behind a socket in a directory of its own.
pub(crate) struct Guest {
    pub(crate) endpoint: Endpoint,
    pub(crate) agent: Arc<TestAgent>,
    /// The VMM, behind a console.
    pub(crate) vmm: Option<BhyveConsole>,
    task: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Guest {
    pub(crate) async fn session(&self) -> Session {
        Session::connect(&self.endpoint, PATIENCE).await.unwrap()
    }
}

fn socket_path() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    (dir, path)
}

/// A guest behind a plain byte channel, one session after the other.
pub(crate) fn plain() -> Guest {
    served(ChannelKind::Stream, Endpoint::Stream)
}

/// A guest behind QEMU's virtio-console, which loses nothing.
pub(crate) fn paced() -> Guest {
    served(ChannelKind::PacedConsole, Endpoint::PacedConsole)
}

fn served(kind: ChannelKind, endpoint: impl FnOnce(PathBuf) -> Endpoint) -> Guest {
    let (dir, path) = socket_path();
    let listener = UnixListener::bind(&path).unwrap();
    let agent = Arc::new(TestAgent::default());
    let serving = Arc::clone(&agent);
    let task = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let _ = serve_channel(socket, kind, serving.clone(), serving.stdio.clone()).await;
        }
    });
    Guest { endpoint: endpoint(path), agent, vmm: None, task, _dir: dir }
}

/// A guest behind vhost-device-vsock, which closes the first connection: the guest does not listen yet.
pub(crate) fn vsock() -> Guest {
    let (dir, uds) = socket_path();
    let listener = UnixListener::bind(&uds).unwrap();
    let agent = Arc::new(TestAgent::default());
    let serving = Arc::clone(&agent);
    let task = tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut line = [0; b"CONNECT 1024\n".len()];
            socket.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"CONNECT 1024\n");
            socket.write_all(b"OK 1073741824\n").await.unwrap();
            let _ = serve_channel(socket, ChannelKind::Stream, serving.clone(), serving.stdio.clone()).await;
        }
    });
    Guest { endpoint: Endpoint::Vsock { uds, port: 1024 }, agent, vmm: None, task, _dir: dir }
}

/// When the guest comes.
#[derive(Clone, Copy)]
pub(crate) enum Boot {
    /// It is there.
    Done,
    /// When a host has said so many bytes in vain, to a VM without a driver, and as many to a driver without an agent.
    Unheard(u64),
}

/// A guest behind bhyve's virtio-console.
pub(crate) fn console_after(buffers: Buffers, limits: Limits, travel: Travel, boot: Boot) -> Guest {
    let (dir, path) = socket_path();
    let (vmm, port) = bhyve_console(&path, buffers, travel).unwrap();
    let agent = Arc::new(TestAgent::default());
    let serving = Arc::clone(&agent);
    let task = tokio::spawn(async move {
        if let Boot::Unheard(bytes) = boot {
            for said in [bytes, 2 * bytes] {
                while port.counts().dropped_down < said {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                port.probe();
            }
        }
        let _ = serve_console(port.open(), limits, serving.clone(), serving.stdio.clone()).await;
    });
    Guest { endpoint: Endpoint::Console(path), agent, vmm: Some(vmm), task, _dir: dir }
}

/// A Linux guest behind bhyve's virtio-console.
pub(crate) fn console() -> Guest {
    console_after(Buffers::LINUX, Limits::LINUX_GUEST, Travel::DIRECT, Boot::Done)
}

/// A guest behind each kind of channel, with a name.
pub(crate) fn all_kinds() -> Vec<(&'static str, Guest)> {
    let cut = Travel { piece: 100, delay: Duration::from_micros(200) };
    vec![
        ("plain", plain()),
        ("vsock", vsock()),
        ("paced console", paced()),
        ("Linux console", console()),
        (
            "FreeBSD console",
            console_after(Buffers::FREEBSD, Limits::FREEBSD_GUEST, Travel::DIRECT, Boot::Done),
        ),
        ("slow console", console_after(Buffers::LINUX, Limits::FREEBSD_GUEST, cut, Boot::Unheard(1))),
    ]
}

/// Has the agent copy one stream to the other.
pub(crate) async fn start(session: &Session, id: &str, stdin: u64, stdout: u64) {
    let tokens = api::Stdio { stdin, stdout, ..Default::default() };
    let request = api::CreateContainerRequest {
        container_id: id.to_owned(),
        stdio: Some(tokens).into(),
        ..Default::default()
    };
    session.agent().with_timeout(PATIENCE).create_container(&request).await.unwrap();
}

/// Starts a container that echoes; its stdin and stdout.
pub(crate) async fn echo(session: &Session) -> (StdioStream, StdioStream) {
    let (stdin, stdout) = (session.draw_token(), session.draw_token());
    let input = session.open_stdio(stdin).await.unwrap();
    let output = session.open_stdio(stdout).await.unwrap();
    start(session, "echo", stdin, stdout).await;
    (input, output)
}

/// Sends so many bytes through a container that echoes, and compares.
pub(crate) async fn echoes(session: &Session, count: usize, seed: u8) {
    let (mut input, mut output) = echo(session).await;
    let data: Vec<u8> = (0..count).map(|i| u8::try_from(i * 31 % 251).unwrap() ^ seed).collect();
    let mut back = Vec::new();
    let write = async {
        input.write_all(&data).await.unwrap();
        input.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(output.read_to_end(&mut back), write);
    read.unwrap();
    assert!(back == data, "{} of {count} bytes", back.len());
}

/// The error of a connection that does not come about, once it says `why`: with little time it may tell of an earlier step.
pub(crate) async fn refusal(endpoint: &Endpoint, why: &str) -> ConnectError {
    let mut timeout = Duration::from_millis(100);
    loop {
        let error = Session::connect(endpoint, timeout).await.unwrap_err();
        if error.to_string().contains(why) || timeout > PATIENCE {
            return error;
        }
        timeout *= 4;
    }
}

/// A raw connection to a guest's socket.
pub(crate) async fn raw(endpoint: &Endpoint) -> UnixStream {
    let (Endpoint::Console(path)
    | Endpoint::PacedConsole(path)
    | Endpoint::Stream(path)
    | Endpoint::Vsock { uds: path, .. }) = endpoint;
    UnixStream::connect(path).await.unwrap()
}

//! An agent for tests: it answers a few calls and echoes stdio.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use skep_protocol::api::{self, Agent, TtrpcContext};
use skep_protocol::{ChannelKind, Code, Endpoint, Session, StdioRegistry, serve_channel};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// Long enough for the slowest machine; nothing waits so long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct TestAgent {
    pub(crate) stdio: StdioRegistry,
    pausing: AtomicBool,
}

impl TestAgent {
    pub(crate) fn is_pausing(&self) -> bool {
        self.pausing.load(Ordering::SeqCst)
    }
}

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

    /// Copies stdin to stdout, until EOF.
    async fn create_container(
        &self,
        _context: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        let stdio = request.stdio.unwrap_or_default();
        let registry = self.stdio.clone();
        tokio::spawn(async move {
            let mut output = registry.claim(stdio.stdout, PATIENCE).await.unwrap();
            if stdio.stdin == 0 {
                return std::future::pending().await;
            }
            let mut input = registry.claim(stdio.stdin, PATIENCE).await.unwrap();
            if tokio::io::copy(&mut input, &mut output).await.is_ok() {
                let _ = output.shutdown().await;
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
        _request: api::ProcessRequest,
    ) -> ttrpc::Result<api::StartProcessResponse> {
        Err(api::error(Code::NOT_FOUND, "no such process"))
    }
}

/// A guest behind a socket in a directory of its own.
pub(crate) struct Guest {
    pub(crate) endpoint: Endpoint,
    pub(crate) agent: Arc<TestAgent>,
    task: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A guest behind a plain byte channel, one session after the other.
pub(crate) fn plain() -> Guest {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let agent = Arc::new(TestAgent::default());
    let serving = Arc::clone(&agent);
    let task = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let _ = serve_channel(socket, ChannelKind::Stream, serving.clone(), serving.stdio.clone()).await;
        }
    });
    Guest { endpoint: Endpoint::Stream(path), agent, task, _dir: dir }
}

/// Has the agent copy one stream to the other.
pub(crate) async fn echo(session: &Session, stdin: u64, stdout: u64) {
    let streams = api::Stdio { stdin, stdout, ..Default::default() };
    let request = api::CreateContainerRequest { stdio: Some(streams).into(), ..Default::default() };
    session.agent().create_container(&request).await.unwrap();
}

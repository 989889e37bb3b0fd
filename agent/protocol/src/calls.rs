//! The agent's calls as the host makes them: each with a timeout, counted, and with errors that name the call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use ttrpc::Code;

use crate::api::{self, AgentClient};
use crate::closing::Closed;

/// Longest wait for an answer unless [`AgentCalls::with_timeout`] says otherwise.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("agent call {method}: {message} ({code:?})")]
pub struct CallError {
    /// Name of the call as in the .proto.
    pub method: &'static str,
    /// What the agent answered; `DEADLINE_EXCEEDED` if it did not answer in time, `UNAVAILABLE` if the session
    /// broke, `INTERNAL` for an answer that can't be read.
    pub code: Code,
    /// The agent's text, or ours. The agent is not trusted: this is for people, not to be parsed.
    pub message: String,
}

/// Longest text of an error taken from the guest, bytes.
const MAX_MESSAGE: usize = 4096;

impl CallError {
    fn new(method: &'static str, error: ttrpc::Error) -> Self {
        let (code, message) = match error {
            ttrpc::Error::RpcStatus(status) => (status.code(), printable(&status.message)),
            ttrpc::Error::Socket(text) => {
                (Code::UNAVAILABLE, format!("the session with the guest broke: {text}"))
            }
            ttrpc::Error::LocalClosed | ttrpc::Error::Eof | ttrpc::Error::RemoteClosed => {
                (Code::UNAVAILABLE, "the session with the guest is closed".to_owned())
            }
            other => (Code::INTERNAL, printable(&other.to_string())),
        };
        Self { method, code, message }
    }
}

/// Text from the guest, bounded and without control characters: it ends up in logs and on terminals.
fn printable(text: &str) -> String {
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end]
        .chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

/// The calls of one session. Cheap to clone.
#[derive(Clone)]
pub struct AgentCalls {
    client: AgentClient,
    timeout: Duration,
    completed: Arc<AtomicU64>,
    closed: watch::Receiver<Option<Closed>>,
}

impl std::fmt::Debug for AgentCalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentCalls").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl AgentCalls {
    pub(crate) fn new(
        client: ttrpc::r#async::Client,
        completed: Arc<AtomicU64>,
        closed: watch::Receiver<Option<Closed>>,
    ) -> Self {
        Self { client: AgentClient::new(client), timeout: DEFAULT_TIMEOUT, completed, closed }
    }

    /// The same calls, each waiting at most `timeout`.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn within<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, CallError> {
        let Ok(answer) = tokio::time::timeout(self.timeout, call).await else {
            let message = format!("no answer within {:?}", self.timeout);
            return Err(CallError { method, code: Code::DEADLINE_EXCEEDED, message });
        };
        if matches!(answer, Ok(_) | Err(ttrpc::Error::RpcStatus(_))) {
            self.completed.fetch_add(1, Ordering::Relaxed);
        }
        answer.map_err(|error| self.error(method, error))
    }

    /// Once the session has ended, that is the reason for any failure that is not the agent's answer.
    fn error(&self, method: &'static str, error: ttrpc::Error) -> CallError {
        match (&*self.closed.borrow(), error) {
            (_, error @ ttrpc::Error::RpcStatus(_)) | (None, error) => CallError::new(method, error),
            (Some(closed), _) => CallError { method, code: Code::UNAVAILABLE, message: closed.to_string() },
        }
    }

    /// Makes the booted guest this sandbox; once, before any container. The texts of the answer are fit for a log.
    pub async fn create_sandbox(
        &self,
        request: &api::CreateSandboxRequest,
    ) -> Result<api::CreateSandboxResponse, CallError> {
        let call = self.client.create_sandbox(ttrpc::context::Context::default(), request);
        let mut answer = self.within("CreateSandbox", call).await?;
        for text in [&mut answer.agent_version, &mut answer.kernel_release] {
            *text = printable(text);
        }
        Ok(answer)
    }

    /// Waits, without limit, for the process to exit. Not counted as a round trip.
    pub async fn wait_process(
        &self,
        request: &api::ProcessRequest,
    ) -> Result<api::WaitProcessResponse, CallError> {
        let call = self.client.wait_process(ttrpc::context::Context::default(), request);
        call.await.map_err(|error| self.error("WaitProcess", error))
    }

    /// Waits, without limit, for processes of the container to be killed for want of memory. Not counted as a round
    /// trip.
    pub async fn wait_oom(&self, request: &api::WaitOomRequest) -> Result<api::WaitOomResponse, CallError> {
        let call = self.client.wait_oom(ttrpc::context::Context::default(), request);
        call.await.map_err(|error| self.error("WaitOom", error))
    }
}

/// The timeout stays on this side: a deadline sent along would make the server drop the call half done.
macro_rules! calls {
    ($($(#[$doc:meta])+ $name:ident = $method:literal: $request:ident => $response:ident;)+) => {
        impl AgentCalls {
            $(
                $(#[$doc])+
                pub async fn $name(&self, request: &api::$request) -> Result<api::$response, CallError> {
                    self.within($method, self.client.$name(ttrpc::context::Context::default(), request)).await
                }
            )+
        }
    };
}

calls! {
    /// Creates a container and its init process, which waits for [`AgentCalls::start_process`].
    create_container = "CreateContainer": CreateContainerRequest => CreateContainerResponse;
    /// Adds a process to a running container; it waits for [`AgentCalls::start_process`].
    exec_process = "ExecProcess": ExecProcessRequest => Empty;
    /// Lets a created process run.
    start_process = "StartProcess": StartProcessRequest => StartProcessResponse;
    /// Sends a signal to a process or to all of a container.
    signal_process = "SignalProcess": SignalProcessRequest => Empty;
    /// Forgets an exited exec process, or removes the container.
    delete_process = "DeleteProcess": ProcessRequest => WaitProcessResponse;
    /// The container's process ids, as the guest sees them.
    list_processes = "ListProcesses": ContainerRequest => ListProcessesResponse;
    /// Sets the size of a process's terminal.
    resize_terminal = "ResizeTerminal": ResizeTerminalRequest => Empty;
    /// Freezes a container's processes.
    pause_container = "PauseContainer": ContainerRequest => Empty;
    /// Thaws a container's processes.
    resume_container = "ResumeContainer": ContainerRequest => Empty;
    /// What the container uses.
    container_stats = "ContainerStats": ContainerRequest => ContainerStatsResponse;
    /// Changes the container's limits.
    update_container = "UpdateContainer": UpdateContainerRequest => Empty;
    /// Connects a stream to a TCP port of the guest's loopback.
    forward_port = "ForwardPort": ForwardPortRequest => Empty;
    /// Steps the guest's clock.
    set_clock = "SetClock": SetClockRequest => SetClockResponse;
    /// Kills what still runs and powers the guest off; the answer may be lost with the guest.
    shutdown = "Shutdown": Empty => Empty;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_text_is_bounded_and_printable() {
        let text = format!("a\u{1b}[2Jb\n{}", "é".repeat(MAX_MESSAGE));
        let CallError { message, code, .. } = CallError::new("Shutdown", api::error(Code::NOT_FOUND, text));
        assert!(message.starts_with("a\u{fffd}[2Jb\n"));
        assert!(message.len() <= MAX_MESSAGE + 2);
        assert_eq!(code, Code::NOT_FOUND);
    }

    #[test]
    fn says_which_call() {
        let error = CallError::new("StartProcess", ttrpc::Error::RemoteClosed);
        assert_eq!(
            error.to_string(),
            "agent call StartProcess: the session with the guest is closed (UNAVAILABLE)"
        );
    }
}

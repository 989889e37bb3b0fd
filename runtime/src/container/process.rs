//! One process of a container: init, or one that was added.

use std::{
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::SystemTime,
};

use skep_protocol::api;
use tokio::sync::{Mutex, MutexGuard, watch};

use super::guest::GuestEnd;
use super::stdio::{Patience, Pumps, StdioRequest};

/// Status of a process that was killed because its VM ended: as if by SIGKILL.
pub const KILLED: u32 = 128 + 9;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 and the number of the signal that ended it.
    pub status: u32,
    /// When this host heard of it: the guest's clock is not trusted.
    pub at: SystemTime,
    /// Processes of its container that were killed for want of memory by then, as the guest says; or its VM, by this host.
    pub oom_kills: u64,
    /// Why, if it did not end by itself.
    pub reason: Option<String>,
}

impl Exit {
    pub(super) fn answered(answer: &api::WaitProcessResponse) -> Self {
        // The guest may answer anything; a status has eight bits.
        let status = answer.exit_status & 0xff;
        Self { status, at: SystemTime::now(), oom_kills: answer.oom_kills, reason: None }
    }

    pub(super) fn of(status: u32) -> Self {
        Self { status, at: SystemTime::now(), reason: None, oom_kills: 0 }
    }

    pub(super) fn signalled(signal: u32) -> Self {
        Self::of(128 + signal)
    }

    pub(super) fn lost(reason: String) -> Self {
        Self { status: KILLED, at: SystemTime::now(), oom_kills: 0, reason: Some(reason) }
    }

    /// Together with its VM. What this host's kernel did to that for want of memory, it did to each container.
    pub(super) fn with_guest(end: GuestEnd) -> Self {
        Self { oom_kills: u64::from(end.out_of_memory), ..Self::lost(end.reason) }
    }
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// It is there and waits for its start.
    Created,
    /// It was started.
    Running,
    /// It has ended.
    Stopped,
}

impl ProcessState {
    /// The word for it in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// One process of a container.
#[derive(Debug)]
pub struct Process {
    container: String,
    exec: String,
    stdio: StdioRequest,
    pumps: RwLock<Option<std::sync::Arc<Pumps>>>,
    started: AtomicBool,
    /// As the guest sees it; 0 before the start.
    guest_pid: AtomicU32,
    exit: watch::Sender<Option<Exit>>,
    /// Held while the process is started or deleted.
    changing: Mutex<()>,
}

impl Process {
    pub(super) fn new(container: &str, exec: &str, stdio: StdioRequest, pumps: Pumps) -> Self {
        Self {
            container: container.to_owned(),
            exec: exec.to_owned(),
            stdio,
            pumps: RwLock::new(Some(std::sync::Arc::new(pumps))),
            started: AtomicBool::new(false),
            guest_pid: AtomicU32::new(0),
            exit: watch::Sender::new(None),
            changing: Mutex::new(()),
        }
    }

    /// Its id within the container; empty for init.
    pub fn exec_id(&self) -> &str {
        &self.exec
    }

    /// What its caller named as standard streams.
    pub fn stdio(&self) -> &StdioRequest {
        &self.stdio
    }

    /// What it does.
    pub fn state(&self) -> ProcessState {
        if self.exit.borrow().is_some() {
            ProcessState::Stopped
        } else if self.was_started() {
            ProcessState::Running
        } else {
            ProcessState::Created
        }
    }

    /// Whether it was ever started.
    pub fn was_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Returns when it has ended; any number of callers.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
            Ok(Some(exit)) => exit,
            // Unreachable while `self` holds the sender; a process nobody watches is lost.
            _ => Exit::lost("its watch is gone".into()),
        }
    }

    /// Holds off starts and deletions: what is done meanwhile comes before or after them, never between.
    pub async fn hold(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Its input is read from now on.
    pub(super) fn begin_input(&self) {
        if let Some(pumps) = self.pumps() {
            pumps.begin_input();
        }
    }

    /// No more input than what clients that are connected now will send.
    pub fn close_input(&self) {
        if let Some(pumps) = self.pumps() {
            pumps.close_input();
        }
    }

    pub(super) fn started(&self, guest_pid: u32) {
        self.guest_pid.store(guest_pid, Ordering::Release);
        self.started.store(true, Ordering::Release);
    }

    /// Its process id in the guest, once it was started.
    pub(super) fn guest_pid(&self) -> Option<u32> {
        Some(self.guest_pid.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    /// Only the first exit counts.
    pub(super) fn ended(&self, exit: Exit) {
        let first = self.exit.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(exit);
            }
            first
        });
        if first && let Some(pumps) = self.pumps() {
            pumps.stop_input();
        }
    }

    /// Lets output arrive, with so much patience, and ends the streams.
    pub(super) async fn finish_output(&self, patience: Patience) {
        let Some(pumps) = self.pumps.write().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if !pumps.drained(patience).await {
            tracing::warn!(
                process = self.name(),
                ?patience,
                "output did not end or was not read in time, the rest is lost"
            );
        }
        pumps.finish().await;
    }

    /// For errors and logs.
    pub(super) fn name(&self) -> String {
        if self.exec.is_empty() {
            format!("container {}", self.container)
        } else {
            format!("process {} of container {}", self.exec, self.container)
        }
    }

    pub(super) fn request(&self) -> api::ProcessRequest {
        api::ProcessRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            ..api::ProcessRequest::default()
        }
    }

    pub(super) fn start_request(&self, network: Option<api::Network>) -> api::StartProcessRequest {
        api::StartProcessRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            network: network.into(),
            ..api::StartProcessRequest::default()
        }
    }

    fn pumps(&self) -> Option<std::sync::Arc<Pumps>> {
        self.pumps.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

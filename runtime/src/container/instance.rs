//! One container in a sandbox.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oci_spec::runtime::LinuxResources;
use skep_protocol::{AgentCalls, Code, api};
use tokio::sync::watch as channel;

use super::{
    ContainerError, ContainerStats, Exit, Guest, HostHooks, Process, ProcessState, guest::explain, oom,
    resources, signal, stdio::Streams, watch::watch,
};
use crate::{share::Share, stand_in::StandIn};

/// Most processes of a guest that are listed.
const MAX_LISTED: usize = 4096;

pub(super) const SIGKILL: u32 = 9;

/// A container in a sandbox.
#[derive(Debug)]
pub struct Container {
    pub(super) id: String,
    pub(super) guest: Arc<dyn Guest>,
    pub(super) init: Arc<Process>,
    pub(super) execs: Mutex<HashMap<String, Arc<Process>>>,
    pub(super) share: Arc<Mutex<Share>>,
    pub(super) paused: AtomicBool,
    pub(super) oom: channel::Sender<u64>,
    /// Stands for the sandbox: see `placeholder.rs`.
    pub(super) placeholder: bool,
    pub(super) namespace: String,
    pub(super) streams: Arc<Streams>,
    pub(super) hooks: Option<HostHooks>,
    pub(super) call_limit: Duration,
    /// Stands for it on this host; without one, what stands for the sandbox does.
    pub(super) stand_in: Option<StandIn>,
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The process id that stands for it, and for every process of it, on this host.
    pub fn pid(&self) -> u32 {
        self.stand_in.as_ref().map_or_else(|| self.guest.pid(), StandIn::pid)
    }

    /// Its init process.
    pub fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// Waits for init's end, and for that of the process that stands for the container: its pid names nothing then.
    pub async fn exited(&self) -> Exit {
        let exit = self.init.wait().await;
        if let Some(stand_in) = &self.stand_in {
            stand_in.end().await;
        }
        exit
    }

    /// A process by its id; an empty one is init's.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>, ContainerError> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        self.lock_execs()
            .get(exec)
            .cloned()
            .ok_or_else(|| ContainerError::NoProcess { container: self.id.clone(), exec: exec.to_owned() })
    }

    /// The processes that were added and not deleted.
    pub fn execs(&self) -> Vec<Arc<Process>> {
        self.lock_execs().values().cloned().collect()
    }

    /// Gives up on processes that the guest should have ended with init.
    pub fn end_execs(&self) {
        for process in self.execs() {
            process.ended(Exit::lost("the container's init has exited".into()));
        }
    }

    /// Whether its processes are frozen.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Lets a created process run. The caller has [`Process::hold`].
    pub async fn start(&self, process: &Arc<Process>) -> Result<(), ContainerError> {
        if process.state() != ProcessState::Created {
            return Err(state_error("start", process));
        }
        if self.placeholder {
            process.started(0);
            self.poststart().await;
            return Ok(());
        }
        // By now whoever makes networks for containers has made this one: the guest learns of it with the call that
        // lets the first process run.
        let network = match process.exec_id() {
            "" => self.guest.take_network().await?,
            _ => None,
        };
        let settles = network.is_some();
        process.begin_input();
        match self.agent().start_process(&process.start_request(network)).await {
            Ok(answer) => {
                if settles {
                    self.guest.network_settled();
                }
                process.started(answer.pid);
            }
            Err(error) => return Err(explain(&*self.guest, "starting the process", error).await),
        }
        if process.exec_id().is_empty() {
            self.guest.mark("container-started");
            oom::watch(&self.guest, &self.id, process, self.oom.clone());
            self.poststart().await;
        } else {
            watch(&self.guest, process);
        }
        Ok(())
    }

    /// The container's processes: for each the id under which it was added, if it was; init's is empty.
    pub async fn processes(&self) -> Result<Vec<Option<String>>, ContainerError> {
        if self.init.state() == ProcessState::Stopped {
            return Ok(Vec::new());
        }
        if self.placeholder {
            return Ok(vec![Some(String::new())]);
        }
        let request =
            api::ContainerRequest { container_id: self.id.clone(), ..api::ContainerRequest::default() };
        let answer = match self.agent().list_processes(&request).await {
            Ok(answer) => answer,
            Err(error) => return Err(explain(&*self.guest, "listing processes", error).await),
        };
        let known: HashMap<u32, String> = self
            .execs()
            .iter()
            .chain([&self.init])
            .filter_map(|process| Some((process.guest_pid()?, process.exec_id().to_owned())))
            .collect();
        Ok(answer.pids.iter().take(MAX_LISTED).map(|pid| known.get(pid).cloned()).collect())
    }

    /// Sends a signal, as this host counts them, to a process, or with `all` to every process of the container.
    pub async fn kill(&self, process: &Process, signal: u32, all: bool) -> Result<(), ContainerError> {
        let signal = signal::for_linux(signal)?;
        match process.state() {
            ProcessState::Stopped => return Err(ContainerError::Finished { what: process.name() }),
            ProcessState::Created if !process.exec_id().is_empty() => {
                return Err(state_error("kill", process));
            }
            ProcessState::Created | ProcessState::Running => {}
        }
        if self.placeholder {
            self.signal_placeholder(signal);
            return Ok(());
        }
        let request = api::SignalProcessRequest {
            container_id: self.id.clone(),
            exec_id: process.exec_id().to_owned(),
            signal,
            all,
            ..api::SignalProcessRequest::default()
        };
        match self.agent().signal_process(&request).await {
            Ok(_) => Ok(()),
            // Whoever kills has no use for a guest that does not answer, and nothing else would ever end it.
            Err(error) if error.code == Code::DEADLINE_EXCEEDED && signal == SIGKILL => {
                tracing::warn!(process = process.name(), %error, "killing: the guest does not answer, its VM is ended");
                self.guest.kill().await;
                Ok(())
            }
            Err(error) => Err(explain(&*self.guest, "sending the signal", error).await),
        }
    }

    /// Sets the size of a process's terminal.
    pub async fn resize(&self, process: &Process, rows: u32, columns: u32) -> Result<(), ContainerError> {
        if !process.stdio().terminal {
            // Callers ask without looking, and take its absence for no fault.
            return Ok(());
        }
        if process.state() == ProcessState::Stopped {
            return Err(state_error("resize the terminal of", process));
        }
        let request = api::ResizeTerminalRequest {
            container_id: self.id.clone(),
            exec_id: process.exec_id().to_owned(),
            rows,
            columns,
            ..api::ResizeTerminalRequest::default()
        };
        match self.agent().resize_terminal(&request).await {
            Ok(_) => Ok(()),
            Err(error) => Err(explain(&*self.guest, "resizing the terminal", error).await),
        }
    }

    /// How many of its processes were killed for want of memory, as they are. An [`Exit`] tells what came last.
    pub fn oom_kills(&self) -> channel::Receiver<u64> {
        self.oom.subscribe()
    }

    /// What its processes use, by its cgroup in the guest. Numbers are the guest's: they may be anything.
    pub async fn stats(&self) -> Result<ContainerStats, ContainerError> {
        if self.placeholder {
            return Ok(ContainerStats::default());
        }
        let request =
            api::ContainerRequest { container_id: self.id.clone(), ..api::ContainerRequest::default() };
        match self.agent().container_stats(&request).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(explain(&*self.guest, "reading the container's figures", error).await),
        }
    }

    /// Changes its limits, within what its VM has; what is not set stays.
    pub async fn update(&self, resources: LinuxResources) -> Result<(), ContainerError> {
        if self.init.state() == ProcessState::Stopped {
            return Err(state_error("update", &self.init));
        }
        let resources = resources::check(resources, self.guest.os(), self.guest.size())?;
        if self.placeholder {
            return Ok(());
        }
        let json = serde_json::to_vec(&resources).map_err(|error| ContainerError::Internal {
            operation: "encoding the limits",
            reason: error.to_string(),
        })?;
        let request = api::UpdateContainerRequest {
            container_id: self.id.clone(),
            resources: json,
            ..api::UpdateContainerRequest::default()
        };
        match self.agent().update_container(&request).await {
            Ok(_) => Ok(()),
            Err(error) => Err(explain(&*self.guest, "changing the limits", error).await),
        }
    }

    /// Freezes every process.
    pub async fn pause(&self) -> Result<(), ContainerError> {
        self.freeze("pause", true).await
    }

    /// Thaws every process.
    pub async fn resume(&self) -> Result<(), ContainerError> {
        self.freeze("resume", false).await
    }

    async fn freeze(&self, operation: &'static str, pause: bool) -> Result<(), ContainerError> {
        if self.init.state() != ProcessState::Running {
            return Err(state_error(operation, &self.init));
        }
        if self.is_paused() == pause {
            let state = if pause { "paused" } else { "running" };
            return Err(ContainerError::State { operation, what: self.init.name(), state });
        }
        if self.placeholder {
            self.paused.store(pause, Ordering::Release);
            return Ok(());
        }
        let request =
            api::ContainerRequest { container_id: self.id.clone(), ..api::ContainerRequest::default() };
        let agent = self.agent();
        let answer = if pause {
            agent.pause_container(&request).await
        } else {
            agent.resume_container(&request).await
        };
        match answer {
            Ok(_) => {
                self.paused.store(pause, Ordering::Release);
                Ok(())
            }
            Err(error) => Err(explain(&*self.guest, operation, error).await),
        }
    }

    async fn poststart(&self) {
        if let Some(hooks) = &self.hooks {
            hooks.poststart(self.pid(), self.guest.journal()).await;
        }
    }

    /// Runs the hooks that follow its end: to be called when it, or the sandbox with it, is deleted.
    pub async fn poststop(&self) {
        if let Some(hooks) = &self.hooks {
            hooks.poststop().await;
        }
    }

    pub(super) fn agent(&self) -> AgentCalls {
        self.guest.session().agent().with_timeout(self.call_limit)
    }

    pub(super) fn lock_execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn state_error(operation: &'static str, process: &Process) -> ContainerError {
    ContainerError::State { operation, what: process.name(), state: process.state().name() }
}

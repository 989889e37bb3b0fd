//! One container: starting, freezing, signalling and removing it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use skep_protocol::api::ContainerStatsResponse;

use super::faults::Faults;
use super::heads::ProcessHead;
use super::join::{Joint, Target};
use super::start::Born;
use super::{Paths, Process, group, oom, rootfs, stats, update};
use crate::error::{Code, Refusal};
use crate::helper;
use crate::limits;
use crate::reaper::{Exit, Reaper};
use crate::stdio::Streams;

/// Processes added to one container and not yet deleted.
const EXECS_MAX: usize = 1024;
/// How long processes that were killed may take to be gone, and a group to freeze.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// The last real-time signal.
const SIGNAL_MAX: u32 = 64;

/// A container that was made.
#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    paths: Paths,
    init: Arc<Process>,
    faults: Mutex<Option<Faults>>,
    joint: Joint,
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    paused: Mutex<bool>,
    /// Held by whoever changes the container as a whole.
    turn: tokio::sync::Mutex<()>,
}

/// A process added to a container; it exists once it is started.
#[derive(Debug)]
pub(crate) struct Exec {
    process: Arc<Process>,
    birth: Mutex<Option<(Vec<u8>, ProcessHead, Streams)>>,
}

impl Exec {
    pub(crate) fn new(container: &Container, spec: Vec<u8>, head: ProcessHead, streams: Streams) -> Self {
        let process = Arc::new(Process::new(format!("a process of container {:?}", container.id)));
        Self { process, birth: Mutex::new(Some((spec, head, streams))) }
    }
}

impl Container {
    pub(crate) fn new(id: &str, joint: Joint, born: Born) -> Self {
        let init = Process::new(format!("container {id:?}"));
        init.set_born(born.pid, born.exit, born.terminal);
        Self {
            id: id.to_owned(),
            paths: Paths::new(id),
            init: Arc::new(init),
            faults: Mutex::new(born.faults),
            joint,
            execs: Mutex::default(),
            paused: Mutex::new(false),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// The first process, or the one added under that id.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>, Refusal> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        Ok(Arc::clone(&self.exec(exec)?.process))
    }

    /// Lets the first process run its program.
    pub(crate) async fn start(&self) -> Result<i32, Refusal> {
        let _turn = self.turn.lock().await;
        self.init.begin_start()?;
        if self.init.exit().is_some() {
            return Err(Refusal::precondition(format!("{}: has exited before its start", self.init.name())));
        }
        let notified =
            UnixStream::connect(self.paths.notify()).and_then(|mut socket| socket.write_all(b"start"));
        notified.map_err(|e| Refusal::internal(format!("cannot start {}: {e}", self.init.name())))?;
        let faults = lock(&self.faults).take();
        if let Some(faults) = faults
            && let Err(refusal) = faults.started(limits::helper()).await
        {
            // A process that told its fault is ending. Once it has, the container can be deleted.
            let _ = tokio::time::timeout(SETTLE_LIMIT, self.init.wait()).await;
            return Err(refusal);
        }
        self.init.set_started();
        self.init.pid().ok_or_else(|| Refusal::internal(format!("{}: has no pid", self.init.name())))
    }

    /// Makes and starts an added process.
    pub(crate) async fn start_exec(&self, id: &str, reaper: &Arc<Reaper>) -> Result<i32, Refusal> {
        let exec = self.exec(id)?;
        // Not while the container is deleted or paused.
        let _turn = self.turn.lock().await;
        self.check_takes_processes()?;
        let init = self.init.live_pid().unwrap_or_default();
        exec.process.begin_start()?;
        let Some((spec, head, streams)) = lock(&exec.birth).take() else {
            return Err(Refusal::precondition(format!("exec {id:?}: already started")));
        };
        let target = Target { paths: &self.paths, joint: &self.joint, init };
        match target.join(reaper, &head, &spec, streams, limits::helper()).await {
            Ok(born) => {
                let pid = born.pid;
                exec.process.set_born(pid, born.exit, born.terminal);
                exec.process.set_started();
                Ok(pid)
            }
            Err(refusal) => {
                exec.process.set_failed();
                Err(refusal)
            }
        }
    }

    /// Refuses to add processes to a container that is not running.
    pub(crate) fn check_takes_processes(&self) -> Result<(), Refusal> {
        let state = if self.init.exit().is_some() {
            "has exited"
        } else if !self.init.is_started() {
            "is not started"
        } else if *lock(&self.paused) {
            "is paused"
        } else {
            return Ok(());
        };
        Err(Refusal::precondition(format!("{} {state}: no process can be added", self.init.name())))
    }

    /// Adds a process under an id that is free.
    pub(crate) fn add_exec(&self, id: String, exec: Exec) -> Result<(), Refusal> {
        let mut execs = lock(&self.execs);
        if execs.len() >= EXECS_MAX {
            let text = format!("exec {id:?}: the container has {EXECS_MAX} added processes already");
            return Err(Refusal::new(Code::ResourceExhausted, text));
        }
        match execs.entry(id) {
            Entry::Occupied(taken) => {
                Err(Refusal::new(Code::AlreadyExists, format!("exec {:?}: exists already", taken.key())))
            }
            Entry::Vacant(slot) => {
                slot.insert(Arc::new(exec));
                Ok(())
            }
        }
    }

    /// Sends a signal to one process, or to every one of the container.
    pub(crate) fn signal(&self, exec: &str, signal: u32, all: bool) -> Result<(), Refusal> {
        // 0 asks whether there is somebody.
        if signal > SIGNAL_MAX {
            return Err(Refusal::invalid(format!("signal {signal}: not 0 to {SIGNAL_MAX}")));
        }
        let process = self.process(exec)?;
        if all {
            if signal == (Signal::SIGKILL as i32).cast_unsigned() {
                return Ok(group::kill(&self.paths.group_dir())?);
            }
            for pid in group::pids(&self.paths.group_dir())? {
                send(pid.cast_signed(), signal)?;
            }
            return Ok(());
        }
        match process.live_pid() {
            Some(pid) => send(pid, signal),
            None if process.exit().is_some() => {
                Err(Refusal::not_found(format!("{}: process already finished", process.name())))
            }
            None => Err(Refusal::precondition(format!("{}: not started", process.name()))),
        }
    }

    /// Pids of the container's processes.
    pub(crate) fn pids(&self) -> Result<Vec<u32>, Refusal> {
        Ok(group::pids(&self.paths.group_dir())?)
    }

    /// What its processes use.
    pub(crate) fn stats(&self) -> Result<ContainerStatsResponse, Refusal> {
        Ok(stats::read(&self.paths.group_dir())?)
    }

    /// Changes its limits.
    pub(crate) async fn update(&self, resources: &[u8], reaper: &Arc<Reaper>) -> Result<(), Refusal> {
        let _turn = self.turn.lock().await;
        if self.init.exit().is_some() {
            return Err(Refusal::precondition(format!("{}: has exited", self.init.name())));
        }
        let resources = update::parse(resources)?;
        let helper = helper::start(reaper, &[], |_| update::apply(&self.paths.group, &resources))?;
        helper.finish::<()>(limits::helper()).await.map(drop)
    }

    /// How many of its processes were killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        oom::kills(&self.paths.group_dir())
    }

    /// Waits until more than `seen` were, or until the first process has exited.
    pub(crate) async fn wait_oom(&self, seen: u64) -> Result<u64, Refusal> {
        let group = self.paths.group_dir();
        tokio::select! {
            kills = oom::more_kills(&group, seen) => Ok(kills?),
            _ = self.init.wait() => Ok(self.oom_kills()),
        }
    }

    /// Sets the size of a process's terminal.
    pub(crate) fn resize(&self, exec: &str, rows: u32, columns: u32) -> Result<(), Refusal> {
        let process = self.process(exec)?;
        let terminal = process
            .terminal()
            .ok_or_else(|| Refusal::precondition(format!("{}: has no terminal", process.name())))?;
        let side = |name, value| {
            u16::try_from(value)
                .map_err(|_| Refusal::invalid(format!("{name} {value}: more than {}", u16::MAX)))
        };
        terminal
            .resize(side("rows", rows)?, side("columns", columns)?)
            .map_err(|e| Refusal::internal(format!("{}: cannot size the terminal: {e}", process.name())))
    }

    /// Freezes or thaws every process.
    pub(crate) async fn pause(&self, pause: bool) -> Result<(), Refusal> {
        let _turn = self.turn.lock().await;
        let name = self.init.name();
        if self.init.exit().is_some() || !self.init.is_started() {
            return Err(Refusal::precondition(format!("{name}: not running")));
        }
        if *lock(&self.paused) == pause {
            let state = if pause { "paused already" } else { "not paused" };
            return Err(Refusal::precondition(format!("{name}: {state}")));
        }
        let done = group::freeze(&self.paths.group_dir(), pause, SETTLE_LIMIT).await;
        // A freeze that did not come to its end may still have frozen some.
        *lock(&self.paused) = pause;
        Ok(done?)
    }

    /// Forgets an added process that is not running.
    pub(crate) fn delete_exec(&self, id: &str) -> Result<Exit, Refusal> {
        let exec = self.exec(id)?;
        if exec.process.exit().is_none() && !exec.process.is_unstarted() {
            return Err(Refusal::precondition(format!("exec {id:?}: still running")));
        }
        lock(&self.execs).remove(id);
        Ok(exec.process.exit().unwrap_or_default())
    }

    /// Removes the container with all that is left of it. One that runs is refused; one that was never started
    /// is killed.
    pub(crate) async fn delete(&self) -> Result<Exit, Refusal> {
        let _turn = self.turn.lock().await;
        if self.init.exit().is_none() {
            if !self.init.is_unstarted() {
                return Err(Refusal::precondition(format!("{}: still running", self.init.name())));
            }
            group::kill(&self.paths.group_dir())?;
            let gone = tokio::time::timeout(SETTLE_LIMIT, self.init.wait()).await;
            gone.map_err(|_| {
                Refusal::new(Code::DeadlineExceeded, format!("{}: does not end", self.init.name()))
            })?;
        }
        scrub(&self.paths).await?;
        Ok(self.init.exit().unwrap_or_default())
    }

    fn exec(&self, id: &str) -> Result<Arc<Exec>, Refusal> {
        let exec = lock(&self.execs).get(id).cloned();
        exec.ok_or_else(|| Refusal::not_found(format!("exec {id:?} of container {:?}: not found", self.id)))
    }
}

/// Holds the container to its memory until the first process ends: those that it leaves end with it.
pub(crate) async fn follow(container: Arc<Container>) {
    let group = container.paths.group_dir();
    tokio::select! {
        _ = container.init.wait() => {}
        never = oom::enforce(&group) => match never {},
    }
    if let Err(error) = group::init_ended(&group) {
        tracing::warn!("{}: {error}", container.init.name());
    }
}

/// Undoes what making a container left, as far as it got: all of it is tried, the first error is returned.
pub(crate) async fn scrub(paths: &Paths) -> Result<(), Refusal> {
    let group = paths.group_dir();
    let mut results = vec![group::kill(&group).map_err(Refusal::from)];
    results.push(group::remove(&group, SETTLE_LIMIT).await.map_err(Refusal::from));
    let unmounted = rootfs::remove(&paths.overlay()).map_err(Refusal::from);
    // Behind an overlay that is still mounted are the container's files, not the agent's.
    if unmounted.is_ok() {
        results.push(remove_dir(&paths.bundle));
    }
    results.push(unmounted);
    results.push(remove_dir(&paths.state));
    results.into_iter().collect()
}

fn remove_dir(path: &Path) -> Result<(), Refusal> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Refusal::internal(format!("cannot remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

fn send(pid: i32, signal: u32) -> Result<(), Refusal> {
    // By number, as real-time signals have no names.
    // SAFETY: kill touches no memory.
    if unsafe { libc::kill(pid, signal.cast_signed()) } == -1 {
        let error = nix::Error::last();
        if error != nix::Error::ESRCH {
            return Err(Refusal::internal(format!("cannot send signal {signal} to process {pid}: {error}")));
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

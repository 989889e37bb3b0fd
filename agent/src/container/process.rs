//! One process of a container, as the agent knows it.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::error::Refusal;
use crate::reaper::{Exit, ExitWatch, exit_of};
use crate::stdio::Terminal;

/// Status of a process that could not be made, as shells have it.
const FAILED: u32 = 127;

/// A container's first process, or one added to it.
#[derive(Debug)]
pub(crate) struct Process {
    /// How it is called in errors.
    name: String,
    state: Mutex<State>,
    /// Follows `state`: the exit watch once there is one.
    born: watch::Sender<Option<ExitWatch>>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    pid: Option<i32>,
    terminal: Option<Terminal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Starting,
    Started,
}

impl Process {
    pub(crate) fn new(name: String) -> Self {
        let state = State { phase: Phase::Created, pid: None, terminal: None };
        Self { name, state: Mutex::new(state), born: watch::channel(None).0 }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The process exists now.
    pub(crate) fn set_born(&self, pid: i32, exit: ExitWatch, terminal: Option<Terminal>) {
        self.with(|state| {
            state.pid = Some(pid);
            state.terminal = terminal;
        });
        self.born.send_replace(Some(exit));
    }

    /// Claims the one start that a process has.
    pub(crate) fn begin_start(&self) -> Result<(), Refusal> {
        self.with(|state| match state.phase {
            Phase::Created => {
                state.phase = Phase::Starting;
                Ok(())
            }
            Phase::Starting | Phase::Started => {
                Err(Refusal::precondition(format!("{}: already started", self.name)))
            }
        })
    }

    pub(crate) fn set_started(&self) {
        self.with(|state| state.phase = Phase::Started);
    }

    /// It could not be made: it counts as ended.
    pub(crate) fn set_failed(&self) {
        let exit = Exit { status: FAILED, at_ns: crate::clock::realtime_ns() };
        self.born.send_replace(Some(watch::channel(Some(exit)).1));
    }

    /// Nobody has tried to start it.
    pub(crate) fn is_unstarted(&self) -> bool {
        self.with(|state| state.phase == Phase::Created)
    }

    pub(crate) fn is_started(&self) -> bool {
        self.with(|state| state.phase == Phase::Started)
    }

    /// Its pid while it lives: one that has exited may be another process's by now.
    pub(crate) fn live_pid(&self) -> Option<i32> {
        if self.exit().is_some() { None } else { self.with(|state| state.pid) }
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        self.with(|state| state.pid)
    }

    pub(crate) fn terminal(&self) -> Option<Terminal> {
        self.with(|state| state.terminal.clone())
    }

    /// How it ended, if it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        let born = self.born.borrow();
        born.as_ref().and_then(|exit| *exit.borrow())
    }

    /// Waits until it has been started and has ended.
    pub(crate) async fn wait(&self) -> Exit {
        let mut born = self.born.subscribe();
        let exit = born.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        match exit {
            Some(mut exit) => exit_of(&mut exit).await,
            // The sender is part of self, so it cannot be gone.
            None => std::future::pending().await,
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn a_process_starts_once() {
        let process = Process::new("p".into());
        assert!(process.is_unstarted());
        process.begin_start().expect("first");
        assert_eq!(process.begin_start().expect_err("second").code, Code::FailedPrecondition);
    }

    #[test]
    fn waiting_before_the_birth_sees_the_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let process = std::sync::Arc::new(Process::new("p".into()));
            let waiting = tokio::spawn({
                let process = std::sync::Arc::clone(&process);
                async move { process.wait().await }
            });
            tokio::task::yield_now().await;
            let (sender, exit) = watch::channel(None);
            process.set_born(7, exit, None);
            assert_eq!(process.live_pid(), Some(7));
            tokio::task::yield_now().await;
            let end = Exit { status: 3, at_ns: 9 };
            sender.send_replace(Some(end));
            assert_eq!(waiting.await.expect("join"), end);
            assert_eq!(process.live_pid(), None, "a pid is not used after its end");
        });
    }

    #[test]
    fn a_failed_birth_is_an_end() {
        let process = Process::new("p".into());
        process.begin_start().expect("start");
        process.set_failed();
        assert_eq!(process.exit().map(|exit| exit.status), Some(FAILED));
    }
}

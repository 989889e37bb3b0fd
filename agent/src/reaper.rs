//! The one place that waits for processes: everything that dies in the guest ends up here, as PID 1 inherits
//! whoever loses its parent.
//!
//! A container's first process is born of a helper, and its pid is known to the agent only when the helper
//! says so. It may be dead by then, so while a helper is at work the exits of strangers are kept for a moment.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::clock;
use crate::os::children::ChildSignals;

/// Exits of unknown processes kept at once; beyond that the oldest is forgotten.
const KEPT_MAX: usize = 1024;

/// How a process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 0-255, or 128 + signal.
    pub(crate) status: u32,
    /// Guest time, nanoseconds since the epoch.
    pub(crate) at_ns: i64,
}

/// Tells when a process ends; holds `None` before.
pub(crate) type ExitWatch = watch::Receiver<Option<Exit>>;

/// Collects exits and hands them to whoever watches the process.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<i32, watch::Sender<Option<Exit>>>,
    helpers: usize,
    kept: VecDeque<(i32, Exit)>,
}

/// While it lives, exits of unknown processes are kept.
#[derive(Debug)]
pub(crate) struct Births(Arc<Reaper>);

impl Drop for Births {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.helpers -= 1;
        if state.helpers == 0 {
            state.kept.clear();
        }
    }
}

impl Reaper {
    /// Announces that processes may be born whose pids come later.
    pub(crate) fn expect_births(self: &Arc<Self>) -> Births {
        self.lock().helpers += 1;
        Births(Arc::clone(self))
    }

    /// Watches a child of PID 1 that is alive, or died while births were expected.
    pub(crate) fn watch(&self, pid: i32) -> ExitWatch {
        let mut state = self.lock();
        if let Some(at) = state.kept.iter().position(|(dead, _)| *dead == pid) {
            let exit = state.kept.remove(at).map(|(_, exit)| exit);
            return watch::channel(exit).1;
        }
        state.watched.entry(pid).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// Reaps for as long as the guest lives. Returns only what broke the waiting.
    pub(crate) async fn run(&self, signals: ChildSignals) -> io::Error {
        loop {
            self.reap();
            if let Err(error) = signals.wait().await {
                return error;
            }
        }
    }

    fn reap(&self) {
        loop {
            let mut status = 0;
            // SAFETY: the status is written to a live integer.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            if let Some(status) = exit_status(status) {
                self.exited(pid, Exit { status, at_ns: clock::realtime_ns() });
            }
        }
    }

    fn exited(&self, pid: i32, exit: Exit) {
        let mut state = self.lock();
        if let Some(sender) = state.watched.remove(&pid) {
            sender.send_replace(Some(exit));
        } else if state.helpers > 0 {
            if state.kept.len() == KEPT_MAX {
                state.kept.pop_front();
            }
            state.kept.push_back((pid, exit));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the exit. A watch that nobody can answer any more reads as killed.
pub(crate) async fn exit_of(watch: &mut ExitWatch) -> Exit {
    match watch.wait_for(Option::is_some).await {
        Ok(exit) => exit.unwrap_or(LOST),
        Err(_) => LOST,
    }
}

const LOST: Exit = Exit { status: 128 + libc::SIGKILL.cast_unsigned(), at_ns: 0 };

/// What `waitpid` says about an end, as shells and OCI runtimes number it; `None` for a stop.
fn exit_status(status: i32) -> Option<u32> {
    if libc::WIFEXITED(status) {
        Some(libc::WEXITSTATUS(status).cast_unsigned())
    } else if libc::WIFSIGNALED(status) {
        Some(128 + libc::WTERMSIG(status).cast_unsigned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Exit = Exit { status: 3, at_ns: 7 };

    #[test]
    fn statuses_are_numbered_as_shells_do() {
        assert_eq!(exit_status(0), Some(0));
        assert_eq!(exit_status(42 << 8), Some(42));
        assert_eq!(exit_status(9), Some(137));
        // A real-time signal, which has no name.
        assert_eq!(exit_status(40), Some(168));
        assert_eq!(exit_status(0x137f), None);
    }

    #[test]
    fn an_exit_reaches_every_watch() {
        let reaper = Arc::new(Reaper::default());
        let (early, late) = (reaper.watch(10), reaper.watch(10));
        assert_eq!(*early.borrow(), None);
        reaper.exited(10, EXIT);
        assert_eq!((*early.borrow(), *late.borrow()), (Some(EXIT), Some(EXIT)));
    }

    #[test]
    fn who_dies_before_being_known_is_kept_while_births_are_expected() {
        let reaper = Arc::new(Reaper::default());
        reaper.exited(10, EXIT);
        let births = reaper.expect_births();
        reaper.exited(11, EXIT);
        assert_eq!(*reaper.watch(10).borrow(), None, "an orphan from before is not a birth");
        assert_eq!(*reaper.watch(11).borrow(), Some(EXIT));
        reaper.exited(12, EXIT);
        drop(births);
        assert_eq!(*reaper.watch(12).borrow(), None, "what nobody claimed is forgotten");
    }

    #[test]
    fn strangers_are_kept_in_bounded_number() {
        let reaper = Arc::new(Reaper::default());
        let _births = reaper.expect_births();
        for pid in 1..=i32::try_from(KEPT_MAX).expect("small") + 1 {
            reaper.exited(pid, EXIT);
        }
        assert_eq!(reaper.lock().kept.len(), KEPT_MAX);
        assert_eq!(*reaper.watch(1).borrow(), None);
        assert_eq!(*reaper.watch(2).borrow(), Some(EXIT));
    }
}

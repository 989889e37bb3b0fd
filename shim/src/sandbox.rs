//! containerd's Sandbox API: sandboxes that are made before their first container and outlive their last.

mod files;
mod service;
mod wanted;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use oci_spec::runtime::Spec;
use skep::{container::ErrorKind, sandbox::Sandbox};
use tokio::sync::watch;

use crate::convert::Failure;
pub(crate) use service::SandboxService;
pub(crate) use wanted::Wanted;

/// Where such a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Known and not booted.
    Created,
    /// Its VM runs.
    Running {
        /// The VMM's process.
        pid: u32,
        /// When it was ready.
        since: SystemTime,
    },
    /// Its VM has ended.
    Ended {
        /// When it had been ready, if ever.
        since: Option<SystemTime>,
        /// Exit status: 0 if it was asked to.
        status: u32,
        /// When.
        at: SystemTime,
    },
}

/// A sandbox of the Sandbox API.
#[derive(Debug)]
pub(crate) struct Managed {
    /// What was asked for.
    pub(crate) wanted: Wanted,
    phase: watch::Sender<Phase>,
    stopping: AtomicBool,
    give_up: watch::Sender<bool>,
}

impl Managed {
    /// One that has not been started.
    pub(crate) fn new(wanted: Wanted) -> Arc<Self> {
        Arc::new(Self {
            wanted,
            phase: watch::Sender::new(Phase::Created),
            stopping: AtomicBool::new(false),
            give_up: watch::Sender::new(false),
        })
    }

    /// Where it is in its life.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits for its end: status and time.
    pub(crate) async fn wait(&self) -> (u32, SystemTime) {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Ended { status, at, .. } = *phase.borrow_and_update() {
                return (status, at);
            }
            if phase.changed().await.is_err() {
                // Never: the sender is here.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Its VM is ready.
    pub(crate) fn started(&self, pid: u32, since: SystemTime) {
        self.phase.send_replace(Phase::Running { pid, since });
    }

    /// Its VM has ended, and nobody had asked for it.
    pub(crate) fn ended_by_itself(&self, status: u32) {
        if !self.stopping.load(Ordering::Acquire) {
            self.ended(status);
        }
    }

    /// Its VM has ended, or will never be made. The first end counts.
    pub(crate) fn ended(&self, status: u32) {
        self.phase.send_if_modified(|phase| {
            let since = match *phase {
                Phase::Ended { .. } => return false,
                Phase::Created => None,
                Phase::Running { since, .. } => Some(since),
            };
            *phase = Phase::Ended { since, status, at: SystemTime::now() };
            true
        });
    }

    /// It is being stopped: a start that is under way is of no use any more.
    pub(crate) fn give_up(&self) {
        self.stopping.store(true, Ordering::Release);
        self.give_up.send_replace(true);
    }

    /// Returns when it is being stopped.
    pub(crate) async fn given_up(&self) {
        let mut give_up = self.give_up.subscribe();
        if give_up.wait_for(|give_up| *give_up).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Completes the specification of a container that joins it; refuses one while it does not run.
    pub(crate) fn furnish(&self, spec: &mut Spec, sandbox: Option<&Sandbox>) -> Result<(), Failure> {
        let (Phase::Running { .. }, Some(sandbox)) = (self.phase(), sandbox) else {
            let text = "the sandbox does not run: start it first, or make another one";
            return Err(Failure::new(ErrorKind::FailedPrecondition, text));
        };
        if self.wanted.is_pod() {
            files::furnish(spec, &directory(sandbox))
                .map_err(|error| Failure::new(ErrorKind::InvalidArgument, &error))?;
        }
        Ok(())
    }
}

/// Where the files of a pod are.
fn directory(sandbox: &Sandbox) -> std::path::PathBuf {
    Path::new(sandbox.dir()).join("etc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_end_counts() {
        let managed = Managed::new(Wanted::plain(&skep::config::Config::default()));
        assert_eq!(managed.phase(), Phase::Created);
        managed.started(7, SystemTime::now());
        managed.ended_by_itself(137);
        managed.ended(0);
        assert_eq!(managed.wait().await.0, 137);
    }

    #[tokio::test]
    async fn who_stops_it_says_how_it_ended() {
        let managed = Managed::new(Wanted::plain(&skep::config::Config::default()));
        managed.started(7, SystemTime::now());
        managed.give_up();
        managed.given_up().await;
        managed.ended_by_itself(137);
        assert!(matches!(managed.phase(), Phase::Running { .. }));
        managed.ended(0);
        assert_eq!(managed.wait().await.0, 0);
    }
}

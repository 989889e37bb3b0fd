//! One task: a container as containerd knows it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use skep::{
    container::{Container, Exit, Process},
    sandbox::Sandbox,
};
use skep_containerd_api::{
    task::CreateTaskRequest,
    topics::{TaskExit, TaskOOM},
};
use tokio::sync::watch;

use crate::{convert::timestamp, events::Publisher};

/// How long init's exit waits to be told after those of the processes that ended with it.
const EXECS: Duration = Duration::from_secs(5);

/// What containerd named as standard streams, for `State`.
#[derive(Debug, Clone, Default)]
pub(crate) struct GivenStdio {
    /// Input.
    pub(crate) stdin: String,
    /// Output.
    pub(crate) stdout: String,
    /// Errors.
    pub(crate) stderr: String,
    /// Whether there is a terminal.
    pub(crate) terminal: bool,
}

/// One task: a container as containerd knows it.
#[derive(Debug)]
pub(crate) struct Task {
    /// The container.
    pub(crate) container: Arc<Container>,
    /// The sandbox it is in.
    pub(crate) sandbox: Arc<Sandbox>,
    /// Its bundle.
    pub(crate) bundle: String,
    given: Mutex<HashMap<String, GivenStdio>>,
    /// Closed when the event of a process's exit has been published.
    reports: Mutex<HashMap<String, watch::Receiver<()>>>,
    /// Kills for want of memory that have been told.
    oom_told: Mutex<u64>,
}

/// A lock that a panic elsewhere does not take away.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Task {
    /// The task of `request`, for which `container` was made.
    pub(crate) fn new(
        container: Arc<Container>,
        sandbox: Arc<Sandbox>,
        request: &CreateTaskRequest,
    ) -> Arc<Self> {
        let given = GivenStdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        Arc::new(Self {
            container,
            sandbox,
            bundle: request.bundle.clone(),
            given: Mutex::new(HashMap::from([(String::new(), given)])),
            reports: Mutex::default(),
            oom_told: Mutex::new(0),
        })
    }

    /// What containerd named for a process.
    pub(crate) fn given(&self, exec: &str) -> GivenStdio {
        lock(&self.given).get(exec).cloned().unwrap_or_default()
    }

    /// Remembers what containerd named for a process.
    pub(crate) fn remember(&self, exec: &str, given: GivenStdio) {
        lock(&self.given).insert(exec.to_owned(), given);
    }

    /// Forgets a process that was deleted.
    pub(crate) fn forget(&self, exec: &str) {
        lock(&self.given).remove(exec);
        lock(&self.reports).remove(exec);
    }

    /// The process that stands for the container on this host.
    pub(crate) fn pid(&self) -> u32 {
        self.container.pid()
    }

    /// Waits until the event of a process's exit is in the queue.
    pub(crate) async fn reported(&self, exec: &str, limit: Duration) {
        let Some(mut report) = lock(&self.reports).get(exec).cloned() else { return };
        let closed = async { while report.changed().await.is_ok() {} };
        if tokio::time::timeout(limit, closed).await.is_err() {
            tracing::warn!(container = self.container.id(), exec, "its exit has not been reported in time");
        }
    }

    /// Publishes kills for want of memory while init runs.
    pub(crate) fn report_oom(self: &Arc<Self>, publisher: &Publisher) {
        let (task, publisher) = (Arc::clone(self), publisher.clone());
        tokio::spawn(async move {
            let mut kills = task.container.oom_kills();
            let told = async {
                while kills.changed().await.is_ok() {
                    let kills = *kills.borrow_and_update();
                    task.tell_oom(kills, &publisher);
                }
            };
            tokio::select! {
                () = told => {}
                _ = task.container.init().wait() => {}
            }
        });
    }

    /// Publishes that processes were killed, unless that has been told.
    fn tell_oom(&self, kills: u64, publisher: &Publisher) {
        let mut told = lock(&self.oom_told);
        if kills > *told {
            *told = kills;
            publisher
                .publish(&TaskOOM { container_id: self.container.id().to_owned(), ..TaskOOM::default() });
        }
    }

    /// Publishes a process's exit when it comes: after its start, and init's after all others'.
    pub(crate) fn report_exit(self: &Arc<Self>, process: &Arc<Process>, publisher: &Publisher) {
        let (done, report) = watch::channel(());
        lock(&self.reports).insert(process.exec_id().to_owned(), report);
        let (task, process, publisher) = (Arc::clone(self), Arc::clone(process), publisher.clone());
        tokio::spawn(async move {
            let exit = match process.exec_id() {
                "" => {
                    let exit = task.container.exited().await;
                    wait_for_execs(&task).await;
                    exit
                }
                _ => process.wait().await,
            };
            // Whoever starts it at this moment has to publish that first.
            let held = process.hold().await;
            drop(held);
            task.tell_oom(exit.oom_kills, &publisher);
            publisher.publish(&exit_event(&task, &process, &exit));
            drop(done);
        });
    }
}

async fn wait_for_execs(task: &Task) {
    let started = || task.container.execs().into_iter().filter(|process| process.was_started());
    let all = async {
        for process in started() {
            process.wait().await;
        }
    };
    if tokio::time::timeout(EXECS, all).await.is_err() {
        task.container.end_execs();
    }
    for process in started() {
        task.reported(process.exec_id(), EXECS).await;
    }
}

fn exit_event(task: &Task, process: &Process, exit: &Exit) -> TaskExit {
    if let Some(reason) = &exit.reason {
        tracing::warn!(container = task.container.id(), exec = process.exec_id(), "ended: {reason}");
    }
    let id = task.container.id();
    TaskExit {
        container_id: id.to_owned(),
        id: if process.exec_id().is_empty() { id } else { process.exec_id() }.to_owned(),
        pid: task.pid(),
        exit_status: exit.status,
        exited_at: Some(timestamp(exit.at)).into(),
        ..TaskExit::default()
    }
}

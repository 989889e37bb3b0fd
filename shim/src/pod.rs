//! What one shim looks after: a sandbox and the tasks in it.

mod asked;
mod boot;
mod confine;
mod create;
mod figures;
mod managed;
mod room;
mod told;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use oci_spec::runtime::LinuxResources;
use skep::{
    config::Config,
    container::{Container, ErrorKind, Exit, stdio::Streams},
    sandbox::Sandbox,
};
use skep_containerd_api::topics::TaskDelete;
use tokio::sync::watch;

use crate::{
    bundle::{Bundle, ShimState},
    convert::{Failure, optional_timestamp},
    events::Publisher,
    poststop::Notes,
    sandbox::Managed,
    task::{Task, lock},
};

/// How long a deletion waits for the exit's event to be on its way.
const REPORT: Duration = Duration::from_secs(10);

enum Slot {
    /// Taken by a creation that is under way; sending `true` gives it up.
    Creating(watch::Sender<bool>),
    Ready(Arc<Task>),
}

/// The sandbox and its tasks.
pub(crate) struct Pod {
    namespace: String,
    group: String,
    socket: PathBuf,
    /// The bundle that this shim was started for.
    bundle: Bundle,
    config: Config,
    /// Where events go.
    pub(crate) publisher: Publisher,
    /// Standard streams that containerd connects to.
    pub(crate) streams: Arc<Streams>,
    /// Locked while the sandbox is made or destroyed.
    sandbox: tokio::sync::Mutex<Option<Arc<Sandbox>>>,
    /// If containerd makes and ends the sandbox by its Sandbox API, and not by tasks.
    managed: Mutex<Option<Arc<Managed>>>,
    tasks: Mutex<HashMap<String, Slot>>,
    overhead_told: told::Told,
    confinement: confine::Confinement,
}

impl Pod {
    /// A pod without sandbox or tasks; `state` and `bundle` are those of the `start` that began it.
    pub(crate) fn new(
        namespace: String,
        state: ShimState,
        bundle: Bundle,
        config: Config,
        publisher: Publisher,
    ) -> Self {
        Self {
            namespace,
            group: state.group,
            socket: state.socket,
            bundle,
            config,
            publisher,
            streams: Arc::default(),
            sandbox: tokio::sync::Mutex::new(None),
            managed: Mutex::default(),
            tasks: Mutex::default(),
            overhead_told: told::Told::default(),
            confinement: confine::Confinement::default(),
        }
    }

    /// A task by its id.
    pub(crate) fn task(&self, id: &str) -> Result<Arc<Task>, Failure> {
        match lock(&self.tasks).get(id) {
            Some(Slot::Ready(task)) => Ok(Arc::clone(task)),
            Some(Slot::Creating(_)) | None => Err(Failure::not_found(&format!("container {id} not found"))),
        }
    }

    /// The processes of this host that stand for its containers and its sandbox.
    fn pids(&self, sandbox: Option<&Sandbox>) -> Vec<u32> {
        let tasks = lock(&self.tasks);
        let containers = tasks.values().filter_map(|slot| match slot {
            Slot::Ready(task) => Some(task.pid()),
            Slot::Creating(_) => None,
        });
        containers.chain(sandbox.map(Sandbox::vmm_pid)).collect()
    }

    /// Whether there is no task, not even one being created, and no sandbox that stays without.
    pub(crate) fn is_done(&self) -> bool {
        lock(&self.tasks).is_empty() && lock(&self.managed).is_none()
    }

    /// Where hooks of a container with this bundle are noted.
    fn notes(&self, bundle: &Path) -> Notes {
        let managed = lock(&self.managed).is_some();
        Notes::in_bundle(if managed { self.bundle.clone() } else { Bundle::new(bundle.to_owned()) })
    }

    /// The last hooks of a container that is gone. The note of them goes first: twice would be worse than not at all.
    async fn finish_hooks(&self, container: &Container, bundle: &Path) {
        self.notes(bundle).remove(container.id());
        container.poststop().await;
    }

    /// Removes a task whose init does not run, and with the last the sandbox.
    pub(crate) async fn delete(&self, task: &Arc<Task>) -> Result<Exit, Failure> {
        let id = task.container.id();
        let init = task.container.init();
        // Outside of the lock: a guest that never ends its output keeps nobody else waiting.
        task.container.drain().await;
        {
            // Held until the sandbox is gone, so that a creation that comes meanwhile makes a new one.
            let mut slot = self.sandbox.lock().await;
            let held = init.hold().await;
            // A sandbox of the Sandbox API stays, unless it was stopped before.
            let stays = lock(&self.managed).is_some();
            let last = !stays && lock(&self.tasks).len() == 1;
            task.container.delete(last || slot.is_none()).await?;
            drop(held);
            if last {
                destroy(&mut slot).await;
            }
            self.confinement.remove(id, slot.as_deref());
        }
        self.finish_hooks(&task.container, Path::new(&task.bundle)).await;
        // Never started and never killed: deleting it was its end.
        let exit = match init.exit() {
            Some(exit) => exit,
            None => init.wait().await,
        };
        task.reported("", REPORT).await;
        lock(&self.tasks).remove(id);
        self.publisher.publish(&TaskDelete {
            container_id: id.to_owned(),
            pid: task.pid(),
            exit_status: exit.status,
            exited_at: optional_timestamp(Some(exit.at)),
            ..TaskDelete::default()
        });
        Ok(exit)
    }

    /// Changes a task's limits.
    pub(crate) async fn update(&self, id: &str, mut resources: LinuxResources) -> Result<(), Failure> {
        let task = self.task(id)?;
        if self.confinement.has(id) {
            let change = confine::take(&mut resources)?;
            if let Some(sandbox) = &*self.sandbox.lock().await {
                self.confinement.update(id, change, sandbox)?;
            }
        }
        Ok(task.container.update(resources).await?)
    }

    /// Destroys the sandbox, whatever runs in it.
    pub(crate) async fn end(&self) {
        let creations: Vec<_> = lock(&self.tasks)
            .iter()
            .filter(|(_, slot)| matches!(slot, Slot::Creating(_)))
            .map(|(id, _)| id.clone())
            .collect();
        for id in creations {
            self.give_up(&id).await;
        }
        destroy(&mut *self.sandbox.lock().await).await;
    }

    async fn end_if_empty(&self) {
        let mut slot = self.sandbox.lock().await;
        if self.is_done() {
            destroy(&mut slot).await;
        }
    }
}

/// What can't be undone stays in the journal for `delete` and `skep gc`: a task that can't be deleted helps nobody.
async fn destroy(slot: &mut Option<Arc<Sandbox>>) {
    if let Some(sandbox) = slot.take()
        && let Err(errors) = sandbox.destroy().await
    {
        tracing::error!(sandbox = sandbox.id(), "{errors}");
    }
}

fn given_up_failure() -> Failure {
    Failure::new(ErrorKind::Unavailable, "the creation was given up")
}

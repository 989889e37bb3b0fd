//! Figures of a pod's tasks: of its own container those of the VM beyond the others'.

use std::sync::Arc;

use skep::{
    container::{ErrorKind, Guest as _},
    sandbox::Sandbox,
};
use skep_containerd_api::metrics::Metrics;

use super::{Pod, Slot};
use crate::{convert::Failure, metrics, task::Task, task::lock};

impl Pod {
    /// What a task uses.
    pub(crate) async fn figures(&self, task: &Task) -> Result<Metrics, Failure> {
        let sandbox = &task.sandbox;
        let mut metrics = if task.container.is_placeholder() {
            self.overhead(sandbox).await?
        } else {
            let stats = task.container.stats().await?;
            metrics::metrics(&stats, sandbox.size(), sandbox.timings().elapsed())
        };
        // Once for each pod, so that figures add up.
        if task.container.is_placeholder() || !self.has_own_figures() {
            metrics.network = metrics::network(sandbox);
        }
        Ok(metrics)
    }

    /// Whether somebody is asked for what belongs to the pod and to no container of it.
    fn has_own_figures(&self) -> bool {
        let is_own = |slot: &Slot| matches!(slot, Slot::Ready(task) if task.container.is_placeholder());
        lock(&self.managed).is_some() || lock(&self.tasks).values().any(is_own)
    }

    /// The VM's cost less its containers' own figures.
    async fn overhead(&self, sandbox: &Sandbox) -> Result<Metrics, Failure> {
        let tasks: Vec<Arc<Task>> = lock(&self.tasks)
            .values()
            .filter_map(|slot| match slot {
                Slot::Ready(task) if !task.container.is_placeholder() => Some(Arc::clone(task)),
                Slot::Ready(_) | Slot::Creating(_) => None,
            })
            .collect();
        let mut shares = Vec::new();
        for task in tasks {
            match task.container.stats().await {
                Ok(stats) => {
                    let age = sandbox.timings().elapsed();
                    shares.push(metrics::share(&metrics::metrics(&stats, sandbox.size(), age)));
                }
                // Deleted meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Last, so that what the containers have used is in it.
        let cost = sandbox.cost().map_err(|error| Failure::new(ErrorKind::Unknown, &error))?;
        let mut rest = cost.beyond(shares);
        rest.processor_us = self.overhead_told.at_least(rest.processor_us);
        Ok(metrics::of_cost(rest, sandbox.size()))
    }
}

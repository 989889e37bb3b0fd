//! A pod whose sandbox containerd makes and ends by its Sandbox API.

use std::{sync::Arc, time::SystemTime};

use skep::{
    container::{ErrorKind, KILLED, of_network},
    sandbox::{Sandbox, SandboxRequest},
};

use super::{Pod, destroy, given_up_failure};
use crate::{
    convert::{Failure, chain},
    sandbox::{Managed, Phase, Wanted},
    task::lock,
};

impl Pod {
    /// Whether this shim is that sandbox's.
    pub(crate) fn check_name(&self, id: &str) -> Result<(), Failure> {
        if id == self.group { Ok(()) } else { Err(Failure::not_found(&format!("sandbox {id} not found"))) }
    }

    /// Notes that the sandbox is containerd's to start and to stop.
    pub(crate) fn manage(&self, wanted: Wanted) -> Result<(), Failure> {
        let mut managed = lock(&self.managed);
        if managed.is_some() || !lock(&self.tasks).is_empty() {
            let text = format!("sandbox {} exists already", self.group);
            return Err(Failure::new(ErrorKind::AlreadyExists, &text));
        }
        *managed = Some(Managed::new(wanted));
        Ok(())
    }

    /// The sandbox of the Sandbox API.
    pub(crate) fn managed(&self, id: &str) -> Result<Arc<Managed>, Failure> {
        self.check_name(id)?;
        lock(&self.managed)
            .clone()
            .ok_or_else(|| Failure::not_found(&format!("sandbox {id} was not created")))
    }

    /// The VM while there is one.
    pub(crate) async fn vm(&self) -> Option<Arc<Sandbox>> {
        self.sandbox.lock().await.clone()
    }

    /// The configuration.
    pub(crate) fn config(&self) -> &skep::config::Config {
        &self.config
    }

    /// Boots it; answers its process and when it was ready.
    pub(crate) async fn start_managed(&self, id: &str) -> Result<(u32, SystemTime), Failure> {
        let managed = self.managed(id)?;
        let mut slot = self.sandbox.lock().await;
        if !matches!(managed.phase(), Phase::Created) {
            let text = format!("sandbox {id} was started before");
            return Err(Failure::new(ErrorKind::FailedPrecondition, &text));
        }
        let wanted = &managed.wanted;
        let boot = self.boot(SandboxRequest {
            namespace: self.namespace.clone(),
            id: self.group.clone(),
            os: wanted.os(),
            hostname: wanted.hostname.clone(),
            options: wanted.options,
            network: wanted.network.clone(),
            settings: wanted.settings.clone(),
            cgroup: wanted.cgroup.clone(),
        });
        let sandbox = tokio::select! {
            booted = boot => booted?,
            // Dropping the boot undoes it.
            () = managed.given_up() => return Err(given_up_failure()),
        };
        if let Err(failure) = prepare(&managed, &sandbox).await {
            destroy(&mut Some(sandbox)).await;
            return Err(failure);
        }
        let (pid, since) = (sandbox.vmm_pid(), SystemTime::now());
        managed.started(pid, since);
        let watched = Arc::clone(&sandbox);
        *slot = Some(sandbox);
        drop(slot);
        tokio::spawn(async move {
            watched.wait_exit().await;
            // Whoever stops it says so by himself.
            managed.ended_by_itself(KILLED);
        });
        Ok((pid, since))
    }

    /// Ends it and gives back what it holds of the host; once more, and after its end, too.
    pub(crate) async fn stop_managed(&self, id: &str) -> Result<(), Failure> {
        let managed = self.managed(id)?;
        managed.give_up();
        destroy(&mut *self.sandbox.lock().await).await;
        managed.ended(0);
        Ok(())
    }
}

/// What can be done for its containers once their network is known.
async fn prepare(managed: &Managed, sandbox: &Sandbox) -> Result<(), Failure> {
    let network = sandbox.take_network().await.map_err(|error| Failure::new(of_network(&error), &error))?;
    managed
        .wanted
        .write_files(sandbox, network.as_ref())
        .map_err(|error| Failure::new(ErrorKind::Unknown, &format!("files of the pod: {}", chain(&error))))
}

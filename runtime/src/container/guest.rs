//! What a container needs of the sandbox it is in.

use std::{fmt::Debug, io, path::Path, process::Command, sync::Arc, time::Duration};

use async_trait::async_trait;
use skep_protocol::{CallError, Code, Session, api};

use super::ContainerError;
use crate::{
    config::PodOptions, guest::GuestOs, hypervisor::ExitCause, journal::Journal, network::NetworkError,
    sandbox::Sandbox,
};

/// How long to wait for news of the VM's end after the agent became unreachable.
pub(super) const NEWS: Duration = Duration::from_secs(2);

/// How large a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory: u64,
}

impl From<&PodOptions> for Size {
    fn from(options: &PodOptions) -> Self {
        Self { vcpus: options.vcpus.get(), memory: options.memory.bytes() }
    }
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestEnd {
    /// For people.
    pub reason: String,
    /// This host's kernel ended it for want of memory.
    pub out_of_memory: bool,
}

/// What a container needs of its sandbox.
#[async_trait]
pub trait Guest: Debug + Send + Sync {
    /// The connection to the agent.
    fn session(&self) -> &Session;

    /// Where the resources of the host are recorded.
    fn journal(&self) -> &Arc<Journal>;

    /// The process that stands for the sandbox on this host.
    fn pid(&self) -> u32;

    /// What starts a process that stands for container `id` on this host, see [`crate::stand_in`]; nothing where none
    /// is wanted.
    fn stand_in(&self, id: &str) -> io::Result<Option<Command>>;

    /// The directory that the guest sees.
    fn share_dir(&self) -> &Path;

    /// Its operating system.
    fn os(&self) -> GuestOs;

    /// How large its VM is: no container can have more.
    fn size(&self) -> Size;

    /// Notes that a phase is over.
    fn mark(&self, phase: &str);

    /// What the guest has to be told of its network before a process runs; nothing once it knows.
    async fn take_network(&self) -> Result<Option<api::Network>, NetworkError>;

    /// The guest knows its network.
    fn network_settled(&self);

    /// Returns when the VM has ended; any number of callers.
    async fn ended(&self) -> GuestEnd;

    /// Ends the VM at once.
    async fn kill(&self);
}

#[async_trait]
impl Guest for Sandbox {
    fn session(&self) -> &Session {
        self.session()
    }

    fn journal(&self) -> &Arc<Journal> {
        self.journal()
    }

    fn pid(&self) -> u32 {
        self.vmm_pid()
    }

    fn stand_in(&self, id: &str) -> io::Result<Option<Command>> {
        let mut command = crate::stand_in::command(id)?;
        if let Some(netns) = self.network().namespace() {
            crate::os::enter_netns(&mut command, netns);
        }
        Ok(Some(command))
    }

    fn share_dir(&self) -> &Path {
        self.share_dir()
    }

    fn os(&self) -> GuestOs {
        self.os()
    }

    fn size(&self) -> Size {
        self.options().into()
    }

    fn mark(&self, phase: &str) {
        self.timings().mark(phase);
    }

    async fn take_network(&self) -> Result<Option<api::Network>, NetworkError> {
        self.take_network().await
    }

    fn network_settled(&self) {
        self.network().settled();
    }

    async fn ended(&self) -> GuestEnd {
        let exit = self.wait_exit().await;
        let out_of_memory = matches!(exit.cause, ExitCause::OutOfMemory { .. });
        GuestEnd { reason: exit.to_string(), out_of_memory }
    }

    async fn kill(&self) {
        if let Err(error) = self.vm().kill().await {
            tracing::error!(sandbox = self.id(), %error, "killing the VM");
        }
    }
}

/// An agent that can't be reached is most often a VM that has ended, and how it ended is the better message.
pub(super) async fn explain(guest: &dyn Guest, operation: &'static str, error: CallError) -> ContainerError {
    if error.code == Code::UNAVAILABLE
        && let Ok(end) = tokio::time::timeout(NEWS, guest.ended()).await
    {
        return ContainerError::Lost { operation, reason: end.reason };
    }
    error.into()
}

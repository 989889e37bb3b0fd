//! The sandbox of a pod: its VM booted, and watched.

use std::sync::Arc;

use skep::{
    container::{ErrorKind, of_network},
    sandbox::{DirError, Entry, Sandbox, SandboxError, SandboxRequest},
};

use super::Pod;
use crate::convert::Failure;

/// Longest host name that is made up: what DNS allows in a label.
const MAX_HOSTNAME: usize = 63;

impl Pod {
    /// Makes the sandbox.
    pub(super) async fn boot(&self, mut request: SandboxRequest) -> Result<Arc<Sandbox>, Failure> {
        // Under runc a container without a name of its own has the host's; a guest is not the host.
        request.hostname.get_or_insert_with(|| self.group.chars().take(MAX_HOSTNAME).collect());
        let sandbox =
            Sandbox::create(&self.config, request).await.map_err(|error| sandbox_failure(&error))?;
        let sandbox = Arc::new(sandbox);
        // So that whoever undoes this sandbox after a kill of the shim removes the shim's socket as well, and nobody
        // finds a shim whose sandbox is gone.
        if let Err(error) = sandbox.journal().record(Entry::File { path: self.socket.clone() }) {
            tracing::warn!(%error, "the shim's socket is not in the journal");
        }
        let watched = Arc::clone(&sandbox);
        tokio::spawn(async move {
            let exit = watched.wait_exit().await;
            tracing::info!(sandbox = watched.id(), "the VM has ended: {exit}");
        });
        Ok(sandbox)
    }
}

/// What kind of failure it is that a sandbox could not be made.
pub(super) fn sandbox_failure(error: &SandboxError) -> Failure {
    let kind = match error {
        SandboxError::Request { .. } => ErrorKind::InvalidArgument,
        SandboxError::Network(error) => of_network(error),
        SandboxError::Guest(_) | SandboxError::Hypervisor(_) => ErrorKind::FailedPrecondition,
        SandboxError::Dir(DirError::Exists { .. }) => ErrorKind::AlreadyExists,
        SandboxError::Connect { .. } => ErrorKind::DeadlineExceeded,
        SandboxError::Ended { .. } => ErrorKind::Unavailable,
        _ => ErrorKind::Unknown,
    };
    Failure::new(kind, error)
}

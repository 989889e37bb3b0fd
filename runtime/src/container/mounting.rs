//! What of the host a container shares, put before the guest and taken away again, with nobody kept waiting for disks.

use std::sync::{Arc, Mutex, PoisonError};

use super::{ContainerError, Guest};
use crate::share::Share;

/// Takes a container's share of the host away from the guest.
pub(super) async fn detach(guest: &Arc<dyn Guest>, share: &Arc<Mutex<Share>>) {
    let (guest, share) = (Arc::clone(guest), Arc::clone(share));
    let undone = blocking("unmounting", move || {
        share.lock().unwrap_or_else(PoisonError::into_inner).detach(guest.journal())
    });
    match undone.await {
        Ok(problems) => {
            for problem in problems {
                tracing::warn!(%problem, "undoing a container's share");
            }
        }
        Err(error) => tracing::warn!(%error, "undoing a container's share"),
    }
}

/// Runs what may block (mounting can wait for disks and servers) without stopping everything else.
pub(super) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ContainerError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ContainerError::Internal { operation, reason: error.to_string() })
}

//! Systems without network namespaces.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use skep_protocol::api;

use super::{NetworkError, NetworkRequest, Taken};
use crate::hypervisor::Nic;
use crate::journal::Journal;

/// No network.
#[derive(Debug)]
pub struct Network;

#[allow(clippy::unused_self, reason = "as on Linux")]
impl Network {
    /// Refuses a namespace.
    pub fn open(request: &NetworkRequest, _: usize, _: &str) -> Result<Self, NetworkError> {
        match request {
            NetworkRequest::Own => Ok(Self),
            NetworkRequest::Join(path) => Err(NetworkError::Unsupported(path.clone())),
        }
    }

    /// None.
    pub fn nics(&self) -> Vec<Nic> {
        Vec::new()
    }

    /// None.
    pub fn taps(&self) -> Result<Vec<Arc<OwnedFd>>, NetworkError> {
        Ok(Vec::new())
    }

    /// None.
    pub fn namespace(&self) -> Option<Arc<OwnedFd>> {
        None
    }

    /// Whether `path` is the sandbox's namespace: it has none.
    pub fn is(&self, _: &Path) -> bool {
        false
    }

    /// Nothing to take.
    pub fn take(&self, _: &Journal) -> Result<Option<api::Network>, NetworkError> {
        Ok(None)
    }

    /// Nothing to remember.
    pub fn settled(&self) {}
}

/// Nothing can have been taken.
#[allow(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(crate) fn release(taken: &Taken<'_>) -> Result<(), NetworkError> {
    tracing::debug!(netns = %taken.netns.display(), taken.interface, "not of this system");
    Ok(())
}

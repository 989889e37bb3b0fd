//! Processors and memory nodes that kubelet's policies give to a pod's containers (`static` CPU and memory managers).
//!
//! Their numbers are this host's. A container of a pod is one of several in a VM, which has a processor for each that the
//! pod may use at once, under numbers of its own: so nothing of them reaches the guest, and the VMM is confined to what the
//! pod's containers have together.

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, MutexGuard},
};

use oci_spec::runtime::{LinuxResources, Spec};
use skep::{
    cgroup::{CgroupError, HostSets},
    container::ErrorKind,
    sandbox::Sandbox,
};

use crate::{convert::Failure, task::lock};

/// What each container of a pod has been given.
#[derive(Default)]
pub(super) struct Confinement(Mutex<HashMap<String, HostSets>>);

/// Takes what is the host's out of a container's specification.
pub(super) fn take_from(spec: &mut Spec) -> Result<HostSets, Failure> {
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    resources.map_or_else(|| Ok(HostSets::default()), take)
}

/// Takes what is the host's out of limits.
pub(super) fn take(resources: &mut LinuxResources) -> Result<HostSets, Failure> {
    HostSets::take(resources)
        .map_err(|error| Failure::new(ErrorKind::InvalidArgument, &format!("linux.resources: {error}")))
}

impl Confinement {
    /// Gives a new container its share.
    pub(super) fn add(&self, id: &str, sets: HostSets, sandbox: &Sandbox) -> Result<(), Failure> {
        self.change(sandbox, |all| {
            all.insert(id.to_owned(), sets);
        })
    }

    /// Whether a container is in it, whose limits' numbers are therefore the host's.
    pub(super) fn has(&self, id: &str) -> bool {
        self.all().contains_key(id)
    }

    /// Gives a container another share; what is not named stays.
    pub(super) fn update(&self, id: &str, change: HostSets, sandbox: &Sandbox) -> Result<(), Failure> {
        self.change(sandbox, |all| {
            if let Some(sets) = all.get_mut(id) {
                *sets = std::mem::take(sets).changed_by(change);
            }
        })
    }

    /// Takes a container's share back.
    pub(super) fn remove(&self, id: &str, sandbox: Option<&Sandbox>) {
        let Some(sandbox) = sandbox.filter(|_| self.has(id)) else {
            self.all().remove(id);
            return;
        };
        let removed = self.change(sandbox, |all| {
            all.remove(id);
        });
        if let Err(failure) = removed {
            // It goes on with more than it needs.
            tracing::warn!(container = id, "{failure}");
            self.all().remove(id);
        }
    }

    fn change(
        &self,
        sandbox: &Sandbox,
        change: impl FnOnce(&mut HashMap<String, HostSets>),
    ) -> Result<(), Failure> {
        let mut all = self.all();
        let mut next = all.clone();
        change(&mut next);
        let (before, after) = (HostSets::of_all(all.values()), HostSets::of_all(next.values()));
        if before != after && !sandbox.confine(&after).map_err(|error| failure(&error))? {
            tracing::warn!(
                "the VMM is on all of the host's processors and memory nodes, and not those of its pod, since there is \
                 no cgroup with the cpuset controller to confine it"
            );
        }
        *all = next;
        Ok(())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, HostSets>> {
        lock(&self.0)
    }
}

/// What the host does not have, or not there, is the caller's fault.
fn failure(error: &CgroupError) -> Failure {
    let kind = match error {
        CgroupError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied)
                || source.raw_os_error() == Some(rustix::io::Errno::RANGE.raw_os_error()) =>
        {
            ErrorKind::InvalidArgument
        }
        _ => ErrorKind::Unknown,
    };
    Failure::new(kind, error)
}

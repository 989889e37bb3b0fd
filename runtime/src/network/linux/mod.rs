//! Taking over what is in a network namespace.

mod inventory;
mod redirect;
mod steer;
mod tap;

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_netlink::{Netns, NetnsError, Route};
use skep_protocol::api;

use super::attachments::Attachments;
use super::plan::{Device, assign, choose, is_tap};
use super::traffic::HostEnd;
use super::{Loopback, NetworkError, NetworkRequest, Taken};
use crate::hypervisor::Nic;
use crate::journal::{Entry, Journal};

impl From<NetnsError> for NetworkError {
    fn from(error: NetnsError) -> Self {
        Self::Namespace { path: error.path, reason: error.why }
    }
}

/// The network namespace in which the VMM lives.
#[derive(Debug)]
pub(super) struct Place {
    netns: Netns,
    /// Given to the VMM.
    descriptor: Arc<OwnedFd>,
    /// Whether it goes with the sandbox.
    own: bool,
    /// There is nothing in it to look for.
    empty: bool,
}

impl Place {
    /// Finds or makes the namespace; `name` is the VM's, `room` the number of its devices where nothing is there yet,
    /// `dir` the sandbox's directory.
    pub(super) fn open(
        request: &NetworkRequest,
        room: usize,
        name: &str,
        dir: &Path,
        journal: &Journal,
    ) -> Result<(Self, Vec<Device>, Attachments), NetworkError> {
        let mut cni = Attachments::default();
        let (netns, own, count) = match request {
            NetworkRequest::Own => (Netns::create()?, true, room),
            NetworkRequest::Nothing => (Netns::create()?, true, 0),
            NetworkRequest::Cni(request) => {
                let netns = Netns::create()?;
                // Plugins are told a path, and may remember it.
                let path = bind(&netns, dir.join("netns"), journal)?.display().to_string();
                cni = Attachments::new(request.attachments(|_| (path.clone(), Vec::new())));
                (netns, true, request.count())
            }
            NetworkRequest::Join(path) => {
                let netns = Netns::open(path)?;
                let found = netns.run(|| inventory::look(&mut route()?))?;
                if found.iter().any(is_tap) {
                    return Err(NetworkError::OfAnother(path.clone()));
                }
                let found = choose(found)?.len();
                (netns, false, if found == 0 { room } else { found })
            }
        };
        let descriptor =
            netns.as_fd().try_clone_to_owned().map_err(NetworkError::system("copy a descriptor"))?;
        let place = Self { netns, descriptor: Arc::new(descriptor), own, empty: own && count == 0 };
        Ok((place, Device::of(name, count), cni))
    }

    /// The VM's devices, as its VMM takes them.
    #[expect(clippy::unused_self, reason = "as on FreeBSD")]
    pub(super) fn nics(&self, devices: &[Device]) -> Vec<Nic> {
        devices.iter().map(|device| Nic { tap: device.tap(), mac: device.mac() }).collect()
    }

    /// Makes the taps of the VM's devices, in their order; they last as long as their descriptors.
    pub(super) fn taps(&self, devices: &[Device]) -> Result<Vec<Arc<OwnedFd>>, NetworkError> {
        self.netns.run(|| {
            let open = |(number, device): (usize, &Device)| {
                let name = device.tap();
                tap::open(&name, number)
                    .map(Arc::new)
                    .map_err(NetworkError::system(format!("make the tap {name}")))
            };
            devices.iter().enumerate().map(open).collect()
        })
    }

    /// The namespace, for the VMM.
    #[expect(clippy::unnecessary_wraps, reason = "as on FreeBSD")]
    pub(super) fn namespace(&self) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(&self.descriptor))
    }

    /// Whether `path` is this one.
    pub(super) fn is(&self, path: &Path) -> bool {
        self.netns.is(path)
    }

    /// Joins what there is to the devices; what the guest has to be told of each.
    pub(super) fn take(
        &self,
        devices: &[Device],
        _: &Attachments,
        journal: &Journal,
    ) -> Result<Vec<api::Interface>, NetworkError> {
        if self.empty {
            return Ok(Vec::new());
        }
        self.netns.run(|| self.take_inside(devices, journal))
    }

    fn take_inside(
        &self,
        devices: &[Device],
        journal: &Journal,
    ) -> Result<Vec<api::Interface>, NetworkError> {
        let mut route = route()?;
        let found = choose(inventory::look(&mut route)?)?;
        let mut interfaces = Vec::new();
        for (found, device) in assign(found, devices)? {
            let interface = &found.interface.name;
            // A namespace of the sandbox's own goes with the VMM, and all that is in it.
            let entry = if self.own {
                None
            } else {
                let (netns, interface) = (self.netns.path().to_owned(), interface.clone());
                Some(journal.record(Entry::Redirect { netns, interface })?)
            };
            let taken = redirect::take(&mut route, &found, &device.tap());
            if let (Err(NetworkError::InUse { .. }), Some(entry)) = (&taken, entry) {
                journal.strike(entry)?;
            }
            taken?;
            tracing::debug!(interface, tap = device.tap(), "taken over");
            interfaces.push(found.interface);
        }
        Ok(interfaces)
    }

    /// What the host's ends of devices carried, in their order.
    pub(super) fn host_ends(&self, devices: &[Device]) -> Result<Vec<HostEnd>, NetworkError> {
        if devices.is_empty() {
            return Ok(Vec::new());
        }
        self.netns.run(|| {
            let mut route = route()?;
            let carried = |device: &Device| {
                let action = format!("read what {} carried", device.tap());
                tap::carried(&mut route, device.number()).map_err(NetworkError::system(action))
            };
            devices.iter().map(carried).collect()
        })
    }

    /// Where connections to the namespace's loopback arrive; none for a namespace of the sandbox's own, which nobody
    /// enters to dial.
    pub(super) fn loopback(&self) -> Result<Option<Loopback>, NetworkError> {
        if self.own {
            return Ok(None);
        }
        let (netns, descriptor) = (&self.netns, &self.descriptor);
        let listeners =
            netns.run(|| steer::listen().map_err(NetworkError::system("listen for forwarded ports")))?;
        let steering = steer::Steering::to(&listeners, descriptor.as_fd())
            .map_err(NetworkError::system("bring connections to the pod's loopback here (BPF_SK_LOOKUP)"))?;
        Ok(Some(Loopback { listeners, steering: Box::new(steering) }))
    }
}

/// Gives a namespace a path.
fn bind(netns: &Netns, path: PathBuf, journal: &Journal) -> Result<PathBuf, NetworkError> {
    let failed =
        |error| NetworkError::system(format!("mount the network namespace on {}", path.display()))(error);
    std::fs::File::create(&path).map_err(failed)?;
    journal.record(Entry::Mount { target: path.clone() })?;
    let source = format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd());
    rustix::mount::mount_bind(source, &path).map_err(|error| failed(error.into()))?;
    Ok(path)
}

/// There are no taps that outlive their descriptors.
#[expect(clippy::unnecessary_wraps, reason = "as on FreeBSD")]
pub(crate) fn remove_tap(name: &str, _: &str, _: Option<&str>) -> Result<(), NetworkError> {
    tracing::debug!(name, "not of this system");
    Ok(())
}

/// There are no jails.
#[expect(clippy::unnecessary_wraps, reason = "as on FreeBSD")]
pub(crate) fn remove_jail(name: &str) -> Result<(), NetworkError> {
    tracing::debug!(name, "not of this system");
    Ok(())
}

fn route() -> Result<Route, NetworkError> {
    Route::open().map_err(NetworkError::system("open a netlink socket"))
}

/// Gives an interface back to its namespace. That there is none any more is no error.
pub(crate) fn release(taken: &Taken<'_>) -> Result<(), NetworkError> {
    if !taken.netns.exists() {
        return Ok(());
    }
    match Netns::open(taken.netns) {
        Ok(netns) => netns.run(|| redirect::release(&mut route()?, taken.interface)),
        // The file is there, the namespace is not: somebody has unmounted it.
        Err(error) => {
            tracing::debug!("{error}");
            Ok(())
        }
    }
}

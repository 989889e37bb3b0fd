//! Taking over what is in a network namespace.

mod inventory;
mod redirect;
mod steer;
mod tap;

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use skep_netlink::{Netns, NetnsError, Route};
use skep_protocol::api;

use super::attachments::Attachments;
use super::plan::{Device, assign, choose, is_tap};
use super::{Loopback, NetworkError, NetworkRequest, Taken};
use crate::hypervisor::Nic;
use crate::journal::{Entry, Journal};

impl From<NetnsError> for NetworkError {
    fn from(error: NetnsError) -> Self {
        Self::Namespace { path: error.path, reason: error.why }
    }
}

/// The sandbox's network namespace and the VM's devices in it.
#[derive(Debug)]
pub struct Network {
    netns: Netns,
    /// Given to the VMM.
    descriptor: Arc<OwnedFd>,
    /// Whether it goes with the sandbox.
    own: bool,
    devices: Vec<Device>,
    /// What CNI plugins make in it.
    cni: Attachments,
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
enum State {
    /// Nobody has looked yet what there is.
    Open,
    /// The interfaces are taken over, and the guest has to be told.
    Taken(api::Network),
    /// The guest knows.
    Settled,
}

impl Network {
    /// Finds or makes the namespace; `name` is the VM's, `room` the number of its devices where nothing is there yet,
    /// `dir` the sandbox's directory.
    pub fn open(
        request: &NetworkRequest,
        room: usize,
        name: &str,
        dir: &Path,
        journal: &Journal,
    ) -> Result<Self, NetworkError> {
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
        Ok(Self {
            netns,
            descriptor: Arc::new(descriptor),
            own,
            devices: Device::of(name, count),
            cni,
            state: Mutex::new(State::Open),
        })
    }

    /// The VM's devices.
    pub fn nics(&self) -> Vec<Nic> {
        self.devices.iter().map(|device| device.nic()).collect()
    }

    /// Makes the taps of the VM's devices, in their order; they last as long as their descriptors.
    pub fn taps(&self) -> Result<Vec<Arc<OwnedFd>>, NetworkError> {
        self.netns.run(|| {
            let open = |(number, device): (usize, &Device)| {
                let name = device.tap();
                tap::open(&name, number)
                    .map(Arc::new)
                    .map_err(NetworkError::system(format!("make the tap {name}")))
            };
            self.devices.iter().enumerate().map(open).collect()
        })
    }

    /// Lets CNI plugins make what they shall; whether there was anything.
    pub async fn connect(&self, journal: &Journal) -> Result<bool, NetworkError> {
        self.cni.add(journal).await
    }

    /// resolv.conf(5) for the sandbox's containers, if CNI plugins said anything about names.
    pub fn resolver(&self) -> Option<String> {
        self.cni.resolver()
    }

    /// Where the VMM is to live.
    pub fn namespace(&self) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(&self.descriptor))
    }

    /// Whether `path` is the sandbox's namespace.
    pub fn is(&self, path: &Path) -> bool {
        self.netns.is(path)
    }

    /// Takes over what there is and says what the guest has to be told, until [`Network::settled`]. What comes later
    /// is not looked at. Blocks for some system calls.
    pub fn take(&self, journal: &Journal) -> Result<Option<api::Network>, NetworkError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Settled => return Ok(None),
            State::Taken(network) => return Ok(Some(network.clone())),
            State::Open => {}
        }
        let mut network = api::Network::new();
        if !self.devices.is_empty() || !self.own {
            network.interfaces = self.netns.run(|| self.take_inside(journal))?;
        }
        *state = State::Taken(network.clone());
        Ok(Some(network))
    }

    fn take_inside(&self, journal: &Journal) -> Result<Vec<api::Interface>, NetworkError> {
        let mut route = route()?;
        let found = choose(inventory::look(&mut route)?)?;
        let mut interfaces = Vec::new();
        for (found, device) in assign(found, &self.devices)? {
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

    /// Where connections to the namespace's loopback arrive; none for a namespace of the sandbox's own, which nobody
    /// enters to dial.
    pub(crate) fn loopback(&self) -> Result<Option<Loopback>, NetworkError> {
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

    /// The guest knows its network.
    pub fn settled(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Settled;
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

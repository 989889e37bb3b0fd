//! One sandbox's network, from its VM's start until its guest knows of it. What the devices are joined to, and how, is the
//! operating system's part.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use skep_protocol::api;

use super::attachments::Attachments;
use super::plan::{Device, named};
use super::system::Place;
use super::traffic::Traffic;
use super::{Loopback, NetworkError, NetworkRequest};
use crate::hypervisor::Nic;
use crate::journal::Journal;

/// The VM's network devices and what they are joined to.
#[derive(Debug)]
pub struct Network {
    place: Place,
    devices: Vec<Device>,
    /// What CNI plugins make.
    cni: Attachments,
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
enum State {
    /// Nobody has looked yet what there is.
    Open,
    /// The interfaces are taken over, and the guest has to be told.
    Taken(api::Network),
    /// The guest knows: what it calls its interfaces, and by which devices it has them.
    Settled(Vec<(String, Device)>),
}

impl Network {
    /// Finds or makes what the devices are to be joined to; `name` is the VM's, `room` the number of its devices where
    /// nothing is there yet, `dir` the sandbox's directory.
    pub fn open(
        request: &NetworkRequest,
        room: usize,
        name: &str,
        dir: &Path,
        journal: &Journal,
    ) -> Result<Self, NetworkError> {
        let (place, devices, cni) = Place::open(request, room, name, dir, journal)?;
        Ok(Self { place, devices, cni, state: Mutex::new(State::Open) })
    }

    /// The VM's devices.
    pub fn nics(&self) -> Vec<Nic> {
        self.place.nics(&self.devices)
    }

    /// The taps of the VM's devices, in their order, where the VMM takes descriptors; they last as long as these.
    pub fn taps(&self) -> Result<Vec<Arc<OwnedFd>>, NetworkError> {
        self.place.taps(&self.devices)
    }

    /// The network namespace in which the VMM is to live, where there are any.
    pub fn namespace(&self) -> Option<Arc<OwnedFd>> {
        self.place.namespace()
    }

    /// Lets CNI plugins make what they shall; whether there was anything.
    pub async fn connect(&self, journal: &Journal) -> Result<bool, NetworkError> {
        self.cni.add(journal).await
    }

    /// resolv.conf(5) for the sandbox's containers, if CNI plugins said anything about names.
    pub fn resolver(&self) -> Option<String> {
        self.cni.resolver()
    }

    /// Whether `path` is the sandbox's network namespace or vnet jail.
    pub fn is(&self, path: &Path) -> bool {
        self.place.is(path)
    }

    /// Takes over what there is and says what the guest has to be told, until [`Network::settled`]. What comes later
    /// is not looked at. Blocks for some system calls.
    pub fn take(&self, journal: &Journal) -> Result<Option<api::Network>, NetworkError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Settled(_) => return Ok(None),
            State::Taken(network) => return Ok(Some(network.clone())),
            State::Open => {}
        }
        let interfaces = self.place.take(&self.devices, &self.cni, journal)?;
        let network = api::Network { interfaces, ..api::Network::new() };
        *state = State::Taken(network.clone());
        Ok(Some(network))
    }

    /// The guest knows its network.
    pub fn settled(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Taken(network) = &*state {
            *state = State::Settled(named(&network.interfaces, &self.devices));
        }
    }

    /// What each of the sandbox's interfaces carried; nothing before the guest has them. Blocks for some system calls.
    pub fn traffic(&self) -> Result<Vec<Traffic>, NetworkError> {
        let interfaces = match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Settled(interfaces) => interfaces.clone(),
            State::Open | State::Taken(_) => return Ok(Vec::new()),
        };
        let devices: Vec<Device> = interfaces.iter().map(|(_, device)| *device).collect();
        let ends = self.place.host_ends(&devices)?;
        let named = interfaces.into_iter().zip(ends);
        Ok(named.map(|((name, _), end)| end.seen_from_inside(name)).collect())
    }

    /// Where connections to the loopback addresses of the sandbox's network namespace arrive, if there is one that others
    /// dial in.
    pub(crate) fn loopback(&self) -> Result<Option<Loopback>, NetworkError> {
        self.place.loopback()
    }
}

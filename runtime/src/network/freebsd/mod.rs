//! Taking over what is in a vnet jail, and taps on the host for plugins that put them on a bridge.

mod inventory;
mod tap;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use skep_ifnet::sys::load_module;
use skep_ifnet::{Control, Error, Jail, Netgraph};
use skep_protocol::api;

use super::attachments::Attachments;
use super::cni::CniRequest;
use super::plan::{Device, assign, choose, is_tap};
use super::traffic::HostEnd;
use super::{Loopback, NetworkError, NetworkRequest, Taken};
use crate::hypervisor::Nic;
use crate::journal::{Entry, Journal};

use tap::Tap;
pub(crate) use tap::remove as remove_tap;

/// The plugin that takes a tap of ours.
const OWN_PLUGIN: &str = "skep-cni";
/// What `CNI_NETNS` is for an interface that stays on the host.
const HOST: &str = "0";
/// The key of `CNI_ARGS` by which it is told which.
const TAP_ARGUMENT: &str = "SKEP_TAP";

impl From<Error> for NetworkError {
    fn from(error: Error) -> Self {
        match error {
            Error::Kernel { what, error } => Self::System { action: what, source: error },
            Error::Jail { name, why } => Self::Namespace { path: name.into(), reason: why },
            Error::Inside(what) | Error::Unsupported { what, .. } => {
                Self::System { action: what, source: std::io::ErrorKind::Unsupported.into() }
            }
        }
    }
}

/// Where the taps of the VM's devices are: on the host or in a vnet jail.
#[derive(Debug)]
pub(super) struct Place {
    /// The jail whose interfaces are taken over; none: plugins say what the taps are.
    jail: Option<String>,
    /// The taps of the VM's devices.
    taps: Vec<Tap>,
}

impl Place {
    /// Finds or makes what the devices are to be joined to, and makes their taps; `name` is the VM's, `room` the number
    /// of its devices where nothing is in the jail yet.
    pub(super) fn open(
        request: &NetworkRequest,
        room: usize,
        name: &str,
        _: &Path,
        journal: &Journal,
    ) -> Result<(Self, Vec<Device>, Attachments), NetworkError> {
        let (jail, devices) = match request {
            NetworkRequest::Own | NetworkRequest::Nothing => (None, Vec::new()),
            NetworkRequest::Join(path) => {
                let jail = Jail::open(&path.to_string_lossy())?;
                let found = inventory::look(&jail)?;
                if found.iter().any(is_tap) {
                    return Err(NetworkError::OfAnother(path.clone()));
                }
                let found = choose(found)?.len();
                let count = if found == 0 { room } else { found };
                (Some(jail.name().to_owned()), Device::of(name, count))
            }
            NetworkRequest::Cni(request) if takes_taps(request) => (None, Device::of(name, request.count())),
            NetworkRequest::Cni(request) => {
                journal.record(Entry::Jail { name: name.to_owned() })?;
                Jail::create(name)?;
                (Some(name.to_owned()), Device::of(name, request.count()))
            }
        };
        let mut taps = Vec::new();
        for device in &devices {
            taps.push(tap::make(&device.tap(), jail.as_deref(), journal)?);
        }
        let cni = match request {
            NetworkRequest::Cni(request) => Attachments::new(request.attachments(|number| {
                if let Some(jail) = &jail {
                    return (jail.clone(), Vec::new());
                }
                let tap = devices.get(number).map(|device| format!("{TAP_ARGUMENT}={}", device.tap()));
                (HOST.to_owned(), tap.into_iter().collect())
            })),
            _ => Attachments::default(),
        };
        Ok((Self { jail, taps }, devices, cni))
    }

    /// The VM's devices, as its VMM takes them: by the files of their taps, which keep their names when a plugin renames
    /// the interface.
    pub(super) fn nics(&self, devices: &[Device]) -> Vec<Nic> {
        let all = self.taps.iter().zip(devices);
        all.map(|(tap, device)| Nic { tap: tap.file.clone(), mac: device.mac() }).collect()
    }

    /// None: bhyve takes names.
    #[allow(clippy::unnecessary_wraps, clippy::unused_self, reason = "as on Linux")]
    pub(super) fn taps(&self, _: &[Device]) -> Result<Vec<Arc<OwnedFd>>, NetworkError> {
        Ok(Vec::new())
    }

    /// None: bhyve lives on the host.
    #[allow(clippy::unused_self, reason = "as on Linux")]
    pub(super) fn namespace(&self) -> Option<Arc<OwnedFd>> {
        None
    }

    /// Whether `path` is the sandbox's jail.
    pub(super) fn is(&self, path: &Path) -> bool {
        let Some(name) = &self.jail else { return false };
        match (Jail::open(name), Jail::open(&path.to_string_lossy())) {
            (Ok(ours), Ok(other)) => ours.id == other.id,
            _ => false,
        }
    }

    /// Joins what there is to the devices; what the guest has to be told of each.
    pub(super) fn take(
        &self,
        devices: &[Device],
        cni: &Attachments,
        journal: &Journal,
    ) -> Result<Vec<api::Interface>, NetworkError> {
        match &self.jail {
            Some(jail) => take_inside(&Jail::open(jail)?, devices, journal),
            None => Ok(cni.interfaces(devices)),
        }
    }

    /// What the host's ends of devices carried, in their order.
    pub(super) fn host_ends(&self, devices: &[Device]) -> Result<Vec<HostEnd>, NetworkError> {
        let taps: Vec<&Tap> = devices.iter().filter_map(|device| self.taps.get(device.number())).collect();
        if taps.is_empty() {
            return Ok(Vec::new());
        }
        tap::carried(&taps, self.jail.as_deref())
    }

    /// Nobody dials into a jail to forward ports.
    #[allow(clippy::unnecessary_wraps, clippy::unused_self, reason = "as on Linux")]
    pub(super) fn loopback(&self) -> Result<Option<Loopback>, NetworkError> {
        Ok(None)
    }
}

fn take_inside(
    jail: &Jail,
    devices: &[Device],
    journal: &Journal,
) -> Result<Vec<api::Interface>, NetworkError> {
    for module in ["ng_socket", "ng_ether"] {
        load_module(module);
    }
    let found = choose(inventory::look(jail)?)?;
    let mut interfaces = Vec::new();
    for (found, device) in assign(found, devices)? {
        let (interface, tap) = (&found.interface.name, device.tap());
        journal.record(Entry::Redirect { netns: jail.name().into(), interface: interface.clone() })?;
        let up = found.up;
        jail.run(|| {
            let control = Control::open()?;
            control.set_mtu(&tap, found.interface.mtu)?;
            control.raise(&tap)?;
            // The VM gets packets as they are: nobody makes checksums on the way to the tap.
            control.make_checksums(interface)?;
            if !up {
                control.raise(interface)?;
            }
            Netgraph::open()?.join(interface, &tap)
        })
        .map_err(|error| match error.errno() {
            Some(libc::EEXIST) => NetworkError::InUse { name: interface.clone() },
            _ => error.into(),
        })?;
        tracing::debug!(interface, tap, "taken over");
        interfaces.push(found.interface);
    }
    Ok(interfaces)
}

/// Whether every interface is made by a plugin that takes a tap of ours.
fn takes_taps(request: &CniRequest) -> bool {
    request.makers().all(|plugin| plugin == OWN_PLUGIN)
}

/// Gives an interface back to its jail. That there is none any more is no error. The tap is gone later: with it goes
/// what joined them.
pub(crate) fn release(taken: &Taken<'_>) -> Result<(), NetworkError> {
    let name = taken.netns.to_string_lossy();
    let Ok(jail) = Jail::open(&name) else { return Ok(()) };
    let interface = taken.interface.to_owned();
    Ok(jail.run(|| Netgraph::open()?.part(&interface))?)
}

/// Removes a jail of ours; fine if it is gone.
pub(crate) fn remove_jail(name: &str) -> Result<(), NetworkError> {
    match Jail::open(name) {
        Ok(jail) => Ok(jail.remove()?),
        Err(_) => Ok(()),
    }
}

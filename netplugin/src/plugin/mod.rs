//! What each command does.
//!
//! An ADD checks everything it can before it changes anything; then writes down what it is going to make (the
//! attachment's record is the journal), makes it, and undoes all of it if a step fails. A DEL goes on after an
//! error, reports all of them, and gives the addresses back only if nothing of the sandbox is left.
//!
//! The lock over the records is held for the short steps only: what takes the kernel long (making and removing
//! interfaces) and what others do (delegated IPAM) happens outside it, so that many calls run side by side.

mod add;
mod admin;
mod del;
mod gc;
mod lease;
mod live;
mod renew;
mod settle;

pub use admin::{
    AttachmentStatus, Carried, LinkStatus, NetworkStatus, PeerStatus, Status, collect, down, remove_orphans,
    restore, status, up,
};
pub use live::{LivePolicy, set_policy};
pub use renew::{Renewal, renew_leases};

use std::net::IpAddr;

use crate::cni::{Attach, CniError, CniVersion, Invocation, NetConf};
use crate::datapath::Datapath;
use crate::ipam::{Allocator, IpamConfig, IpamError, OwnIpam, Used, delegate};
use crate::network::{Attachment, Network, Store};

/// A call at work.
#[derive(Debug)]
pub struct Plugin<'a, D> {
    datapath: &'a D,
    store: Store,
    call: &'a Invocation,
    conf: &'a NetConf,
}

impl<'a, D: Datapath> Plugin<'a, D> {
    /// A call that was read and checked.
    pub fn new(datapath: &'a D, call: &'a Invocation, conf: &'a NetConf) -> Self {
        let store = Store::new(conf.data_dir.clone().unwrap_or_else(|| Store::default_dir().to_owned()));
        Self { datapath, store, call, conf }
    }

    /// Runs the IPAM plugin of the configuration, if it is not ours; its result, for ADD.
    fn delegated(&self, command: &str) -> Result<Option<crate::cni::AddResult>, CniError> {
        let IpamConfig::Delegated(name) = &self.conf.ipam else { return Ok(None) };
        if self.asks_itself() {
            return Ok(None);
        }
        let path = self.call.find_plugin(name).ok_or_else(|| IpamError::PluginMissing(name.clone()))?;
        Ok(delegate(&path, command, &self.conf.raw)?)
    }

    /// Whether addresses are leased, and it is us who ask for them.
    fn asks_itself(&self) -> bool {
        self.conf.ipam.asks_on_the_interface() && self.datapath.is_dhcp_client()
    }

    /// STATUS: could an ADD succeed now?
    pub fn status(&self) -> Result<(), CniError> {
        self.datapath.ready().map_err(|error| CniError::NotReady(error.to_string()))?;
        match &self.conf.ipam {
            IpamConfig::None => Ok(()),
            IpamConfig::Own(own) => {
                let mut used = self.store.used(&self.conf.name)?;
                let group = self.conf.policy.group.as_ref();
                match Allocator::new(own).of(group).allocate(&mut used, &[]) {
                    // That a range is full is for ADD to say: a runtime takes a network that is not ready for one that is
                    // broken, and Kubernetes moves the pods of such a node away.
                    Ok(_) | Err(IpamError::Exhausted { .. }) => Ok(()),
                    Err(error) => Err(CniError::NotReady(error.to_string())),
                }
            }
            // Plugins of before 1.1.0 know no STATUS.
            IpamConfig::Delegated(_) if self.conf.version < CniVersion::V1_1_0 => Ok(()),
            IpamConfig::Delegated(_) => {
                self.delegated("STATUS").map(|_| ()).map_err(|error| CniError::NotReady(error.to_string()))
            }
        }
    }

    /// CHECK: is everything as ADD left it?
    pub fn check(&self, attach: &Attach) -> Result<(), CniError> {
        let id = Attachment::id_of(&self.conf.name, &attach.container_id, &attach.ifname);
        let (record, network) = {
            let _lock = self.store.lock()?;
            (self.store.attachment(&self.conf.name, &id)?, self.store.network(&self.conf.name)?)
        };
        let (Some(mut record), Some(network)) = (record, network) else {
            return Err(not_attached(&self.conf.name, attach));
        };
        // The namespace may have moved to another path; what counts is what is in it.
        if let Some(netns) = &attach.netns {
            record.netns.clone_from(netns);
        }
        let mut found = Vec::new();
        if let Some(previous) = &self.conf.prev_result {
            let known: Vec<IpAddr> = record.ips().collect();
            for ip in previous.ips.iter().filter(|ip| !known.contains(&ip.address.addr())) {
                found.push(format!("prevResult has {}, which was not given to this container", ip.address));
            }
        }
        found.extend(self.datapath.check(&network, &record)?);
        found.extend(lease::lost(&self.store, &record)?);
        if !found.is_empty() {
            return Err(CniError::Check(found));
        }
        self.delegated("CHECK").map(|_| ())
    }
}

fn not_attached(network: &str, attach: &Attach) -> CniError {
    CniError::NotAttached {
        container: attach.container_id.clone(),
        ifname: attach.ifname.clone(),
        network: network.to_owned(),
    }
}

/// What is taken, by the attachments' own records: whatever a crash left behind in the bitmap is gone.
fn rebuild(store: &Store, network: &str, own: &OwnIpam, earlier: &Used) -> Result<Used, CniError> {
    let mut used = Used { version: Used::VERSION, last: earlier.last.clone(), ..Used::default() };
    for ip in store.attachments(network)?.iter().filter(|one| one.own_ipam).flat_map(Attachment::ips) {
        Allocator::new(own).mark(&mut used, ip);
    }
    Ok(used)
}

/// Undoes an attachment and forgets it, and its network if it was the last. Goes on after an error.
fn undo<D: Datapath>(datapath: &D, store: &Store, attachment: &Attachment) -> Vec<CniError> {
    let network = match store.network(&attachment.network) {
        Ok(network) => network,
        Err(error) => return vec![error.into()],
    };
    // A lease is given back by the interface, so while that is there.
    let mut errors: Vec<CniError> = match &network {
        Some(network) => lease::release(datapath, store, network, attachment).err().into_iter().collect(),
        None => Vec::new(),
    };
    let left = datapath.detach(network.as_ref(), attachment);
    if left.is_empty() {
        errors.extend(
            forget(datapath, store, attachment, network.as_ref()).unwrap_or_else(|error| vec![error]),
        );
    } else {
        // The record stays, and with it the addresses: nobody shall inherit what is left.
        errors.extend(left.into_iter().map(CniError::from));
    }
    errors
}

fn forget<D: Datapath>(
    datapath: &D,
    store: &Store,
    attachment: &Attachment,
    network: Option<&Network>,
) -> Result<Vec<CniError>, CniError> {
    let _lock = store.lock()?;
    // Another call may have been faster, and the addresses another's since.
    let known = store.attachment(&attachment.network, &attachment.id)?.is_some();
    // The record first: were its address another's before it is gone, undoing it once more would take it from that one.
    // An address that a kill leaves taken by nobody is found when there is no other.
    store.remove_attachment(&attachment.network, &attachment.id)?;
    if known {
        store.unclaim(attachment)?;
    }
    if known && attachment.own_ipam && !attachment.addresses.is_empty() {
        let mut used = store.used(&attachment.network)?;
        for ip in attachment.ips() {
            used.release(ip);
        }
        store.save_used(&attachment.network, &used)?;
    }
    match network {
        Some(network) if !network.keep && !store.has_others(&network.name, &attachment.id)? => {
            drop_network(datapath, store, &network.name)
        }
        _ => Ok(Vec::new()),
    }
}

/// Removes a network that has no attachments left and shall not stay without.
fn sweep<D: Datapath>(datapath: &D, store: &Store, name: &str) -> Result<Vec<CniError>, CniError> {
    let _lock = store.lock()?;
    match store.network(name)? {
        // An ADD writes both records under the lock: nobody is just about to be attached.
        Some(network) if !network.keep && !store.has_others(name, "")? => drop_network(datapath, store, name),
        _ => Ok(Vec::new()),
    }
}

/// Removes a network without attachments. The lock is held.
fn drop_network<D: Datapath>(datapath: &D, store: &Store, name: &str) -> Result<Vec<CniError>, CniError> {
    // As it is now: it may have changed since the caller looked.
    let Some(network) = store.network(name)? else { return Ok(Vec::new()) };
    let last = store.network_names()?.iter().all(|other| other == name);
    let errors: Vec<CniError> =
        datapath.remove_network(&network, last).into_iter().map(CniError::from).collect();
    if errors.is_empty() {
        store.remove_network(name)?;
        store.prune_claims()?;
    }
    Ok(errors)
}

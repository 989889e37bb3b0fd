//! Another policy for a live sandbox.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::Arc;

use super::not_attached;
use crate::cni::{Args, Attach, CniError, ConfigError};
use crate::datapath::Datapath;
use crate::network::{Attachment, LockFile, Network, Opened, StateError, Store};
use crate::policy::{GroupName, Policy};

/// A live sandbox whose policy is to be changed, perhaps many times: what must be known of it is read once, and its
/// network's record again when another call has changed it. With the connection to the kernel that `datapath` keeps, a change is one
/// transaction there and one small file, written without reading any.
///
/// Changes to several sandboxes may be made by one such handle each, in turn; other processes may make changes and
/// call the plugin meanwhile.
#[derive(Debug)]
pub struct LivePolicy<'a, D> {
    datapath: &'a D,
    store: &'a Store,
    network: Opened<Network>,
    attachment: Opened<Attachment>,
    lock: Arc<LockFile>,
}

impl<'a, D: Datapath> LivePolicy<'a, D> {
    /// Finds the interface `ifname` of a container on a network. The error says so if there is none.
    pub fn open(
        datapath: &'a D,
        store: &'a Store,
        network: &str,
        container_id: &str,
        ifname: &str,
    ) -> Result<Self, CniError> {
        let id = Attachment::id_of(network, container_id, ifname);
        let attachment = store.open_attachment(network, &id)?;
        let (Some(attachment), Some(network)) = (attachment, store.open_network(network)?) else {
            return Err(gone(network, container_id, ifname));
        };
        Ok(Self { datapath, store, network, attachment, lock: Arc::new(store.lock_file()?) })
    }

    /// Replaces the sandbox's own lists, at once, and ends live flows that the new ones forbid. On an error it has the
    /// lists it had. After a DEL there is nothing to give them to, even if another container has come by the name since.
    pub fn replace(&mut self, policy: Policy) -> Result<(), CniError> {
        if self.lock.is_removed()? {
            self.lock = Arc::new(self.store.lock_file()?);
        }
        let lock = Arc::clone(&self.lock);
        let _held = lock.hold()?;
        self.refresh()?;
        let network = &mut self.network.value;
        let over_hosts = network.vpc.is_some();
        if let Some(why) = network.policy.wrong([&policy.egress, &policy.ingress], over_hosts) {
            return Err(ConfigError::Field { field: "policy", why }.into());
        }
        let new = |group: &&GroupName| !network.groups.contains(group);
        let new: Vec<GroupName> =
            network.policy.undeclared(policy.named_groups()).filter(new).cloned().collect();
        if !new.is_empty() {
            network.groups.extend(new);
            self.store.save_network(&self.network.value)?;
            self.refresh()?;
        }
        let Attachment { network, id, .. } = &self.attachment.value;
        let staged = self.store.stage_policy(network, id, &policy)?;
        self.attachment.value.policy = policy;
        // Rules that must be made anew have the old policy until the new one comes.
        let changed = apply(self.datapath, self.store, &self.network.value, &self.attachment.value)
            .and_then(|()| Ok(staged.keep()?));
        changed.map_err(|error| self.put_back(error))
    }

    /// Reads again what another call has changed of the network. The lock is held.
    fn refresh(&mut self) -> Result<(), CniError> {
        let Attachment { network, container_id, ifname, .. } = &self.attachment.value;
        // ADD writes a sandbox's record, and nothing changes it: another one is another sandbox's.
        if !self.attachment.is_current()? {
            return Err(gone(network, container_id, ifname));
        }
        if !self.network.is_current()? {
            let now = self.store.open_network(network)?;
            self.network = now.ok_or_else(|| gone(network, container_id, ifname))?;
        }
        self.attachment.value.lapsed = self.store.has_lapsed(&self.attachment.value)?;
        Ok(())
    }

    /// Gives the sandbox back the policy on record, after `error`. The lock is held.
    fn put_back(&mut self, error: CniError) -> CniError {
        let Attachment { network, id, .. } = &self.attachment.value;
        let back =
            self.store.attachment(network, id).map_err(CniError::from).and_then(|record| match record {
                Some(record) => apply(self.datapath, self.store, &self.network.value, &record),
                None => Ok(()),
            });
        match back {
            Ok(()) => error,
            Err(second) => CniError::Several(vec![error, second]),
        }
    }
}

/// Replaces a live sandbox's own lists once: see [`LivePolicy`].
pub fn set_policy<D: Datapath>(
    datapath: &D,
    store: &Store,
    network: &str,
    container_id: &str,
    ifname: &str,
    policy: Policy,
) -> Result<(), CniError> {
    LivePolicy::open(datapath, store, network, container_id, ifname)?.replace(policy)
}

fn gone(network: &str, container_id: &str, ifname: &str) -> CniError {
    let attach = Attach {
        container_id: container_id.to_owned(),
        ifname: ifname.to_owned(),
        netns: None,
        args: Args::default(),
    };
    not_attached(network, &attach)
}

/// Gives the kernel the policy of a record. The lock is held.
fn apply<D: Datapath>(
    datapath: &D,
    store: &Store,
    network: &Network,
    attachment: &Attachment,
) -> Result<(), CniError> {
    // Read only where there is a live flow that a rule about a group decides.
    let everybody: OnceCell<Result<Vec<Attachment>, StateError>> = OnceCell::new();
    let members = |group: &GroupName, ip: IpAddr| {
        let everybody = everybody.get_or_init(|| store.attachments(&network.name));
        Attachment::any_sends(everybody.iter().flatten(), group, ip)
    };
    datapath.update_policy(network, attachment, &|| store.load(), &members)?;
    match everybody.into_inner() {
        Some(Err(error)) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Ends changes of policy that were cut short by doing them again. Goes on after an error. The lock is held.
pub(super) fn end_changes<D: Datapath>(datapath: &D, store: &Store) -> Result<(), CniError> {
    let mut errors = Vec::new();
    for name in store.network_names()? {
        for (id, policy, staged) in store.staged_policies(&name)? {
            let record = store.attachment(&name, &id)?.zip(store.network(&name)?);
            // Not written to its end: the kernel never had it. Dropping it forgets it.
            let (Some((mut attachment, network)), Some(policy)) = (record, policy) else { continue };
            attachment.policy = policy;
            let ended = apply(datapath, store, &network, &attachment).and_then(|()| Ok(staged.keep()?));
            errors.extend(ended.err());
        }
    }
    CniError::collect(errors)
}

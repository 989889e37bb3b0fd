//! Linux: netlink, nftables, veth pairs.

mod address;
mod attach;
mod bridge;
mod check;
mod conntrack;
mod cut;
mod history;
mod link;
mod netlink;
mod netns;
mod nft;
mod orphans;
mod rules;
mod shape;
mod vxlan;

use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use self::netlink::{Route, kernel, may_change_the_network};
use self::netns::Netns;
use self::nft::{Batch, Family, Nft, NftError};
use super::{Counters, Datapath, DatapathError, Existing, Orphan};
use crate::cni::Interface;
use crate::mac::Mac;
use crate::network::{Attachment, HostState, Kind, Network, StateError};
use crate::policy::{GroupName, Policy};

/// This host: the network namespace the process runs in.
#[derive(Debug)]
pub struct Host {
    route: RefCell<Route>,
    nft: Nft,
    tracked: conntrack::Count,
    // The generation of the ruleset at which our tables were seen to be there and this program's, and nothing but what
    // was made over `nft` since. Another transaction, whoever's, makes it wrong, and the kernel tells.
    sound_at: Cell<Option<u32>>,
    // What the kernel has been given of sandboxes' own policies by then, by the sandbox.
    given: RefCell<BTreeMap<String, Policy>>,
}

/// Hears of tables being removed.
#[derive(Debug)]
pub struct Watch {
    nft: Nft,
}

impl Watch {
    /// Waits until a table (any: ours are looked for then) is removed; false if none was in time.
    pub fn wait(&self, timeout: Duration) -> Result<bool, DatapathError> {
        self.nft.table_removed(timeout).map_err(|error| kernel("listen for changes of rules", error))
    }
}

/// Another call may make or remove the tables at any time between our looking and our acting.
const TRIES: u32 = 10;

impl From<NftError> for DatapathError {
    fn from(error: NftError) -> Self {
        Self::Kernel { what: error.step, error: error.error }
    }
}

impl Host {
    /// Connects to the kernel.
    pub fn new() -> Result<Self, DatapathError> {
        may_change_the_network()?;
        let nft = Nft::open().map_err(|error| kernel("open a netfilter socket", error))?;
        let route = RefCell::new(Route::open()?);
        Ok(Self {
            route,
            nft,
            tracked: conntrack::Count::default(),
            sound_at: Cell::new(None),
            given: RefCell::default(),
        })
    }

    /// Hears of tables being removed, by whomever.
    pub fn watch() -> Result<Watch, DatapathError> {
        Nft::listen().map(|nft| Watch { nft }).map_err(|error| kernel("listen for changes of rules", error))
    }

    fn route(&self) -> RefMut<'_, Route> {
        self.route.borrow_mut()
    }

    /// Which of our tables are there, and whether their rules are this program's.
    fn tables(&self) -> Result<[Option<bool>; 2], DatapathError> {
        let note = |family| {
            let note = self
                .nft
                .table_note(family, rules::TABLE)
                .map_err(|error| kernel("look for our table", error))?;
            Ok::<_, DatapathError>(note.map(|note| note == rules::NOTE))
        };
        Ok([note(Family::Bridge)?, note(Family::Inet)?])
    }

    /// Makes all rules anew unless they are there; true if they were not.
    fn ensure_rules(&self, state: &dyn Fn() -> Result<HostState, StateError>) -> Result<bool, DatapathError> {
        for _ in 0..TRIES {
            let [bridge, inet] = self.tables()?;
            if bridge == Some(true) && inet == Some(true) {
                return Ok(false);
            }
            let mut batch = Batch::new(rules::TABLE);
            for (family, there) in [(Family::Bridge, bridge), (Family::Inet, inet)] {
                if there.is_some() {
                    batch.family(family).delete_table();
                }
            }
            rules::create_all(&mut batch, &state()?);
            match self.nft.commit(batch) {
                Ok(()) => return Ok(true),
                // Somebody was faster, in either direction.
                Err(error)
                    if matches!(error.errno(), Some(libc::EEXIST | libc::ENOENT))
                        && is_table_step(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(DatapathError::Conflict(format!(
            "the nftables table `{}` came and went {TRIES} times while we made its rules",
            rules::TABLE
        )))
    }

    /// Makes a sandbox's rules, or adds what is new of them.
    fn add_rules(&self, network: &Network, attachment: &Attachment) -> Result<(), DatapathError> {
        let mut batch = Batch::new(rules::TABLE);
        rules::add_sandbox(&mut batch, network, attachment);
        self.nft.commit(batch).map_err(|error| match error.errno() {
            Some(libc::EBUSY | libc::EEXIST) => DatapathError::Conflict(format!(
                "{}: an address or port of container `{}` belongs to another sandbox on this host",
                error.step, attachment.container_id
            )),
            _ => error.into(),
        })?;
        // What others left behind under these addresses is not this sandbox's.
        history::end(&self.nft, &self.tracked, Some(network), attachment)
    }

    /// Makes all rules anew if they are not there; the generation of the ruleset in which they are.
    fn make_sound(&self, state: &dyn Fn() -> Result<HostState, StateError>) -> Result<u32, DatapathError> {
        let before = self.generation()?;
        if self.ensure_rules(state)? { self.generation() } else { Ok(before) }
    }

    /// Commits the change of a network that may have sandboxes, with what follows from it for these.
    fn follow(
        &self,
        mut batch: Batch,
        earlier: &Network,
        network: &Network,
        state: &dyn Fn() -> Result<HostState, StateError>,
    ) -> Result<(), DatapathError> {
        let other_policy = earlier.policy != network.policy;
        if !other_policy && earlier.uplinks() == network.uplinks() {
            return Ok(self.nft.commit(batch)?);
        }
        let state = state()?;
        for attachment in state.attachments.iter().filter(|one| one.network == network.name) {
            rules::follow_uplinks(&mut batch, attachment, earlier, network);
            if earlier.policy.groups != network.policy.groups {
                // Their own lists name groups, too.
                rules::replace_policy(&mut batch, network, attachment, None);
            }
        }
        self.nft.commit(batch)?;
        if other_policy {
            cut::network(&self.nft, &self.tracked, network, &state)?;
        }
        Ok(())
    }

    fn generation(&self) -> Result<u32, DatapathError> {
        self.nft.generation().map_err(|error| kernel("ask for the generation of the ruleset", error))
    }

    /// Commits a change of rules that must all be there, and makes them anew before if somebody removed them. As long as
    /// nobody else changes any rule of the host, that takes no look at them: the kernel itself refuses what comes after
    /// another's change. `change` hears what of sandboxes' policies the kernel is known to have.
    fn commit_to_sound(
        &self,
        state: &dyn Fn() -> Result<HostState, StateError>,
        change: impl Fn(&mut Batch, &BTreeMap<String, Policy>),
    ) -> Result<(), DatapathError> {
        for left in (0..TRIES).rev() {
            let generation = if let Some(generation) = self.sound_at.take() {
                generation
            } else {
                self.given.borrow_mut().clear();
                self.make_sound(state)?
            };
            let mut batch = Batch::new(rules::TABLE);
            // On a host whose rules change all the time, the last try does without.
            if left > 0 {
                batch.only_at(generation);
            }
            change(&mut batch, &self.given.borrow());
            if batch.is_empty() {
                if self.generation()? != generation {
                    continue;
                }
                self.sound_at.set(Some(generation));
                return Ok(());
            }
            match self.nft.commit(batch) {
                Ok(()) => {
                    // The kernel leaves out 0 when the number is at its end.
                    self.sound_at.set((left > 0).then(|| generation.checked_add(1)).flatten());
                    return Ok(());
                }
                // ENFILE: a set has no room for what is to come into it, and is made anew.
                Err(error)
                    if error.errno() == Some(libc::ERESTART)
                        || (error.errno() == Some(libc::ENFILE) && !self.given.borrow().is_empty()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(DatapathError::Conflict(format!(
            "the rules of the host changed {TRIES} times while we changed ours"
        )))
    }

    /// Commits a change to rules that may be gone as a whole: then there is nothing to change.
    fn commit_if_there(&self, batch: Batch) -> Result<(), DatapathError> {
        match self.nft.commit(batch) {
            Err(error) if error.errno() == Some(libc::ENOENT) && self.tables()?.contains(&None) => Ok(()),
            result => Ok(result?),
        }
    }
}

fn is_table_step(error: &NftError) -> bool {
    error.step.ends_with(" table")
}

impl Datapath for Host {
    fn ready(&self) -> Result<(), DatapathError> {
        bridge::check_kernel()?;
        self.tables().map(|_| ())
    }

    fn prepare(&self, network: &mut Network) -> Result<(), DatapathError> {
        bridge::prepare(&mut self.route(), network)
    }

    fn validate(&self, network: &Network, attachment: Option<&Attachment>) -> Result<(), DatapathError> {
        bridge::check_kernel()?;
        bridge::validate(&mut self.route(), network, attachment)?;
        attachment.map_or(Ok(()), attach::validate)
    }

    fn find_existing(
        &self,
        interfaces: &[Interface],
        netns: &str,
        ifname: &str,
    ) -> Result<Existing, DatapathError> {
        attach::find_existing(&mut self.route(), interfaces, netns, ifname)
    }

    fn ensure_network(
        &self,
        network: &Network,
        earlier: Option<&Network>,
        state: &dyn Fn() -> Result<HostState, StateError>,
    ) -> Result<(), DatapathError> {
        let renewed = self.ensure_rules(state)?;
        if !renewed && earlier != Some(network) {
            let mut batch = Batch::new(rules::TABLE);
            rules::add_network(&mut batch, network, earlier);
            if let Some(earlier) = earlier {
                self.follow(batch, earlier, network, state)?;
            } else {
                self.nft.commit(batch)?;
            }
        }
        bridge::ensure(&mut self.route(), network, earlier != Some(network))?;
        history::take_stock(&self.nft, &self.tracked, network, earlier.is_none())?;
        match earlier.filter(|earlier| earlier.vpc != network.vpc) {
            Some(earlier) => vxlan::forget_stations(&mut self.route(), earlier, network),
            None => Ok(()),
        }
    }

    fn restore(&self, state: &dyn Fn() -> Result<HostState, StateError>) -> Result<bool, DatapathError> {
        // The records are read only where there is something amiss.
        if self.tables()? == [Some(true); 2] || state()?.networks.is_empty() {
            return Ok(false);
        }
        self.ensure_rules(state)
    }

    fn remove_network(&self, network: &Network, last: bool) -> Vec<DatapathError> {
        let mut errors = bridge::remove(&mut self.route(), network);
        let mut batch = Batch::new(rules::TABLE);
        if last {
            match self.tables() {
                Ok([bridge, inet]) => {
                    for (family, there) in [(Family::Bridge, bridge), (Family::Inet, inet)] {
                        if there.is_some() {
                            batch.family(family).delete_table();
                        }
                    }
                }
                Err(error) => errors.push(error),
            }
        } else {
            rules::remove_network(&mut batch, network);
            errors.extend(history::forget(&self.nft, &mut batch, network).err());
        }
        errors.extend(self.commit_if_there(batch).err());
        errors
    }

    fn attach(&self, network: &Network, attachment: &Attachment) -> Result<(), DatapathError> {
        self.add_rules(network, attachment)?;
        attach::attach(&mut self.route(), network, attachment)?;
        history::end_untranslated(&self.nft, &self.tracked, network, attachment)
    }

    fn takes_addresses_later(&self) -> bool {
        true
    }

    fn give_addresses(&self, network: &Network, attachment: &Attachment) -> Result<(), DatapathError> {
        self.add_rules(network, attachment)?;
        attach::give_addresses(&mut self.route(), network, attachment)?;
        history::end_untranslated(&self.nft, &self.tracked, network, attachment)
    }

    fn detach(&self, network: Option<&Network>, attachment: &Attachment) -> Vec<DatapathError> {
        // First the interface: from then on nothing passes that the rules would have to stop.
        let mut errors = attach::detach(&mut self.route(), attachment);
        let mut batch = Batch::new(rules::TABLE);
        rules::remove_sandbox(&mut batch, network, attachment);
        errors.extend(self.commit_if_there(batch).err());
        // A flow by one of its ports is one that it answers.
        errors.extend(history::end(&self.nft, &self.tracked, network, attachment).err());
        errors
    }

    fn check(&self, network: &Network, attachment: &Attachment) -> Result<Vec<String>, DatapathError> {
        check::check(self, network, attachment)
    }

    fn update_policy(
        &self,
        network: &Network,
        attachment: &Attachment,
        state: &dyn Fn() -> Result<HostState, StateError>,
        members: &dyn Fn(&GroupName, IpAddr) -> bool,
    ) -> Result<(), DatapathError> {
        self.commit_to_sound(state, |batch, given| {
            rules::replace_policy(batch, network, attachment, given.get(&attachment.id));
        })?;
        self.given.borrow_mut().insert(attachment.id.clone(), attachment.policy.clone());
        cut::sandbox(&self.nft, &self.tracked, network, attachment, members)
    }

    fn orphans(&self, state: &HostState) -> Result<Vec<Orphan>, DatapathError> {
        orphans::find(self, state)
    }

    fn remove_orphans(&self, orphans: &[Orphan], state: &HostState) -> Vec<DatapathError> {
        orphans::remove(self, orphans, state)
    }

    fn netns_cookie(&self, netns: &str) -> Result<Option<u64>, DatapathError> {
        Ok(Netns::open(netns)?.cookie()?)
    }

    fn netns_lives(&self, attachment: &Attachment) -> bool {
        Netns::lives(&attachment.netns, attachment.netns_cookie)
    }

    fn kind_for(&self, _: &str) -> Kind {
        Kind::Veth
    }

    fn mac(&self, ifname: &str) -> Result<Option<Mac>, DatapathError> {
        Ok(self.route().link(ifname)?.and_then(|link| link.mac))
    }

    fn carried(&self, ifname: &str) -> Result<Option<[u64; 4]>, DatapathError> {
        Ok(self.route().link(ifname)?.map(|link| link.carried))
    }

    fn counters(&self, attachment: &Attachment) -> Result<Counters, DatapathError> {
        check::counters(self, attachment)
    }
}

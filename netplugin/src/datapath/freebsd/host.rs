//! The boundary: what each of the plugin's wishes means on FreeBSD.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use skep_ifnet::sys::load_module;
use skep_ifnet::{Control, Jail, Netgraph, find};

use super::pf::device::Pf;
use super::pf::rules::List;
use super::pf::{listing, load, network, published, sandbox, shared, tree};
use super::{attach, bridge, cut, dhcp, loopback, orphans, vxlan};
use crate::cni::{Interface, Route};
use crate::datapath::{Counters, Datapath, DatapathError, Existing, Orphan};
use crate::dhcp::Line;
use crate::mac::Mac;
use crate::network::{Attachment, HostState, Kind, Network, StateError};
use crate::policy::GroupName;

/// What `CNI_NETNS` names for an interface that shall stay on the host.
const HOST: &str = "0";

/// This host: the network stack the process runs in, perhaps a vnet jail's.
#[derive(Debug)]
pub struct Host {
    control: Control,
    pf: OnceLock<Pf>,
}

/// Hears of rules being removed.
#[derive(Debug)]
pub struct Watch {
    versions: RefCell<Vec<Option<(u32, u32)>>>,
}

/// pf tells nobody of changes; its lists have version numbers, which cost next to nothing to look at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn versions() -> Result<Vec<Option<(u32, u32)>>, DatapathError> {
    let pf = Pf::open()?;
    let main = List::ALL.into_iter().map(|list| pf.count("", list));
    main.chain([pf.count(tree::ROOT, List::Filter)]).collect()
}

impl Watch {
    /// Waits until the main ruleset is replaced; false if it was not in time.
    pub fn wait(&self, timeout: Duration) -> Result<bool, DatapathError> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            let now = versions()?;
            if now != *self.versions.borrow() {
                // The next call hears of the next change.
                self.versions.replace(now);
                return Ok(true);
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(false)
    }
}

type State<'a> = &'a dyn Fn() -> Result<HostState, StateError>;

impl Host {
    /// Connects to the kernel.
    pub fn new() -> Result<Self, DatapathError> {
        Ok(Self { control: Control::open()?, pf: OnceLock::new() })
    }

    /// The packet filter, opened when it is asked for first.
    fn pf(&self) -> Result<&Pf, DatapathError> {
        match self.pf.get() {
            Some(pf) => Ok(pf),
            None => Pf::open().map(|pf| self.pf.get_or_init(|| pf)),
        }
    }

    /// Hears of the main ruleset being replaced, by whomever.
    pub fn watch() -> Result<Watch, DatapathError> {
        Ok(Watch { versions: RefCell::new(versions()?) })
    }

    /// Every rule and table as the records say, and the groups of interfaces that rules are found by.
    fn load_all(&self, pf: &Pf, state: &HostState) -> Result<(), DatapathError> {
        load::shared_tables(pf, state)?;
        let outside = bridge::outside(&bridges(state))?;
        for network in &state.networks {
            load::network(pf, network, &outside)?;
        }
        for attachment in &state.attachments {
            if let Some(network) = state.networks.iter().find(|one| one.name == attachment.network) {
                load::sandbox(pf, network, attachment)?;
            }
            if find(&attachment.host_ifname)?.is_some() {
                attach::join_groups(&self.control, attachment)?;
            }
        }
        Ok(())
    }

    /// The first anchor of a sandbox's that has not as many rules as it should.
    fn broken(pf: &Pf, network: &Network, attachment: &Attachment) -> Result<Option<String>, DatapathError> {
        let filter = sandbox::rules(network, attachment);
        let mut sets = vec![(List::Filter, filter.filters(), filter.anchor)];
        if let Some(map) = published::map(attachment) {
            sets.push((List::Rdr, map.redirections(), map.anchor));
        }
        for (list, wanted, anchor) in sets {
            let count = pf.count(&anchor, list)?;
            if count.is_none_or(|(count, _)| usize::try_from(count) != Ok(wanted)) {
                return Ok(Some(anchor));
            }
        }
        Ok(None)
    }
}

fn bridges(state: &HostState) -> Vec<String> {
    state.networks.iter().map(|network| network.bridge.clone()).collect()
}

impl Datapath for Host {
    fn ready(&self) -> Result<(), DatapathError> {
        for module in ["pf", "if_bridge", "if_epair", "if_tuntap", "ng_socket", "ng_ether", "ng_bpf"] {
            load_module(module);
        }
        self.pf()?;
        Netgraph::open()?;
        Ok(())
    }

    fn prepare(&self, network: &mut Network) -> Result<(), DatapathError> {
        bridge::prepare(network)
    }

    fn validate(&self, network: &Network, attachment: Option<&Attachment>) -> Result<(), DatapathError> {
        self.ready()?;
        bridge::validate(&self.control, network, attachment)?;
        attachment.map_or(Ok(()), attach::validate)
    }

    fn find_existing(
        &self,
        interfaces: &[Interface],
        netns: &str,
        ifname: &str,
    ) -> Result<Existing, DatapathError> {
        attach::find_existing(&self.control, interfaces, netns, ifname)
    }

    fn ensure_network(
        &self,
        network: &Network,
        earlier: Option<&Network>,
        state: State<'_>,
    ) -> Result<(), DatapathError> {
        let pf = self.pf()?;
        let renewed = load::ensure_root(pf)?;
        if let Some(earlier) = earlier.filter(|earlier| *earlier != network) {
            vxlan::drop_old(&self.control, earlier, network)?;
        }
        bridge::ensure(&self.control, network)?;
        if renewed {
            return self.load_all(pf, &state()?);
        }
        if earlier == Some(network) {
            return Ok(());
        }
        let state = state()?;
        load::shared_tables(pf, &state)?;
        load::network(pf, network, &bridge::outside(&bridges(&state))?)?;
        if earlier.is_some_and(|earlier| earlier.policy != network.policy) {
            for attachment in state.attachments.iter().filter(|one| one.network == network.name) {
                load::update(pf, &sandbox::rules(network, attachment))?;
            }
            cut::network(pf, network, &state)?;
        }
        Ok(())
    }

    fn restore(&self, state: State<'_>) -> Result<bool, DatapathError> {
        let state = state()?;
        if state.networks.is_empty() {
            return Ok(false);
        }
        let pf = self.pf()?;
        let renewed = load::ensure_root(pf)?;
        let mut whole = !renewed;
        for network in state.networks.iter().filter(|_| !renewed) {
            let count =
                |anchor: &str| Ok::<u32, DatapathError>(pf.count(anchor, List::Filter)?.unwrap_or((0, 0)).0);
            whole &= count(&network::net_anchor(network))? > 0;
            let guard = network::guard(network);
            whole &= usize::try_from(count(&guard.anchor)?) == Ok(guard.filters());
        }
        for attachment in state.attachments.iter().filter(|_| !renewed) {
            if let Some(network) = state.networks.iter().find(|one| one.name == attachment.network) {
                whole &= load::missing_nodes(pf, &attachment.id)?.is_empty()
                    && Self::broken(pf, network, attachment)?.is_none();
            }
        }
        if !whole {
            self.load_all(pf, &state)?;
        }
        Ok(!whole)
    }

    fn remove_network(&self, network: &Network, last: bool) -> Vec<DatapathError> {
        let mut errors = bridge::remove(&self.control, network);
        match self.pf() {
            Ok(pf) => {
                for anchor in [network::net_anchor(network), network::guard_anchor(network)] {
                    errors.extend(pf.clear(&anchor).err());
                }
                errors.extend(load::remove_shared(pf, network, last));
                if last {
                    errors.extend(load::remove_root(pf).err());
                    errors.extend(loopback::remove());
                }
            }
            Err(error) => errors.push(error),
        }
        errors
    }

    fn attach(&self, network: &Network, attachment: &Attachment) -> Result<(), DatapathError> {
        load::admit(self.pf()?, network, attachment)?;
        if !attachment.ports.is_empty() {
            loopback::ensure(&self.control)?;
        }
        attach::attach(&self.control, network, attachment)
    }

    fn takes_addresses_later(&self) -> bool {
        true
    }

    fn give_addresses(&self, network: &Network, attachment: &Attachment) -> Result<(), DatapathError> {
        load::admit(self.pf()?, network, attachment)?;
        attach::give_addresses(attachment)
    }

    fn is_dhcp_client(&self) -> bool {
        true
    }

    fn dhcp_line(&self, network: &Network, attachment: &Attachment) -> Result<Box<dyn Line>, DatapathError> {
        dhcp::line(network, attachment)
    }

    fn follow_lease(&self, network: &Network, attachment: &Attachment) -> Result<(), DatapathError> {
        let pf = self.pf()?;
        dhcp::follow_lease(pf, network, attachment)
    }

    fn change_routes(&self, attachment: &Attachment, routes: &[Route]) -> Result<bool, DatapathError> {
        dhcp::change_routes(attachment, routes)
    }

    fn detach(&self, network: Option<&Network>, attachment: &Attachment) -> Vec<DatapathError> {
        // First the interface: from then on nothing passes that the rules would have to stop.
        let mut errors = attach::detach(&self.control, attachment);
        let pf = match self.pf() {
            Ok(pf) => pf,
            // Without a packet filter nothing of ours is in it.
            Err(_) if network.is_none() => return errors,
            Err(error) => {
                errors.push(error);
                return errors;
            }
        };
        if let Some(network) = network {
            errors.extend(load::group(pf, network, attachment, false).err());
        }
        errors.extend(load::remove_sandbox(pf, attachment));
        errors.extend(load::end_all(pf, &attachment.senders()));
        errors
    }

    fn check(&self, network: &Network, attachment: &Attachment) -> Result<Vec<String>, DatapathError> {
        let mut found = Vec::new();
        bridge::check(network, &mut found)?;
        attach::check(&self.control, attachment, &mut found)?;
        let pf = self.pf()?;
        if !pf.is_on()? {
            found.push("the packet filter is off".to_owned());
        }
        if !load::missing(pf)?.is_empty() {
            found.push("the packet filter's main ruleset does not refer to our anchor".to_owned());
        }
        for (anchor, _) in load::missing_nodes(pf, &attachment.id)? {
            found.push(format!("packet filter anchor {anchor} does not lead to the sandbox's rules"));
        }
        if let Some(anchor) = Self::broken(pf, network, attachment)? {
            found.push(format!("packet filter anchor {anchor} has not the rules it should have"));
        }
        Ok(found)
    }

    fn update_policy(
        &self,
        network: &Network,
        attachment: &Attachment,
        state: State<'_>,
        members: &dyn Fn(&GroupName, IpAddr) -> bool,
    ) -> Result<(), DatapathError> {
        let pf = self.pf()?;
        // Each question takes as long as some dozens of addresses: the other sandboxes' parts of the tree are for others.
        if !load::leads_to(pf, &attachment.id)? {
            if load::ensure_root(pf)? {
                self.load_all(pf, &state()?)?;
            }
            load::lead_to(pf, &attachment.id)?;
        }
        let groups: Vec<String> =
            network.groups.iter().map(|group| shared::group_table(network, group)).collect();
        if !groups.is_empty() {
            pf.make_tables("", &groups)?;
        }
        load::update(pf, &sandbox::rules(network, attachment))?;
        cut::sandbox(pf, network, attachment, members)
    }

    fn orphans(&self, state: &HostState) -> Result<Vec<Orphan>, DatapathError> {
        orphans::find(self.pf().ok(), state)
    }

    fn remove_orphans(&self, found: &[Orphan], _: &HostState) -> Vec<DatapathError> {
        orphans::remove(&self.control, self.pf().ok(), found)
    }

    fn netns_lives(&self, attachment: &Attachment) -> bool {
        attachment.netns == HOST || Jail::open(&attachment.netns).is_ok()
    }

    fn kind_for(&self, netns: &str) -> Kind {
        if netns == HOST { Kind::Tap } else { Kind::Veth }
    }

    fn mac(&self, ifname: &str) -> Result<Option<Mac>, DatapathError> {
        Ok(find(ifname)?.and_then(|link| link.mac).map(Mac))
    }

    fn carried(&self, ifname: &str) -> Result<Option<[u64; 4]>, DatapathError> {
        Ok(find(ifname)?.map(|link| link.carried))
    }

    fn counters(&self, attachment: &Attachment) -> Result<Counters, DatapathError> {
        let port = &attachment.host_ifname;
        let carried = find(port)?.map(|link| link.carried).unwrap_or_default();
        let spoofed_packets = Netgraph::open()?.refused(port)?.unwrap_or(0);
        let listing = load::pfctl(&["-q", "-a", &tree::port_anchor(&attachment.id), "-s", "labels"], "")
            .unwrap_or_default();
        // Seen from the host: what it received, the sandbox sent.
        let [sent_packets, sent_bytes, received_packets, received_bytes] = carried;
        Ok(Counters {
            sent_packets,
            sent_bytes,
            received_packets,
            received_bytes,
            spoofed_packets: spoofed_packets + listing::counted(&listing, "spoofed"),
            denied_out_packets: listing::counted(&listing, "refused_out"),
            denied_in_packets: listing::counted(&listing, "refused_in"),
        })
    }
}

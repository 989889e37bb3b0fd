//! Tables of the main ruleset, which networks and sandboxes share. No input or output.

use ipnet::IpNet;

use crate::network::{Attachment, HostState, Network};
use crate::policy::GroupName;

/// Table of everybody who may send VXLAN packets to this host.
pub(in super::super) const PEERS: &str = "skep_peers";

/// The table, of the main ruleset, of a group's addresses on a network; 31 bytes, which is all that pf allows.
pub(in super::super) fn group_table(network: &Network, group: &GroupName) -> String {
    format!("skepg_{}_{}", network.id(), crate::mac::digest_hex(&["group", group.as_str()], 6))
}

/// The table, of the main ruleset, of other networks of this host that a network's sandboxes may not open flows to.
pub(in super::super) fn apart_table(network: &Network) -> String {
    format!("skepa_{}", network.id())
}

/// What is in [`apart_table`].
pub(in super::super) fn apart(network: &Network, state: &HostState) -> Vec<IpNet> {
    state
        .networks
        .iter()
        .filter(|other| other.name != network.name && !network.peer_bridges.contains(&other.bridge))
        .flat_map(|other| other.gateways.iter().map(IpNet::trunc))
        .collect()
}

/// Everybody who may send VXLAN packets to this host.
pub(in super::super) fn peers(state: &HostState) -> Vec<IpNet> {
    let links = state.networks.iter().flat_map(|network| &network.links);
    links.flat_map(|link| link.flood_to.iter().copied().map(IpNet::from)).collect()
}

/// The subnets that are behind networks' bridges and nowhere else.
pub(in super::super) fn inside(state: &HostState) -> Vec<IpNet> {
    state.networks.iter().flat_map(Network::subnets_inside).collect()
}

/// The addresses of a group's members on a network.
pub(in super::super) fn members(network: &Network, group: &GroupName, state: &HostState) -> Vec<IpNet> {
    state
        .attachments
        .iter()
        .filter(|one| one.network == network.name && one.group.as_ref() == Some(group))
        .flat_map(Attachment::senders)
        .map(IpNet::from)
        .collect()
}

//! The links of a stretched network.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::address::neighbour;
use super::link::Link;
use super::netlink::{Route, allow, kernel};
use crate::datapath::DatapathError;
use crate::network::Network;
use crate::vxlan::{self, Node, Vpc, VpcError};

/// The address whose entries in a link's table are the list of those that get what has no other entry.
const NOBODY: [u8; 6] = [0; 6];

/// Every link of ours is called so, and then twelve digits.
const PREFIX: &str = "skx";

/// Which node this host is, and the smallest MTU of the links its underlay addresses are on.
fn local_node<'a>(route: &mut Route, vpc: &'a Vpc) -> Result<(&'a Node, u32), DatapathError> {
    let addresses = route.addresses()?;
    let ips: Vec<_> = addresses.iter().map(|(_, net)| net.addr()).collect();
    let node = vpc.local(&ips)?;
    let indices: BTreeSet<u32> = addresses
        .iter()
        .filter(|(_, net)| node.addresses().any(|ip| ip == net.addr()))
        .map(|(index, _)| *index)
        .collect();
    let mtu = route
        .links()?
        .into_iter()
        .filter(|(_, link)| indices.contains(&link.index))
        .map(|(_, link)| link.mtu)
        .min();
    Ok((node, mtu.ok_or(VpcError::NotANode)?))
}

/// The MTU that the underlay leaves to the network.
pub(super) fn inner_mtu(route: &mut Route, vpc: &Vpc) -> Result<u32, DatapathError> {
    let (node, mtu) = local_node(route, vpc)?;
    mtu.checked_sub(vpc.overhead()).filter(|mtu| *mtu >= 576).ok_or_else(|| {
        DatapathError::Conflict(format!(
            "the interface with {} has an MTU of {mtu}, too small for VXLAN",
            node.address
        ))
    })
}

/// The links this node must have.
pub(super) fn plan(route: &mut Route, network: &Network) -> Result<Vec<vxlan::Link>, DatapathError> {
    let Some(vpc) = &network.vpc else { return Ok(Vec::new()) };
    let (node, _) = local_node(route, vpc)?;
    Ok(vpc.plan(&network.name, node)?)
}

/// Makes the links and their entries as the record says; removes those of an earlier declaration.
pub(super) fn ensure(route: &mut Route, network: &Network, bridge: &Link) -> Result<(), DatapathError> {
    for (name, link) in route.links()? {
        let ours = name.starts_with(PREFIX) && link.kind == "vxlan" && link.master == Some(bridge.index);
        if ours && !network.links.iter().any(|wanted| wanted.name == name) {
            route.delete_link(&name)?;
        }
    }
    for wanted in &network.links {
        if route.link(&wanted.name)?.is_none() {
            create(route, network, wanted)?;
        }
        let link = route.need_link(&wanted.name)?;
        if link.master != Some(bridge.index) {
            route.set_master(link.index, bridge.index, &wanted.name)?;
        }
        let entering = |error| kernel(format!("write down the peers of {}", wanted.name), error);
        let present = entries(route, link.index).map_err(entering)?;
        for peer in &wanted.flood_to {
            if !present.iter().any(|entry| (entry.mac, entry.peer) == (NOBODY, *peer)) {
                route.add_station(link.index, NOBODY, Some(*peer)).map_err(entering)?;
            }
        }
        for entry in present.iter().filter(|entry| !entry.belongs_to(wanted)) {
            remove_entry(route, link.index, entry).map_err(entering)?;
        }
        for (mac, peer) in &wanted.stations {
            route.add_station(link.index, mac.0, Some(*peer)).map_err(entering)?;
        }
        if !link.up {
            route.raise_uplink(link.index, &wanted.name, true)?;
        }
    }
    for station in network.vpc.iter().flat_map(|vpc| &vpc.stations) {
        if let Some(ip) = station.ip {
            route.add_neighbour(bridge.index, ip, station.mac)?;
        }
    }
    Ok(())
}

fn create(route: &mut Route, network: &Network, wanted: &vxlan::Link) -> Result<(), DatapathError> {
    let what = format!("create VXLAN link {} (VNI {}, port {})", wanted.name, wanted.vni, wanted.port);
    let underlay =
        route.addresses()?.into_iter().find(|(_, net)| net.addr() == wanted.local).map(|(index, _)| index);
    let mut data = vec![
        InfoVxlan::Id(wanted.vni),
        InfoVxlan::Port(wanted.port),
        InfoVxlan::Learning(true),
        match wanted.local {
            IpAddr::V4(ip) => InfoVxlan::Local(ip),
            IpAddr::V6(ip) => InfoVxlan::Local6(ip),
        },
    ];
    data.extend(underlay.map(InfoVxlan::Link));
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(wanted.name.clone()));
    message.attributes.push(LinkAttribute::Mtu(network.mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(data)),
    ]));
    route.change(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).map_err(|error| kernel(what, error))
}

/// Forgets the ends that an earlier declaration knew beforehand and this one does not.
pub(super) fn forget_stations(
    route: &mut Route,
    earlier: &Network,
    network: &Network,
) -> Result<(), DatapathError> {
    let ips = |network: &Network| -> BTreeSet<IpAddr> {
        network.vpc.iter().flat_map(|vpc| &vpc.stations).filter_map(|station| station.ip).collect()
    };
    let bridge = route.need_link(&network.bridge)?.index;
    ips(earlier).difference(&ips(network)).try_for_each(|ip| route.delete_neighbour(bridge, *ip))
}

/// An entry of a link's table: behind which host an Ethernet address is.
struct Entry {
    mac: [u8; 6],
    peer: IpAddr,
    // Or else it was learned.
    written_down: bool,
}

impl Entry {
    /// Whether a link that is so declared may have it. What was learned of a host that is no peer any more would
    /// keep frames going there until it is forgotten.
    fn belongs_to(&self, link: &vxlan::Link) -> bool {
        if self.written_down && self.mac != NOBODY {
            return link.stations.iter().any(|(mac, peer)| (mac.0, *peer) == (self.mac, self.peer));
        }
        link.flood_to.contains(&self.peer)
    }
}

/// The table of a link.
fn entries(route: &mut Route, index: u32) -> std::io::Result<Vec<Entry>> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    let mut found = Vec::new();
    for answer in route.dump(Message::GetNeighbour(message))? {
        let Message::NewNeighbour(entry) = answer else { continue };
        if entry.header.ifindex != index {
            continue;
        }
        let (mut mac, mut peer) = (None, None);
        for attribute in &entry.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
                NeighbourAttribute::Destination(address) => peer = ip_of(address),
                _ => {}
            }
        }
        // The bridge's own entries for its port lead to no host.
        if let (Some(mac), Some(peer)) = (mac, peer) {
            let written_down = entry.header.state == NeighbourState::Permanent;
            found.push(Entry { mac, peer, written_down });
        }
    }
    Ok(found)
}

fn ip_of(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok()
        }
        _ => None,
    }
}

fn remove_entry(route: &mut Route, index: u32, entry: &Entry) -> std::io::Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(neighbour(entry.peer)));
    allow(route.change(Message::DelNeighbour(message), 0), libc::ENOENT)
}

/// Removes the links. Goes on after an error.
pub(super) fn remove(route: &mut Route, network: &Network) -> Vec<DatapathError> {
    network.links.iter().filter_map(|link| route.delete_link(&link.name).err()).collect()
}

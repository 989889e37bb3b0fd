//! Addresses, routes, and who is behind which port.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::netlink::{Route, allow, kernel};
use crate::cni;
use crate::datapath::DatapathError;
use crate::mac::Mac;

/// A route: destination, gateway, and the index of the link it leaves by.
pub(super) type KnownRoute = (IpNet, Option<IpAddr>, Option<u32>);

impl Route {
    /// Gives an address to a link, unless it has it.
    pub(super) fn add_address(
        &mut self,
        index: u32,
        address: IpNet,
        name: &str,
    ) -> Result<(), DatapathError> {
        let message = address_message(index, address);
        let result = self.change(Message::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL);
        allow(result, libc::EEXIST).map_err(|error| kernel(format!("give {address} to {name}"), error))
    }

    /// Takes an address from a link, if it has it.
    pub(super) fn delete_address(
        &mut self,
        index: u32,
        address: IpNet,
        name: &str,
    ) -> Result<(), DatapathError> {
        let result = self.change(Message::DelAddress(address_message(index, address)), 0);
        allow(allow(result, libc::EADDRNOTAVAIL), libc::ENODEV)
            .map_err(|error| kernel(format!("take {address} from {name}"), error))
    }

    /// Every address, with the index of its link.
    pub(super) fn addresses(&mut self) -> Result<Vec<(u32, IpNet)>, DatapathError> {
        let answers = self
            .dump(Message::GetAddress(AddressMessage::default()))
            .map_err(|error| kernel("list addresses", error))?;
        let mut found = Vec::new();
        for answer in answers {
            let Message::NewAddress(message) = answer else { continue };
            let mut ip = None;
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(local) => ip = Some(*local),
                    AddressAttribute::Address(address) if ip.is_none() => ip = Some(*address),
                    _ => {}
                }
            }
            let net = ip.and_then(|ip| IpNet::new(ip, message.header.prefix_len).ok());
            found.extend(net.map(|net| (message.header.index, net)));
        }
        Ok(found)
    }

    /// Makes a route, unless it is there.
    pub(super) fn add_route(
        &mut self,
        index: u32,
        route: &cni::Route,
        gateway: Option<IpAddr>,
    ) -> Result<(), DatapathError> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(route.dst.addr()),
            destination_prefix_length: route.dst.prefix_len(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Static,
            scope: RouteScope::from(route.scope.unwrap_or(if gateway.is_some() { 0 } else { 253 })),
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        if route.dst.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(route.dst.network().into()));
        }
        message.attributes.push(RouteAttribute::Oif(index));
        if let Some(gateway) = gateway {
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        }
        if let Some(table) = route.table {
            message.attributes.push(RouteAttribute::Table(table));
        }
        if let Some(priority) = route.priority {
            message.attributes.push(RouteAttribute::Priority(priority));
        }
        let metrics: Vec<RouteMetric> = route
            .mtu
            .map(RouteMetric::Mtu)
            .into_iter()
            .chain(route.advmss.map(RouteMetric::Advmss))
            .collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        let result = self.change(Message::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL);
        allow(result, libc::EEXIST).map_err(|error| kernel(format!("make the route to {}", route.dst), error))
    }

    /// Every route of the main table.
    pub(super) fn routes(&mut self, ipv6: bool) -> Result<Vec<KnownRoute>, DatapathError> {
        let all = self.routes_of_all_tables(ipv6)?;
        let main = |(table, _): &(u8, KnownRoute)| *table == RouteHeader::RT_TABLE_MAIN;
        Ok(all.into_iter().filter(main).map(|(_, route)| route).collect())
    }

    /// Every route, with its table's number (that of one above 255 is some number other than the main table's).
    pub(super) fn routes_of_all_tables(
        &mut self,
        ipv6: bool,
    ) -> Result<Vec<(u8, KnownRoute)>, DatapathError> {
        let mut message = RouteMessage::default();
        message.header.address_family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let answers = self.dump(Message::GetRoute(message)).map_err(|error| kernel("list routes", error))?;
        let any = if ipv6 { IpAddr::from([0_u16; 8]) } else { IpAddr::from([0_u8; 4]) };
        let mut found = Vec::new();
        for answer in answers {
            let Message::NewRoute(message) = answer else { continue };
            let (mut dst, mut gateway, mut oif) = (any, None, None);
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(ip)) => dst = (*ip).into(),
                    RouteAttribute::Destination(RouteAddress::Inet6(ip)) => dst = (*ip).into(),
                    RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some((*ip).into()),
                    RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some((*ip).into()),
                    RouteAttribute::Oif(index) => oif = Some(*index),
                    _ => {}
                }
            }
            let net = IpNet::new(dst, message.header.destination_prefix_length).ok();
            found.extend(net.map(|net| (message.header.table, (net, gateway, oif))));
        }
        Ok(found)
    }

    /// Writes down behind which port an Ethernet address is, for good; with `remote`, behind which host.
    pub(super) fn add_station(&mut self, port: u32, mac: [u8; 6], remote: Option<IpAddr>) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = port;
        // What a bridge calls static and a VXLAN link permanent.
        (message.header.state, message.header.flags) = match remote {
            Some(_) => (NeighbourState::Permanent, NeighbourFlags::Own),
            None => (NeighbourState::Noarp, NeighbourFlags::Controller),
        };
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let mut how = NLM_F_CREATE | NLM_F_REPLACE;
        if let Some(remote) = remote {
            message.attributes.push(NeighbourAttribute::Destination(neighbour(remote)));
            if mac == [0; 6] {
                // The list of those that get what has no other address: one more of them.
                how = NLM_F_CREATE | NLM_F_APPEND;
            }
        }
        allow(self.change(Message::NewNeighbour(message), how), libc::EEXIST)
    }

    /// Writes down the Ethernet address of an IP address, for good.
    pub(super) fn add_neighbour(&mut self, bridge: u32, ip: IpAddr, mac: Mac) -> Result<(), DatapathError> {
        let mut message = neighbour_message(bridge, ip);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.change(Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|error| kernel(format!("write down the neighbour {ip}"), error))
    }

    /// Forgets the Ethernet address of an IP address.
    pub(super) fn delete_neighbour(&mut self, bridge: u32, ip: IpAddr) -> Result<(), DatapathError> {
        let result = self.change(Message::DelNeighbour(neighbour_message(bridge, ip)), 0);
        allow(allow(result, libc::ENOENT), libc::ENODEV)
            .map_err(|error| kernel(format!("forget the neighbour {ip}"), error))
    }
}

fn neighbour_message(index: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(neighbour(ip)));
    message
}

pub(super) fn neighbour(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }
}

pub(super) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    match address {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        IpNet::V4(_) => {}
        // We know that nobody else has it; asking would keep it from being used for a second.
        IpNet::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    message
}

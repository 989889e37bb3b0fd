//! What there is in a network namespace, as the guest is to have it.

use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use skep_netlink::{Route, sysctl};
use skep_protocol::api;

use crate::network::NetworkError;
use crate::network::plan::Found;

/// Settings that decide which addresses and routes the kernel adds by itself.
const IPV6_SETTINGS: &[&str] = &["accept_ra", "autoconf", "disable_ipv6"];

/// Reads the calling thread's namespace.
pub(super) fn look(route: &mut Route) -> Result<Vec<Found>, NetworkError> {
    let mut ask = |what: &str, question: Message| {
        route.dump(question).map_err(NetworkError::system(format!("list {what} of the network namespace")))
    };
    let mut answers = ask("interfaces", Message::GetLink(LinkMessage::default()))?;
    answers.extend(ask("addresses", Message::GetAddress(AddressMessage::default()))?);
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut routes = RouteMessage::default();
        routes.header.address_family = family;
        answers.extend(ask("routes", Message::GetRoute(routes))?);
        let mut neighbours = NeighbourMessage::default();
        neighbours.header.family = family;
        answers.extend(ask("neighbours", Message::GetNeighbour(neighbours))?);
    }
    let mut all = gather(answers);
    for found in &mut all {
        let interface = &mut found.interface;
        for setting in IPV6_SETTINGS {
            if let Some(value) = sysctl(&format!("ipv6/conf/{}/{setting}", interface.name)) {
                interface.ipv6_settings.insert((*setting).to_owned(), value);
            }
        }
        // Its addresses are those that the interface has, none of the guest's making.
        interface.ipv6_settings.insert("addr_gen_mode".into(), "1".into());
    }
    Ok(all)
}

/// Puts together what the kernel tells of the interfaces of one namespace, links first.
fn gather(answers: Vec<Message>) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    for answer in answers {
        match answer {
            Message::NewLink(message) => all.push(link(message)),
            Message::NewAddress(message) => {
                if let (Some(found), Some(address)) =
                    (by_index(&mut all, message.header.index), address(&message))
                {
                    found.interface.addresses.push(address);
                }
            }
            Message::NewRoute(message) => {
                if let Some((index, route)) = static_route(&message)
                    && let Some(found) = by_index(&mut all, index)
                {
                    found.interface.routes.push(route);
                }
            }
            Message::NewNeighbour(message) => {
                if let (Some(found), Some(neighbour)) =
                    (by_index(&mut all, message.header.ifindex), neighbour(&message))
                {
                    found.interface.neighbours.push(neighbour);
                }
            }
            _ => {}
        }
    }
    for found in &mut all {
        // What a gateway is reached by has to be there before it.
        found.interface.routes.sort_by_key(|route| !route.gateway.is_empty());
    }
    all
}

fn by_index(all: &mut [Found], index: u32) -> Option<&mut Found> {
    all.iter_mut().find(|found| found.index == index)
}

fn link(message: LinkMessage) -> Found {
    let flags = message.header.flags;
    let mut interface = api::Interface::new();
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Address(mac) => interface.mac = mac,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            _ => {}
        }
    }
    Found {
        index: message.header.index,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether && interface.mac.len() == 6,
        loopback: flags.contains(LinkFlags::Loopback),
        up: flags.contains(LinkFlags::Up),
        interface,
    }
}

fn address(message: &AddressMessage) -> Option<api::InterfaceAddress> {
    let (mut local, mut other) = (None, None);
    let mut address = api::InterfaceAddress {
        prefix: message.header.prefix_len.into(),
        scope: u8::from(message.header.scope).into(),
        ..api::InterfaceAddress::new()
    };
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => other = Some(*ip),
            AddressAttribute::Broadcast(ip) => address.broadcast = ip.octets().to_vec(),
            AddressAttribute::Flags(flags) => {
                address.no_prefix_route = flags.contains(AddressFlags::Noprefixroute);
            }
            _ => {}
        }
    }
    // Of a point-to-point address `Address` is the other end, of any other the same (`rtnetlink(7)`).
    let own = local.or(other)?;
    address.ip = bytes(own);
    if let Some(peer) = other.filter(|other| *other != own) {
        address.peer = bytes(peer);
    }
    Some(address)
}

/// A route of the main table that somebody made: the kernel makes its own in the guest as well.
fn static_route(message: &RouteMessage) -> Option<(u32, api::Route)> {
    let header = &message.header;
    if header.kind != RouteType::Unicast
        || header.protocol == RouteProtocol::Kernel
        || header.flags.contains(RouteFlags::Cloned)
    {
        return None;
    }
    let mut table = u32::from(header.table);
    let mut index = None;
    let v4 = header.address_family == AddressFamily::Inet;
    let mut route = api::Route {
        destination: vec![0; if v4 { 4 } else { 16 }],
        prefix: header.destination_prefix_length.into(),
        scope: u8::from(header.scope).into(),
        protocol: u8::from(header.protocol).into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        ..api::Route::new()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => route.destination = route_address(ip)?,
            RouteAttribute::Gateway(ip) => route.gateway = route_address(ip)?,
            RouteAttribute::Via(RouteVia::Inet6(ip)) => route.gateway = ip.octets().to_vec(),
            RouteAttribute::PrefSource(ip) => route.source = route_address(ip)?,
            RouteAttribute::Oif(link) => index = Some(*link),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    if let RouteMetric::Mtu(mtu) = metric {
                        route.mtu = *mtu;
                    }
                }
            }
            RouteAttribute::MultiPath(_) => {
                tracing::warn!("a route with several next hops is not taken over");
                return None;
            }
            _ => {}
        }
    }
    (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some((index?, route))
}

fn neighbour(message: &NeighbourMessage) -> Option<api::Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut neighbour = api::Neighbour::new();
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                neighbour.ip = bytes((*ip).into());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                neighbour.ip = bytes((*ip).into());
            }
            NeighbourAttribute::LinkLayerAddress(mac) => neighbour.mac.clone_from(mac),
            _ => {}
        }
    }
    (neighbour.mac.len() == 6 && !neighbour.ip.is_empty()).then_some(neighbour)
}

fn route_address(address: &RouteAddress) -> Option<Vec<u8>> {
    match address {
        RouteAddress::Inet(ip) => Some(ip.octets().to_vec()),
        RouteAddress::Inet6(ip) => Some(ip.octets().to_vec()),
        _ => None,
    }
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_link(index: u32) -> Message {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(format!("eth{index}")),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::Mtu(1400),
        ];
        Message::NewLink(message)
    }

    fn an_address(index: u32, attributes: Vec<AddressAttribute>) -> Message {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = 24;
        message.attributes = attributes;
        Message::NewAddress(message)
    }

    fn a_route(protocol: RouteProtocol, attributes: Vec<RouteAttribute>) -> Message {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = protocol;
        message.attributes = attributes;
        Message::NewRoute(message)
    }

    #[test]
    fn each_interface_gets_what_is_its_own() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let local = |text| AddressAttribute::Local(ip(text));
        let found = gather(vec![
            a_link(2),
            a_link(3),
            an_address(3, vec![local("10.0.0.3"), AddressAttribute::Address(ip("10.0.0.3"))]),
            an_address(2, vec![local("10.0.0.2"), AddressAttribute::Address(ip("10.9.9.9"))]),
            an_address(9, vec![local("10.0.0.9")]),
        ]);
        assert_eq!(found.len(), 2);
        let [two, three] = [&found[0].interface, &found[1].interface];
        assert_eq!((two.name.as_str(), two.mtu, found[0].up), ("eth2", 1400, true));
        assert_eq!(
            (two.addresses[0].ip.as_slice(), two.addresses[0].peer.as_slice()),
            (&[10, 0, 0, 2][..], &[10, 9, 9, 9][..])
        );
        assert_eq!((three.addresses.len(), three.addresses[0].prefix), (1, 24));
        assert!(three.addresses[0].peer.is_empty());
    }

    #[test]
    fn routes_that_somebody_made_are_taken_on_link_ones_first() {
        let gateway = |last| RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, last].into()));
        let to = |third| RouteAttribute::Destination(RouteAddress::Inet([10, 0, third, 0].into()));
        let found = gather(vec![
            a_link(2),
            a_route(
                RouteProtocol::Boot,
                vec![gateway(1), RouteAttribute::Oif(2), RouteAttribute::Priority(5)],
            ),
            a_route(RouteProtocol::Kernel, vec![to(1), RouteAttribute::Oif(2)]),
            a_route(RouteProtocol::Static, vec![to(2), RouteAttribute::Oif(2)]),
            a_route(RouteProtocol::Static, vec![to(3), RouteAttribute::Oif(2), RouteAttribute::Table(77)]),
            a_route(RouteProtocol::Static, vec![to(4), RouteAttribute::Oif(8)]),
        ]);
        let routes = &found[0].interface.routes;
        assert_eq!(routes.len(), 2);
        assert_eq!((routes[0].destination.as_slice(), routes[0].gateway.len()), (&[10, 0, 2, 0][..], 0));
        assert_eq!((routes[1].gateway.as_slice(), routes[1].metric), (&[10, 0, 0, 1][..], 5));
    }
}

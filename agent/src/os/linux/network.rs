//! The sandbox's network: the VM's devices become the interfaces that the host describes, and those for which there is
//! none are taken away.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use skep_netlink::{Route as Netlink, allow, set_sysctl};
use skep_protocol::api::{Interface, InterfaceAddress, Neighbour, Network, Route};

use crate::error::Refusal;

const INTERFACES_MAX: usize = 32;
/// Addresses, routes and neighbours of one interface, each.
const ENTRIES_MAX: usize = 4096;
/// Linux's `IFNAMSIZ` without the final zero.
const NAME_MAX: usize = 15;

/// A network device of the VM.
#[derive(Debug)]
struct Device {
    name: String,
    index: u32,
}

/// Makes the guest's network what `network` says.
pub(crate) fn settle(network: &Network) -> Result<(), Refusal> {
    if network.interfaces.len() > INTERFACES_MAX {
        return Err(Refusal::invalid(format!("network: more than {INTERFACES_MAX} interfaces")));
    }
    network.interfaces.iter().try_for_each(check)?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Refusal::internal(format!("network: cannot {what}: {error}"))
    };
    let mut devices = devices().map_err(failed("list devices"))?;
    let mut taken = Vec::new();
    for interface in &network.interfaces {
        let device = devices.remove(&interface.device).ok_or_else(|| {
            Refusal::precondition(format!("network: the VM has no device for interface {}", interface.name))
        })?;
        taken.push((interface, device));
    }
    for device in devices.values() {
        take_away(device).map_err(failed(&format!("take {} away", device.name)))?;
    }
    if taken.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open().map_err(failed("open a netlink socket"))?;
    // Two devices may have each other's name.
    for (_, device) in taken.iter().filter(|(interface, device)| interface.name != device.name) {
        rename(&mut netlink, device.index, &format!("skep{}", device.index))
            .map_err(failed(&format!("rename {}", device.name)))?;
    }
    for (interface, device) in taken {
        configure(&mut netlink, interface, device.index)?;
    }
    Ok(())
}

fn check(interface: &Interface) -> Result<(), Refusal> {
    let name = &interface.name;
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if name.is_empty() || name.len() > NAME_MAX || !plain || [".", "..", "lo"].contains(&name.as_str()) {
        return Err(Refusal::invalid(format!("network: {name:?} is no name for an interface")));
    }
    let refused = |what: &str| Err(Refusal::invalid(format!("network: interface {name}: {what}")));
    if interface.mac.len() != 6 || interface.device.len() != 6 {
        return refused("an Ethernet address has 6 bytes");
    }
    let entries = [interface.addresses.len(), interface.routes.len(), interface.neighbours.len()];
    if entries.into_iter().max() > Some(ENTRIES_MAX) {
        return refused("too many addresses, routes or neighbours");
    }
    let plain = |key: &str| key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !interface.ipv6_settings.keys().all(|key| plain(key)) {
        return refused("the name of a setting has a letter that none has");
    }
    Ok(())
}

/// The VM's own devices by Ethernet address; tunnels and the like have no parent.
fn devices() -> io::Result<HashMap<Vec<u8>, Device>> {
    let mut found = HashMap::new();
    for entry in std::fs::read_dir("/sys/class/net")? {
        let directory = entry?.path();
        if !directory.join("device").exists() {
            continue;
        }
        let read = |file: &str| std::fs::read_to_string(directory.join(file));
        let index = read("ifindex")?.trim().parse().map_err(io::Error::other)?;
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(mac) = parse_mac(read("address")?.trim()) {
            found.insert(mac, Device { name, index });
        }
    }
    Ok(found)
}

fn parse_mac(text: &str) -> Option<Vec<u8>> {
    text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect()
}

/// Takes its driver from a device: no container sees it any more.
fn take_away(device: &Device) -> io::Result<()> {
    let parent = std::fs::canonicalize(Path::new("/sys/class/net").join(&device.name).join("device"))?;
    let id = parent.file_name().unwrap_or_default();
    std::fs::write(parent.join("driver/unbind"), id.as_encoded_bytes())
}

fn rename(netlink: &mut Netlink, index: u32, name: &str) -> io::Result<()> {
    let mut message = link(index);
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    netlink.change(Message::SetLink(message), 0)
}

fn configure(netlink: &mut Netlink, interface: &Interface, index: u32) -> Result<(), Refusal> {
    let name = &interface.name;
    let failed =
        |what: String| move |error: io::Error| Refusal::internal(format!("network: cannot {what}: {error}"));
    let mut message = link(index);
    message.attributes.push(LinkAttribute::IfName(name.clone()));
    message.attributes.push(LinkAttribute::Address(interface.mac.clone()));
    message.attributes.push(LinkAttribute::Mtu(interface.mtu));
    netlink
        .change(Message::SetLink(message), 0)
        .map_err(failed(format!("make a device {name} with MTU {}", interface.mtu)))?;
    for (key, value) in &interface.ipv6_settings {
        let setting = format!("ipv6/conf/{name}/{key}");
        set_sysctl(&setting, value).map_err(failed(format!("set {setting} to {value}")))?;
    }
    let mut message = link(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(Message::SetLink(message), 0).map_err(failed(format!("bring {name} up")))?;
    for address in &interface.addresses {
        let message = address_message(index, address)?;
        let given = netlink.change(Message::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL);
        allow(given, libc::EEXIST)
            .map_err(failed(format!("give {name} the address {}", shown(&address.ip, address.prefix))))?;
    }
    for route in &interface.routes {
        let message = route_message(index, route)?;
        // Two routes may differ in nothing but what the kernel takes for no difference: the first is kept.
        let made = netlink.change(Message::NewRoute(message), NLM_F_CREATE | NLM_F_APPEND);
        allow(made, libc::EEXIST).map_err(failed(format!(
            "make the route to {} by {name}",
            shown(&route.destination, route.prefix)
        )))?;
    }
    for neighbour in &interface.neighbours {
        let message = neighbour_message(index, neighbour)?;
        netlink
            .change(Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(failed(format!("write down a neighbour of {name}")))?;
    }
    Ok(())
}

fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn address_message(index: u32, address: &InterfaceAddress) -> Result<AddressMessage, Refusal> {
    let own = ip(&address.ip)?;
    let mut message = AddressMessage::default();
    message.header.family = family(own);
    message.header.prefix_len = prefix(own, address.prefix)?;
    message.header.scope = AddressScope::from(byte(address.scope)?);
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(own));
    let peer = optional_ip(&address.peer)?;
    message.attributes.push(AddressAttribute::Address(peer.unwrap_or(own)));
    if let Some(IpAddr::V4(broadcast)) = optional_ip(&address.broadcast)? {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    // Whether anybody else has it was asked where it was given to the sandbox.
    let mut flags = AddressFlags::Nodad;
    flags.set(AddressFlags::Noprefixroute, address.no_prefix_route);
    message.attributes.push(AddressAttribute::Flags(flags));
    Ok(message)
}

fn route_message(index: u32, route: &Route) -> Result<RouteMessage, Refusal> {
    let destination = ip(&route.destination)?;
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(destination),
        destination_prefix_length: prefix(destination, route.prefix)?,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::from(byte(route.protocol)?),
        scope: RouteScope::from(byte(route.scope)?),
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.header.flags.set(RouteFlags::Onlink, route.onlink);
    if route.prefix > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.into()));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    match (destination, optional_ip(&route.gateway)?) {
        (IpAddr::V4(_), Some(IpAddr::V6(gateway))) => {
            message.attributes.push(RouteAttribute::Via(RouteVia::Inet6(gateway)));
        }
        (_, Some(gateway)) => message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway))),
        (_, None) => {}
    }
    if let Some(source) = optional_ip(&route.source)? {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    if route.mtu != 0 {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    Ok(message)
}

fn neighbour_message(index: u32, neighbour: &Neighbour) -> Result<NeighbourMessage, Refusal> {
    let ip = ip(&neighbour.ip)?;
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(neighbour.mac.clone()));
    Ok(message)
}

fn ip(bytes: &[u8]) -> Result<IpAddr, Refusal> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(bytes).into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(|bytes| Ipv6Addr::from(bytes).into())
        .map_err(|_| Refusal::invalid(format!("network: an address of {} bytes", bytes.len())))
}

fn optional_ip(bytes: &[u8]) -> Result<Option<IpAddr>, Refusal> {
    if bytes.is_empty() { Ok(None) } else { ip(bytes).map(Some) }
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn prefix(ip: IpAddr, length: u32) -> Result<u8, Refusal> {
    let most = if ip.is_ipv4() { 32 } else { 128 };
    if length > most {
        return Err(Refusal::invalid(format!("network: {ip}/{length}: the prefix has {most} bits at most")));
    }
    byte(length)
}

fn byte(number: u32) -> Result<u8, Refusal> {
    u8::try_from(number).map_err(|_| Refusal::invalid(format!("network: {number} is more than 255")))
}

fn shown(bytes: &[u8], prefix: u32) -> String {
    ip(bytes).map_or_else(|refusal| refusal.message, |ip| format!("{ip}/{prefix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str) -> Interface {
        Interface { device: vec![2; 6], mac: vec![2; 6], name: name.into(), mtu: 1500, ..Interface::new() }
    }

    #[test]
    fn faults_are_told_with_the_interface() {
        let mut good = interface("eth0");
        good.ipv6_settings.insert("disable_ipv6".into(), "0".into());
        check(&good).expect("good");
        for name in ["", "lo", "..", "a/b", "a b", "sixteen-letters-"] {
            assert!(check(&interface(name)).is_err(), "{name}");
        }
        let fault = |change: fn(&mut Interface)| {
            let mut interface = interface("eth0");
            change(&mut interface);
            check(&interface).expect_err("fault").message
        };
        assert!(fault(|i| i.mac.clear()).starts_with("network: interface eth0: an Ethernet address"));
        let setting =
            |i: &mut Interface| drop(i.ipv6_settings.insert("../all/forwarding".into(), "1".into()));
        assert!(fault(setting).contains("setting"));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let address = |ip: Vec<u8>, prefix| InterfaceAddress { ip, prefix, ..InterfaceAddress::new() };
        assert!(address_message(1, &address(vec![10, 0, 0, 1], 24)).is_ok());
        assert!(address_message(1, &address(vec![10, 0, 0, 1], 33)).is_err());
        assert!(address_message(1, &address(vec![1; 16], 128)).is_ok());
        assert!(address_message(1, &address(vec![1; 5], 1)).is_err());
        let route = Route { destination: vec![0; 4], scope: 256, ..Route::new() };
        assert!(route_message(1, &route).is_err());
    }

    #[test]
    fn the_vms_devices_are_told_by_their_addresses() {
        assert_eq!(parse_mac("02:00:ab:cd:ef:01"), Some(vec![2, 0, 0xab, 0xcd, 0xef, 1]));
        assert_eq!(parse_mac("loopback"), None);
    }
}

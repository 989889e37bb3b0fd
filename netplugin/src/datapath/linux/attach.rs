//! One sandbox's interface.

use std::net::Ipv6Addr;

use super::link::Link;
use super::netlink::{Route, kernel};
use super::netns::{Netns, set_sysctl};
use super::shape;
use crate::cni::{self, Interface};
use crate::datapath::{DatapathError, Existing};
use crate::network::{Attachment, Kind, Network};

/// Whether the container's side can take the interface.
pub(super) fn validate(attachment: &Attachment) -> Result<(), DatapathError> {
    if let Some(port) = attachment.ports.iter().find(|port| port.host_ip == Some(Ipv6Addr::LOCALHOST.into()))
    {
        return Err(DatapathError::Unsupported {
            what: format!("portMappings: publishing {port}"),
            why: "Linux takes no answer for ::1 from a bridge; publish it on an address of the host's"
                .to_owned(),
        });
    }
    let netns = Netns::open(&attachment.netns)?;
    if attachment.kind == Kind::Chained {
        return Ok(());
    }
    let present = netns.run(|| Route::open()?.link(&attachment.ifname))?;
    if present.is_some() {
        return Err(DatapathError::Conflict(format!(
            "there is an interface {} in {} already",
            attachment.ifname, attachment.netns
        )));
    }
    Ok(())
}

/// The interface another plugin of the chain made.
pub(super) fn find_existing(
    route: &mut Route,
    interfaces: &[Interface],
    netns: &str,
    ifname: &str,
) -> Result<Existing, DatapathError> {
    let conflict = |why: String| DatapathError::Conflict(format!("prevResult: {why}"));
    let inside = Netns::open(netns)?.run(|| Route::open()?.link(ifname))?;
    let inside = inside.ok_or_else(|| conflict(format!("there is no interface {ifname} in {netns}")))?;
    let links = route.links()?;
    let name_of =
        |index: u32| links.iter().find(|(_, link)| link.index == index).map(|(name, _)| name.clone());
    let ours = interfaces.iter().filter(|interface| interface.sandbox.is_none()).find_map(|interface| {
        let (name, link) = links.iter().find(|(name, _)| *name == interface.name)?;
        Some((name.clone(), name_of(link.master?)?))
    });
    let (host_ifname, bridge) = ours.ok_or_else(|| {
        conflict(
            "no interface of the host in it is a port of a bridge: what is filtered in a chain is what \
             the plugin bridge makes, not what ptp, macvlan, ipvlan and the like do"
                .to_owned(),
        )
    })?;
    let mac = inside.mac.ok_or_else(|| conflict(format!("{ifname} has no Ethernet address")))?;
    Ok(Existing { host_ifname, bridge, mac, mtu: inside.mtu })
}

/// Makes the interface. The rules are there already.
pub(super) fn attach(
    route: &mut Route,
    network: &Network,
    attachment: &Attachment,
) -> Result<(), DatapathError> {
    let bridge = route.need_link(&attachment.bridge)?;
    let netns = Netns::open(&attachment.netns)?;
    if attachment.kind == Kind::Veth {
        let peer = (attachment.ifname.as_str(), attachment.mac);
        route.create_veth(&attachment.host_ifname, bridge.index, peer, attachment.mtu, &netns)?;
    }
    let port = route.need_link(&attachment.host_ifname)?;
    if attachment.kind == Kind::Veth {
        route.raise_port(port.index, &attachment.host_ifname)?;
        route.add_station(port.index, attachment.mac.0, None).map_err(|error| {
            kernel(format!("write down that {} is behind {}", attachment.mac, attachment.host_ifname), error)
        })?;
        netns.run(|| configure(network, attachment))?;
        route.await_carrier(&attachment.host_ifname)?;
    }
    if !attachment.ports.is_empty() {
        super::bridge::publish_on_loopback(&attachment.bridge)?;
    }
    write_down(route, bridge.index, attachment)?;
    if let Some(bandwidth) = &attachment.bandwidth {
        shape::shape(route, attachment, &port, bandwidth)?;
    }
    Ok(())
}

/// Gives addresses and routes to an interface that was made without.
pub(super) fn give_addresses(
    route: &mut Route,
    network: &Network,
    attachment: &Attachment,
) -> Result<(), DatapathError> {
    let bridge = route.need_link(&attachment.bridge)?;
    Netns::open(&attachment.netns)?.run(|| configure(network, attachment))?;
    write_down(route, bridge.index, attachment)
}

/// Nobody has to ask for a sandbox's Ethernet address.
fn write_down(route: &mut Route, bridge: u32, attachment: &Attachment) -> Result<(), DatapathError> {
    attachment.senders().into_iter().try_for_each(|ip| route.add_neighbour(bridge, ip, attachment.mac))
}

/// The container's side: addresses and routes. Runs inside its namespace.
fn configure(network: &Network, attachment: &Attachment) -> Result<(), DatapathError> {
    let mut route = Route::open()?;
    let name = &attachment.ifname;
    let link = route.need_link(name)?;
    let ipv6 = attachment.ips().any(|ip| ip.is_ipv6());
    if ipv6 {
        // Nobody else has our addresses: the allocator and the frames' rules see to it.
        set_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        set_sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
        // Routes may come from a router, addresses may not: what is sent from one that was not given gets nowhere.
        set_sysctl(&format!("ipv6/conf/{name}/autoconf"), "0")?;
        set_sysctl(&format!("ipv6/conf/{name}/accept_ra"), if network.accept_ra { "2" } else { "0" })?;
        raise_with_link_local(&mut route, &link, name)?;
    } else {
        route.raise_quiet(link.index, name)?;
    }
    for address in &attachment.addresses {
        route.add_address(link.index, address.address, name)?;
    }
    for wanted in &attachment.routes {
        route.add_route(link.index, wanted, gateway_of(attachment, wanted))?;
    }
    Ok(())
}

/// The rules let the link-local address of EUI-64 out and no other: make sure the kernel makes that one.
fn raise_with_link_local(route: &mut Route, link: &Link, name: &str) -> Result<(), DatapathError> {
    set_sysctl(&format!("ipv6/conf/{name}/addr_gen_mode"), "0")?;
    route.raise_plain(link.index, name)
}

/// A route's gateway: its own, or that of the first address of its family. None for one on the link.
pub(super) fn gateway_of(attachment: &Attachment, route: &cni::Route) -> Option<std::net::IpAddr> {
    route.gw.or_else(|| {
        attachment
            .addresses
            .iter()
            .find(|address| address.address.addr().is_ipv4() == route.dst.addr().is_ipv4())
            .and_then(|address| address.gateway)
    })
}

/// Removes the interface, as much of it as there is. Goes on after an error.
pub(super) fn detach(route: &mut Route, attachment: &Attachment) -> Vec<DatapathError> {
    let mut errors = Vec::new();
    if attachment.kind == Kind::Veth {
        errors.extend(route.delete_link(&attachment.host_ifname).err());
    }
    errors.extend(shape::unshape(route, attachment).err());
    match route.link(&attachment.bridge) {
        Ok(Some(bridge)) => {
            for ip in attachment.senders() {
                errors.extend(route.delete_neighbour(bridge.index, ip).err());
            }
        }
        Ok(None) => {}
        Err(error) => errors.push(error),
    }
    errors
}

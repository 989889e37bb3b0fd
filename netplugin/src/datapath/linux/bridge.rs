//! A network's bridge: made where it is missing, left alone where it is right.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::link::Link;
use super::netlink::Route;
use super::netns::{set_sysctl, sysctl};
use super::vxlan;
use crate::datapath::DatapathError;
use crate::mac::is_link_local;
use crate::network::{Attachment, Network};

/// The MTU where nothing says otherwise.
const ETHERNET_MTU: u32 = 1500;

/// Whether the kernel has what bridges need from it.
pub(super) fn check_kernel() -> Result<(), DatapathError> {
    if Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        return Ok(());
    }
    Err(DatapathError::Unsupported {
        what: "filtering between sandboxes of one bridge".to_owned(),
        why: "the kernel has no br_netfilter (modprobe br_netfilter)".to_owned(),
    })
}

/// See [`crate::datapath::Datapath::prepare`].
pub(super) fn prepare(route: &mut Route, network: &mut Network) -> Result<(), DatapathError> {
    network.owns_bridge = route.link(&network.bridge)?.is_none();
    let underlay = underlay_mtu(route, network)?;
    if network.mtu == 0 {
        network.mtu = underlay;
    } else if network.vpc.is_some() && network.mtu > underlay {
        return Err(DatapathError::Conflict(format!(
            "mtu: {} is more than the {underlay} bytes that the underlay carries in VXLAN",
            network.mtu
        )));
    }
    network.links = vxlan::plan(route, network)?;
    Ok(())
}

fn underlay_mtu(route: &mut Route, network: &Network) -> Result<u32, DatapathError> {
    if let Some(vpc) = &network.vpc {
        return vxlan::inner_mtu(route, vpc);
    }
    if let Some(nic) = &network.nic {
        return Ok(route.need_link(nic)?.mtu);
    }
    for ipv6 in [false, true] {
        let default = route.routes(ipv6)?.into_iter().find(|(net, _, _)| net.prefix_len() == 0);
        if let Some((_, _, Some(index))) = default {
            let mtu =
                route.links()?.into_iter().find(|(_, link)| link.index == index).map(|(_, link)| link.mtu);
            return Ok(mtu.unwrap_or(ETHERNET_MTU));
        }
    }
    Ok(ETHERNET_MTU)
}

/// Whether the host has something in the way of the network or of the attachment's subnets.
pub(super) fn validate(
    route: &mut Route,
    network: &Network,
    attachment: Option<&Attachment>,
) -> Result<(), DatapathError> {
    let bridge = route.link(&network.bridge)?;
    if let Some(link) = &bridge
        && link.kind != "bridge"
    {
        return Err(DatapathError::Conflict(format!(
            "bridge: interface {} is there and no bridge",
            network.bridge
        )));
    }
    if let Some(nic) = &network.nic {
        let link = route
            .link(nic)?
            .ok_or_else(|| DatapathError::Conflict(format!("uplink: there is no interface {nic}")))?;
        let ours = bridge.as_ref().map(|bridge| bridge.index);
        if link.master.is_some() && link.master != ours {
            return Err(DatapathError::Conflict(format!("uplink: {nic} is a port of another bridge")));
        }
        let address = |(index, net): &(u32, IpNet)| *index == link.index && !is_link_local(net.addr());
        if link.master.is_none()
            && let Some((_, net)) = route.addresses()?.iter().find(|one| address(one))
        {
            // A port's own addresses do not work: the host would cut itself off.
            return Err(DatapathError::Conflict(format!("uplink: {nic} has the host's address {net}")));
        }
    }
    if network.gateways.is_empty() {
        return Ok(());
    }
    let own = bridge.map_or(0, |bridge| bridge.index);
    for (index, net) in route.addresses()? {
        let given = attachment.iter().flat_map(|one| &one.addresses).map(|address| address.address);
        let clash = given.chain(network.gateways.iter().copied()).find(|address| {
            // Longer prefixes are host routes and point-to-point links; a default route is no clash either.
            index != own && (net.contains(&address.trunc()) || address.contains(&net.trunc()))
        });
        if let Some(address) = clash {
            return Err(DatapathError::Conflict(format!(
                "subnet {} overlaps {net}, which this host has on another interface",
                address.trunc()
            )));
        }
    }
    Ok(())
}

/// Makes the bridge and what belongs to it, where it is missing. `changed`: an earlier declaration may have left more.
pub(super) fn ensure(route: &mut Route, network: &Network, changed: bool) -> Result<(), DatapathError> {
    let name = &network.bridge;
    if network.owns_bridge {
        route.create_bridge(name, network.mac, network.mtu)?;
    }
    let link = route.need_link(name)?;
    if link.kind != "bridge" {
        return Err(DatapathError::Conflict(format!("bridge: interface {name} is there and no bridge")));
    }
    if !link.filters_bridged {
        route.filter_bridged(name)?;
    }
    if network.owns_bridge && link.mac != Some(network.mac) {
        return Err(DatapathError::Conflict(format!(
            "bridge {name} has lost its Ethernet address {}",
            network.mac
        )));
    }
    if !link.up {
        configure(route, network, &link)?;
    }
    let present = route.addresses()?;
    for gateway in &network.gateways {
        if !present.contains(&(link.index, *gateway)) {
            route.add_address(link.index, *gateway, name)?;
            enable_forwarding(gateway.addr())?;
        }
    }
    if let Some(nic) = &network.nic {
        let nic_link = route.need_link(nic)?;
        if nic_link.master != Some(link.index) {
            route.set_master(nic_link.index, link.index, nic)?;
            route.raise_plain(nic_link.index, nic)?;
        }
    }
    if !changed && network.links.is_empty() {
        return Ok(());
    }
    vxlan::ensure(route, network, &link)
}

/// Settings that go with a bridge of ours coming up.
fn configure(route: &mut Route, network: &Network, link: &Link) -> Result<(), DatapathError> {
    let name = &network.bridge;
    // Settings are files called after the interface; a dot in a name is a slash to nobody but sysctl(8).
    set_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    set_sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
    if network.owns_bridge {
        route.raise_quiet(link.index, name)
    } else {
        route.raise_plain(link.index, name)
    }
}

/// Lets the host reach published ports at 127.0.0.1: what leaves by the bridge has that source before it is translated.
/// The rules keep sandboxes, and whoever else is on the bridge, from using it the other way round.
///
/// IPv6 has no such setting. `::1` gets out, but the bridge's conntrack puts it back into the answer before the kernel
/// looks at it, which takes no packet for `::1` from a wire.
pub(super) fn publish_on_loopback(bridge: &str) -> Result<(), DatapathError> {
    set_sysctl(&format!("ipv4/conf/{bridge}/route_localnet"), "1")
}

/// Lets the host route for sandboxes.
fn enable_forwarding(gateway: IpAddr) -> Result<(), DatapathError> {
    if gateway.is_ipv4() {
        return set_sysctl("ipv4/ip_forward", "1");
    }
    if sysctl("ipv6/conf/all/forwarding").as_deref() == Some("1") {
        return Ok(());
    }
    // A router does not listen to routers unless told to: without this the host would lose its own routes.
    let interfaces = std::fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    for name in interfaces.filter_map(|entry| entry.file_name().into_string().ok()) {
        let path = format!("ipv6/conf/{name}/accept_ra");
        if name != "all" && sysctl(&path).as_deref() == Some("1") {
            set_sysctl(&path, "2")?;
        }
    }
    set_sysctl("ipv6/conf/all/forwarding", "1")
}

/// Removes what [`ensure`] made. Goes on after an error.
pub(super) fn remove(route: &mut Route, network: &Network) -> Vec<DatapathError> {
    let mut errors = vxlan::remove(route, network);
    if let Some(nic) = &network.nic {
        errors.extend(release_nic(route, nic).err());
    }
    if network.owns_bridge {
        errors.extend(route.delete_link(&network.bridge).err());
        return errors;
    }
    match route.link(&network.bridge) {
        Ok(Some(link)) => {
            for gateway in &network.gateways {
                errors.extend(route.delete_address(link.index, *gateway, &network.bridge).err());
            }
        }
        Ok(None) => {}
        Err(error) => errors.push(error),
    }
    errors
}

fn release_nic(route: &mut Route, nic: &str) -> Result<(), DatapathError> {
    match route.link(nic)? {
        Some(link) if link.master.is_some() => route.set_master(link.index, 0, nic),
        _ => Ok(()),
    }
}

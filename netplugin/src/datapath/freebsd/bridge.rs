//! The bridge of a network, by the driver commands of if_bridge(4).

use ipnet::IpNet;

use skep_ifnet::sys::{load_module, set_sysctl, sysctl};
use skep_ifnet::{Control, DISCOVERS, LEARNS, Link, find, links, need, route};

use super::pf::network::Outside;
use super::pf::ruleset::check_name;
use super::pf::tree::BRIDGE_GROUPS;
use super::vxlan;
use crate::datapath::DatapathError;
use crate::mac::is_link_local;
use crate::network::{Attachment, Network};

/// What Ethernet carries where nothing else is known.
const ETHERNET_MTU: u32 = 1500;

/// See [`crate::datapath::Datapath::prepare`].
pub(super) fn prepare(network: &mut Network) -> Result<(), DatapathError> {
    check_name(&network.bridge)?;
    if let Some(nic) = &network.nic {
        check_name(nic)?;
    }
    network.owns_bridge = find(&network.bridge)?.is_none();
    let underlay = underlay_mtu(network)?;
    if network.mtu == 0 {
        network.mtu = underlay;
    } else if network.vpc.is_some() && network.mtu > underlay {
        return Err(DatapathError::Conflict(format!(
            "mtu: {} is more than the {underlay} bytes that the underlay carries in VXLAN",
            network.mtu
        )));
    }
    network.links = vxlan::plan(network)?;
    Ok(())
}

fn underlay_mtu(network: &Network) -> Result<u32, DatapathError> {
    if let Some(vpc) = &network.vpc {
        return vxlan::inner_mtu(vpc);
    }
    match &network.nic {
        Some(nic) => Ok(need(nic)?.mtu),
        None => Ok(ETHERNET_MTU),
    }
}

/// Whether the host has something in the way of the network or of the attachment's subnets.
pub(super) fn validate(
    control: &Control,
    network: &Network,
    attachment: Option<&Attachment>,
) -> Result<(), DatapathError> {
    let all = links()?;
    if let Some(nic) = &network.nic {
        let link = all
            .iter()
            .find(|link| link.name == *nic)
            .ok_or_else(|| DatapathError::Conflict(format!("uplink: there is no interface {nic}")))?;
        let ours = control.port_flags(&network.bridge, nic).ok().flatten().is_some();
        if let (false, Some(net)) = (ours, link.addresses.iter().find(|net| !is_link_local(net.addr()))) {
            return Err(DatapathError::Conflict(format!("uplink: {nic} has the host's address {net}")));
        }
    }
    if all.iter().any(|link| link.name == network.bridge) {
        let probe = control.port_flags(&network.bridge, "-");
        if probe.is_err() {
            return Err(DatapathError::Conflict(format!(
                "bridge: interface {} is there and no bridge",
                network.bridge
            )));
        }
    }
    if network.gateways.is_empty() {
        return Ok(());
    }
    for link in all.iter().filter(|link| link.name != network.bridge) {
        for net in &link.addresses {
            let given = attachment.iter().flat_map(|one| &one.addresses).map(|address| address.address);
            let clash = given
                .chain(network.gateways.iter().copied())
                .find(|address| net.contains(&address.trunc()) || address.contains(&net.trunc()));
            if let Some(address) = clash {
                return Err(DatapathError::Conflict(format!(
                    "subnet {} overlaps {net}, which this host has on another interface",
                    address.trunc()
                )));
            }
        }
    }
    Ok(())
}

/// Settings without which bridged packets pass no filter.
pub(super) const SETTINGS: [&str; 2] = ["net.link.bridge.pfil_member", "net.link.bridge.pfil_local_phys"];

/// Makes the bridge and what belongs to it, where it is missing.
pub(super) fn ensure(control: &Control, network: &Network) -> Result<(), DatapathError> {
    let name = &network.bridge;
    load_module("if_bridge");
    for setting in SETTINGS {
        set_sysctl(setting, 1)?;
    }
    if find(name)?.is_none() {
        if !network.owns_bridge {
            return Err(DatapathError::Conflict(format!(
                "bridge {name} is gone, and it was not ours to make"
            )));
        }
        let made = control.create("bridge")?;
        let named = control
            .set_mac(&made, network.mac.0)
            .and_then(|()| control.set_mtu(&made, network.mtu))
            .and_then(|()| control.rename(&made, name));
        if let Err(error) = named {
            // Nobody would find it under that name.
            let _ = control.destroy(&made);
            return Err(error.into());
        }
    }
    for group in BRIDGE_GROUPS {
        control.add_group(name, group)?;
    }
    let link = need(name)?;
    if !link.up {
        control.set_ipv6(name, network.gateways.iter().any(|net| net.addr().is_ipv6()))?;
        control.raise(name)?;
    }
    for gateway in &network.gateways {
        if !link.addresses.contains(gateway) {
            control.add_address(name, *gateway)?;
            let family = if gateway.addr().is_ipv4() { "ip" } else { "ip6" };
            set_sysctl(
                &format!("net.inet{}.{family}.forwarding", if family == "ip6" { "6" } else { "" }),
                1,
            )?;
        }
    }
    if let Some(nic) = &network.nic {
        control.add_port(name, nic, LEARNS | DISCOVERS)?;
        control.raise(nic)?;
    }
    vxlan::ensure(control, network)
}

/// Interfaces by which packets leave for the world outside: what has an address and is neither ours nor loopback.
pub(super) fn outside(bridges: &[String]) -> Result<Vec<Outside>, DatapathError> {
    let able = |link: &Link, ipv6: bool| {
        link.addresses.iter().any(|net: &IpNet| net.addr().is_ipv6() == ipv6 && !is_link_local(net.addr()))
    };
    Ok(links()?
        .into_iter()
        .filter(|link| !link.loopback && !bridges.contains(&link.name) && check_name(&link.name).is_ok())
        .map(|link| Outside { ipv4: able(&link, false), ipv6: able(&link, true), name: link.name })
        .filter(|one| one.ipv4 || one.ipv6)
        .collect())
}

/// Removes what [`ensure`] made. Goes on after an error.
pub(super) fn remove(control: &Control, network: &Network) -> Vec<DatapathError> {
    let mut errors = vxlan::remove(control, network);
    if let Some(nic) = &network.nic {
        errors.extend(control.remove_port(&network.bridge, nic).err().map(DatapathError::from));
    }
    if network.owns_bridge {
        errors.extend(control.destroy(&network.bridge).err().map(DatapathError::from));
        return errors;
    }
    for gateway in &network.gateways {
        errors.extend(control.delete_address(&network.bridge, gateway.addr()).err().map(DatapathError::from));
    }
    errors
}

/// What is not as [`ensure`] left it.
pub(super) fn check(network: &Network, found: &mut Vec<String>) -> Result<(), DatapathError> {
    let name = &network.bridge;
    let Some(link) = find(name)? else {
        found.push(format!("bridge {name} is gone"));
        return Ok(());
    };
    if !link.up {
        found.push(format!("bridge {name} is down"));
    }
    for gateway in network.gateways.iter().filter(|gateway| !link.addresses.contains(gateway)) {
        found.push(format!("bridge {name} has lost {gateway}"));
    }
    for setting in SETTINGS {
        if sysctl(setting).ok() != Some(1) {
            found.push(format!("{setting} is not 1: bridged packets pass no filter"));
        }
    }
    Ok(())
}

/// What the host knows of a sandbox as a neighbour: fixed, so that nobody can say otherwise.
pub(super) fn neighbours(attachment: &Attachment, add: bool) -> Result<(), DatapathError> {
    let Some(bridge) = find(&attachment.bridge)? else { return Ok(()) };
    for ip in attachment.ips() {
        // The host has a route to it only where it is the gateway.
        if !bridge.addresses.iter().any(|net| net.contains(&ip)) {
            continue;
        }
        route::delete_neighbour(bridge.index, ip)?;
        if add {
            route::add_neighbour(bridge.index, ip, attachment.mac.0)?;
        }
    }
    Ok(())
}

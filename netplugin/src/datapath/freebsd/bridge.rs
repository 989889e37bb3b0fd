//! The bridge of a network, by the driver commands of if_bridge(4).

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::interface::{Control, Link, find, links, name_of, need};
use super::pf::ruleset::{GROUP, Outside, check_name};
use super::sys::{allow, kernel, load_module, set_sysctl, sysctl};
use super::{route, vxlan};
use crate::datapath::DatapathError;
use crate::mac::Mac;
use crate::network::{Attachment, Network};

/// What Ethernet carries where nothing else is known.
const ETHERNET_MTU: u32 = 1500;

// net/if_bridgevar.h
const BRDGADD: u64 = 0;
const BRDGDEL: u64 = 1;
const BRDGGIFFLGS: u64 = 2;
const BRDGSIFFLGS: u64 = 3;
const BRDGSADDR: u64 = 8;
const IFBAF_STATIC: u8 = 1;
/// A port whose source addresses are learnt.
pub(super) const LEARNS: u32 = 0x1;
/// A port that gets frames whose destination nobody knows.
pub(super) const DISCOVERS: u32 = 0x2;
/// A port that gets nothing from others like it.
pub(super) const PRIVATE: u32 = 0x800;

/// `struct ifbreq`.
#[repr(C)]
#[derive(Default)]
struct Member {
    name: [u8; 16],
    flags: u32,
    rest: [u32; 15],
}

/// `struct ifbareq`.
#[repr(C)]
#[derive(Default)]
struct Station {
    name: [u8; 16],
    expire: u64,
    flags: u8,
    mac: [u8; 6],
    // Aligns the VLAN's number.
    _pad: u8,
    vlan: u16,
}

const _: () = assert!(size_of::<Member>() == 80 && size_of::<Station>() == 40);

impl Control {
    fn member(&self, bridge: &str, command: u64, port: &str, flags: u32) -> io::Result<u32> {
        let mut member = Member { name: name_of(port)?, flags, ..Member::default() };
        self.driver(bridge, command, command == BRDGGIFFLGS, &mut member)?;
        Ok(member.flags)
    }

    /// Makes an interface a port of a bridge, with these flags of its own; fine if it is.
    pub(super) fn add_port(&self, bridge: &str, port: &str, flags: u32) -> Result<(), DatapathError> {
        allow(self.member(bridge, BRDGADD, port, 0).map(|_| ()), libc::EEXIST)
            .and_then(|()| self.member(bridge, BRDGSIFFLGS, port, flags).map(|_| ()))
            .map_err(|error| kernel(format!("make {port} a port of {bridge}"), error))
    }

    /// Takes a port off a bridge; fine if it is not there.
    pub(super) fn remove_port(&self, bridge: &str, port: &str) -> Result<(), DatapathError> {
        let result = self.member(bridge, BRDGDEL, port, 0).map(|_| ());
        allow(allow(result, libc::ENOENT), libc::ENXIO)
            .map_err(|error| kernel(format!("take {port} off {bridge}"), error))
    }

    /// The flags of a port; none if it is no port of this bridge.
    pub(super) fn port_flags(&self, bridge: &str, port: &str) -> Result<Option<u32>, DatapathError> {
        match self.member(bridge, BRDGGIFFLGS, port, 0) {
            Ok(flags) => Ok(Some(flags)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO)) => Ok(None),
            Err(error) => Err(kernel(format!("look at port {port} of {bridge}"), error)),
        }
    }

    /// Writes down for good behind which port an Ethernet address is.
    pub(super) fn add_station(&self, bridge: &str, port: &str, mac: Mac) -> Result<(), DatapathError> {
        let add = || {
            let mut station = Station {
                name: name_of(port)?,
                flags: IFBAF_STATIC,
                mac: mac.0,
                vlan: 0,
                ..Station::default()
            };
            self.driver(bridge, BRDGSADDR, false, &mut station)
        };
        add().map_err(|error| kernel(format!("write down that {mac} is behind {port}"), error))
    }
}

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
    attachment: &Attachment,
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
            let clash = attachment
                .addresses
                .iter()
                .map(|address| address.address)
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

pub(super) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
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
            .set_mac(&made, network.mac)
            .and_then(|()| control.set_mtu(&made, network.mtu))
            .and_then(|()| control.rename(&made, name));
        if let Err(error) = named {
            // Nobody would find it under that name.
            let _ = control.destroy(&made);
            return Err(error);
        }
    }
    control.add_group(name, GROUP)?;
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
        errors.extend(control.remove_port(&network.bridge, nic).err());
    }
    if network.owns_bridge {
        errors.extend(control.destroy(&network.bridge).err());
        return errors;
    }
    for gateway in &network.gateways {
        errors.extend(control.delete_address(&network.bridge, gateway.addr()).err());
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
            route::add_neighbour(bridge.index, ip, attachment.mac)?;
        }
    }
    Ok(())
}

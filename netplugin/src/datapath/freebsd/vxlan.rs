//! The links of a stretched network, by the driver commands of vxlan(4). Each has one peer; what more peers take is in
//! [`super::flood`].

use std::net::IpAddr;

use skep_ifnet::sys::{allow, load_module};
use skep_ifnet::{Control, DISCOVERS, Insn, LEARNS, Netgraph, PRIVATE, find, links};

use super::pf::tree::GROUP;
use super::{flood, kernel};
use crate::datapath::DatapathError;
use crate::mac::Mac;
use crate::network::Network;
use crate::vxlan::{self, Node, Vpc, VpcError};

/// `union vxlan_sockaddr` of net/if_vxlan.h, spelled as the longer of the two.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Address([u32; 7]);

/// `struct ifvxlanparam` of net/if_vxlan.h.
#[repr(C)]
#[derive(Default)]
struct Parameters {
    with: u64,
    vni: u32,
    local: Address,
    remote: Address,
    local_port: u16,
    remote_port: u16,
    lowest_port: u16,
    highest_port: u16,
    multicast: [u8; 16],
    table_timeout: u32,
    table_max: u32,
    ttl: u8,
    learn: u8,
}

/// `struct ifvxlancmd` of net/if_vxlan.h.
#[repr(C)]
#[derive(Default)]
struct Command {
    flags: u32,
    vni: u32,
    table_timeout: u32,
    table_max: u32,
    port: u16,
    lowest_port: u16,
    highest_port: u16,
    mac: [u8; 6],
    ttl: u8,
    address: Address,
    interface: [u8; 16],
}

const _: () = assert!(size_of::<Parameters>() == 104 && size_of::<Command>() == 76);

const WITH_VNI: u64 = 0x1;
const WITH_LOCAL4: u64 = 0x2;
const WITH_LOCAL6: u64 = 0x4;
const WITH_REMOTE4: u64 = 0x8;
const WITH_REMOTE6: u64 = 0x10;
const WITH_LOCAL_PORT: u64 = 0x20;
const WITH_REMOTE_PORT: u64 = 0x40;
const VXLAN_CMD_FTABLE_ENTRY_ADD: u64 = 13;
/// Ports for links that only send: below those that the kernel gives to others, and known for nothing.
const SENDERS: std::ops::Range<u16> = 9700..9900;

fn address(ip: IpAddr) -> Address {
    let mut bytes = [0; 28];
    match ip {
        IpAddr::V4(ip) => {
            bytes[..2].copy_from_slice(&[16, 2]);
            bytes[4..8].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes[..2].copy_from_slice(&[28, 28]);
            bytes[8..24].copy_from_slice(&ip.octets());
        }
    }
    let mut words = [0; 7];
    for (word, four) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = four.try_into().map_or(0, u32::from_ne_bytes);
    }
    Address(words)
}

/// Which node this host is, and the smallest MTU of the interfaces its underlay addresses are on.
fn local_node(vpc: &Vpc) -> Result<(&Node, u32), DatapathError> {
    let all = links()?;
    let ips: Vec<IpAddr> = all.iter().flat_map(|link| &link.addresses).map(ipnet::IpNet::addr).collect();
    let node = vpc.local(&ips)?;
    let mtu = all
        .iter()
        .filter(|link| node.addresses().any(|ip| link.addresses.iter().any(|net| net.addr() == ip)))
        .map(|link| link.mtu)
        .min();
    Ok((node, mtu.ok_or(VpcError::NotANode)?))
}

/// The MTU that the underlay leaves to the network.
pub(super) fn inner_mtu(vpc: &Vpc) -> Result<u32, DatapathError> {
    let (node, mtu) = local_node(vpc)?;
    mtu.checked_sub(vpc.overhead()).filter(|mtu| *mtu >= 576).ok_or_else(|| {
        DatapathError::Conflict(format!(
            "the interface with {} has an MTU of {mtu}, too small for VXLAN",
            node.address
        ))
    })
}

/// The links this node must have.
pub(super) fn plan(network: &Network) -> Result<Vec<vxlan::Link>, DatapathError> {
    let Some(vpc) = &network.vpc else { return Ok(Vec::new()) };
    let (node, _) = local_node(vpc)?;
    Ok(vpc.plan(&network.name, node)?)
}

/// Makes the links and their entries as the record says.
pub(super) fn ensure(control: &Control, network: &Network) -> Result<(), DatapathError> {
    for wanted in &network.links {
        load_module("if_vxlan");
        if find(&wanted.name)?.is_none() {
            let Some(first) = wanted.flood_to.first() else { continue };
            create(control, network, wanted, (&wanted.name, *first, wanted.port))?;
        }
        for (mac, peer) in &wanted.stations {
            add_station(control, wanted, *mac, *peer)?;
        }
        // Split horizon: what came by one of them leaves by none.
        control.add_port(&network.bridge, &wanted.name, LEARNS | DISCOVERS | PRIVATE)?;
        control.add_group(&wanted.name, GROUP)?;
        control.raise(&wanted.name)?;
        for (name, peer) in flood::senders(wanted) {
            if find(&name)?.is_none() {
                create_sender(control, network, wanted, &name, peer)?;
            }
            control.add_port(&network.bridge, &name, DISCOVERS | PRIVATE)?;
            control.add_group(&name, GROUP)?;
        }
    }
    Ok(())
}

/// Makes a link that only sends. What arrives at its port, from whomever, goes nowhere.
fn create_sender(
    control: &Control,
    network: &Network,
    wanted: &vxlan::Link,
    name: &str,
    peer: IpAddr,
) -> Result<(), DatapathError> {
    /// BPF's "return 0": the frame is dropped.
    const NONE: [Insn; 1] = [Insn { code: 0x06, jt: 0, jf: 0, k: 0 }];
    for port in SENDERS {
        create(control, network, wanted, (name, peer, port))?;
        let works = || -> Result<bool, DatapathError> {
            Netgraph::open()?.filter(name, &NONE)?;
            control.raise(name)?;
            Ok(control.is_running(name)?)
        };
        match works() {
            Ok(true) => return Ok(()),
            // Somebody else has the port, or another link of ours to another peer.
            Ok(false) => control.destroy(name)?,
            Err(error) => {
                let _ = control.destroy(name);
                return Err(error);
            }
        }
    }
    Err(DatapathError::Conflict(format!(
        "no UDP port of {}-{} is free for a VXLAN link to {peer}",
        SENDERS.start,
        SENDERS.end - 1
    )))
}

/// Makes a link with this name, this peer and this port of ours.
fn create(
    control: &Control,
    network: &Network,
    wanted: &vxlan::Link,
    (name, peer, port): (&str, IpAddr, u16),
) -> Result<(), DatapathError> {
    let (local, remote) = match wanted.local {
        IpAddr::V4(_) => (WITH_LOCAL4, WITH_REMOTE4),
        IpAddr::V6(_) => (WITH_LOCAL6, WITH_REMOTE6),
    };
    let mut parameters = Parameters {
        with: WITH_VNI | local | remote | WITH_LOCAL_PORT | WITH_REMOTE_PORT,
        vni: wanted.vni,
        local: address(wanted.local),
        remote: address(peer),
        local_port: port,
        remote_port: wanted.port,
        ..Parameters::default()
    };
    let made = control.create_with("vxlan", (&raw mut parameters).cast())?;
    let named = control.set_mtu(&made, network.mtu).and_then(|()| control.rename(&made, name));
    if named.is_err() {
        let _ = control.destroy(&made);
    }
    Ok(named?)
}

fn add_station(control: &Control, link: &vxlan::Link, mac: Mac, peer: IpAddr) -> Result<(), DatapathError> {
    let mut command = Command { mac: mac.0, port: link.port, address: address(peer), ..Command::default() };
    allow(control.driver(&link.name, VXLAN_CMD_FTABLE_ENTRY_ADD, false, &mut command), libc::EEXIST)
        .map_err(|error| kernel(format!("write down that {mac} is at {peer}"), error))
}

/// Removes links that an earlier declaration had and this one has not.
pub(super) fn drop_old(control: &Control, earlier: &Network, network: &Network) -> Result<(), DatapathError> {
    let same = |one: &vxlan::Link, other: &vxlan::Link| {
        (&one.name, one.vni, one.port, one.local) == (&other.name, other.vni, other.port, other.local)
    };
    for old in &earlier.links {
        let new = network.links.iter().find(|new| same(new, old));
        // Peers that come and go do not disturb the others.
        if new.is_none_or(|new| new.flood_to.first() != old.flood_to.first()) {
            control.destroy(&old.name)?;
        }
        for sender in flood::senders(old) {
            if new.is_none_or(|new| !flood::senders(new).any(|one| one == sender)) {
                control.destroy(&sender.0)?;
            }
        }
    }
    Ok(())
}

/// Removes the links. Goes on after an error.
pub(super) fn remove(control: &Control, network: &Network) -> Vec<DatapathError> {
    let names = network.links.iter().flat_map(|link| {
        flood::senders(link).map(|(name, _)| name).chain([link.name.clone()]).collect::<Vec<_>>()
    });
    names.filter_map(|name| control.destroy(&name).err()).map(DatapathError::from).collect()
}

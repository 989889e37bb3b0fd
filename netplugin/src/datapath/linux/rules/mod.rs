//! Skep's nftables rules.
//!
//! Two tables, both called `skep`, and nothing outside them:
//!
//! - `bridge skep` looks at frames: a sandbox's port lets in only frames with the sandbox's own addresses
//!   (Ethernet, ARP, IPv4, IPv6, neighbour discovery) and lets out only frames addressed to them.
//! - `inet skep` looks at flows, bridged (`br_netfilter`) as well as routed: what a sandbox may open, what may be
//!   opened to it, what it may have of the host, and address translation.
//!
//! Which sandbox a packet belongs to is found by one lookup in a hash: the cost does not grow with their number.

mod base;
mod delta;
mod flows;
mod frames;
mod lists;
mod network;
mod packet;
mod sandbox;

pub(super) use base::{NOTE, create_base};
pub(super) use network::{add_network, group_sets, remove_network};
pub(super) use sandbox::{
    add_sandbox, all_elements, chains, counting, follow_uplinks, remove_sandbox, replace_policy,
};

use super::nft::{Batch, Field, SetFlags, SetSpec};
use crate::network::HostState;

/// The name of both tables.
pub(super) const TABLE: &str = "skep";

const PLAIN: SetFlags = SetFlags { interval: false, counter: false, verdicts: false, noting: None };
const COUNTING: SetFlags = SetFlags { counter: true, ..PLAIN };
/// Room for the addresses of a network of 16 bits.
const NOTING: SetFlags = SetFlags { noting: Some(1 << 16), ..PLAIN };
/// Room for every port of TCP, UDP and SCTP.
const PORTS: SetFlags = SetFlags { noting: Some(3 << 16), ..PLAIN };
const RANGES: SetFlags = SetFlags { interval: true, ..PLAIN };
const VERDICTS: SetFlags = SetFlags { verdicts: true, ..PLAIN };

const fn set(name: &'static str, key: &'static [Field], flags: SetFlags) -> SetSpec {
    SetSpec { name, key, value: &[], flags }
}

/// Sets of the bridge table. `ports`: host ends of sandboxes. `mac`, `src4`, `src6`: what each may send from.
/// `spoofed`: counts what it sent from elsewhere. `mcast`: ports that get each other's group frames. `dhcp`: ports
/// that may ask for an address. `uplinks`: ports to other hosts; `routers`: those whose
/// router advertisements are heard; `own_mac`: addresses that live here and cannot
/// come from there. `gateway4`, `gateway6`: the gateway's addresses, which stay on this host.
pub(super) const BRIDGE_SETS: [SetSpec; 12] = [
    set("ports", &[Field::Ifname], PLAIN),
    set("mac", &[Field::Ifname, Field::Ether], PLAIN),
    set("src4", &[Field::Ifname, Field::Ipv4], PLAIN),
    set("src6", &[Field::Ifname, Field::Ipv6], PLAIN),
    set("spoofed", &[Field::Ifname], COUNTING),
    set("mcast", &[Field::Ifname], PLAIN),
    set("dhcp", &[Field::Ifname], PLAIN),
    set("uplinks", &[Field::Ifname], COUNTING),
    set("routers", &[Field::Ifname], PLAIN),
    set("own_mac", &[Field::Ifname, Field::Ether], COUNTING),
    set("gateway4", &[Field::Ifname, Field::Ipv4], PLAIN),
    set("gateway6", &[Field::Ifname, Field::Ipv6], PLAIN),
];

/// Sets and maps of the inet table. `bridges`: ours. `same`, `linked`: pairs of bridges that may exchange packets,
/// a bridge with itself, and besides with its peer networks. `out*`, `in*`: from a sandbox's address to its chain.
/// `refused_*`: count what was refused, by sandbox. `own*`: addresses of sandboxes. `inside*`: subnets that
/// are on our bridges and nowhere else. `leased4`: those
/// of them that came by DHCP. `routed`: bridges with routers behind a card. `host_ok`: bridges the host may open flows into.
/// `host_services`: ports of the host open to a bridge. `masq`: bridges whose traffic leaves under the host's
/// address. `vxlan`: UDP ports and identifiers of ours; `peers*`: who may send to them. `published*`: from a port of the host to an address and port of a sandbox.
/// What packets note, and what belongs to it (see `history`): `noted`: bridges where they do; `opened*`,
/// `answered*`: addresses that a flow was opened from, or to; `crowded`: address families of which these have no room for more; `asked`: ports of the
/// host that are nobody's; `ending*`: addresses whose flows are being ended; `stocked*`: subnets whose earlier flows
/// are in these, too.
pub(super) const INET_SETS: [SetSpec; 38] = [
    set("noted", &[Field::Ifname], PLAIN),
    set("opened4", &[Field::Ipv4], NOTING),
    set("opened6", &[Field::Ipv6], NOTING),
    set("answered4", &[Field::Ipv4], NOTING),
    set("answered6", &[Field::Ipv6], NOTING),
    set("crowded", &[Field::Proto], NOTING),
    set("asked", &[Field::Proto, Field::Port], PORTS),
    set("ending4", &[Field::Ipv4], PLAIN),
    set("ending6", &[Field::Ipv6], PLAIN),
    set("stocked4", &[Field::Ipv4, Field::Proto], PLAIN),
    set("stocked6", &[Field::Ipv6, Field::Proto], PLAIN),
    set("bridges", &[Field::Ifname], PLAIN),
    set("same", &[Field::Ifname, Field::Ifname], PLAIN),
    set("linked", &[Field::Ifname, Field::Ifname], PLAIN),
    set("out4", &[Field::Ifname, Field::Ipv4], VERDICTS),
    set("out6", &[Field::Ifname, Field::Ipv6], VERDICTS),
    set("in4", &[Field::Ifname, Field::Ipv4], VERDICTS),
    set("in6", &[Field::Ifname, Field::Ipv6], VERDICTS),
    set("refused_out4", &[Field::Ifname, Field::Ipv4], COUNTING),
    set("refused_out6", &[Field::Ifname, Field::Ipv6], COUNTING),
    set("refused_in4", &[Field::Ifname, Field::Ipv4], COUNTING),
    set("refused_in6", &[Field::Ifname, Field::Ipv6], COUNTING),
    set("own4", &[Field::Ifname, Field::Ipv4], PLAIN),
    set("own6", &[Field::Ifname, Field::Ipv6], PLAIN),
    set("leased4", &[Field::Ifname, Field::Ipv4], PLAIN),
    set("inside4", &[Field::Ipv4], RANGES),
    set("inside6", &[Field::Ipv6], RANGES),
    set("routed", &[Field::Ifname], PLAIN),
    set("host_ok", &[Field::Ifname], PLAIN),
    set("host_services", &[Field::Ifname, Field::Proto, Field::Port], PLAIN),
    set("masq", &[Field::Ifname], PLAIN),
    set("vxlan", &[Field::Port, Field::Vni], PLAIN),
    set("peers4", &[Field::Ipv4, Field::Port, Field::Vni], COUNTING),
    set("peers6", &[Field::Ipv6, Field::Port, Field::Vni], COUNTING),
    SetSpec {
        name: "published4",
        key: &[Field::Proto, Field::Port],
        value: &[Field::Ipv4, Field::Port],
        flags: PLAIN,
    },
    SetSpec {
        name: "published4_at",
        key: &[Field::Ipv4, Field::Proto, Field::Port],
        value: &[Field::Ipv4, Field::Port],
        flags: PLAIN,
    },
    SetSpec {
        name: "published6",
        key: &[Field::Proto, Field::Port],
        value: &[Field::Ipv6, Field::Port],
        flags: PLAIN,
    },
    SetSpec {
        name: "published6_at",
        key: &[Field::Ipv6, Field::Proto, Field::Port],
        value: &[Field::Ipv6, Field::Port],
        flags: PLAIN,
    },
];

/// Everything from nothing: for the first network of a host, and after somebody flushed the ruleset.
pub(super) fn create_all(batch: &mut Batch, state: &HostState) {
    create_base(batch);
    for network in &state.networks {
        add_network(batch, network, None);
    }
    for attachment in &state.attachments {
        if let Some(network) = state.networks.iter().find(|network| network.name == attachment.network) {
            add_sandbox(batch, network, attachment);
        }
    }
}

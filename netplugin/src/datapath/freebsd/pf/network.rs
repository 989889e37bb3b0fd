//! A network's rules. No input or output.

use super::published::{PUBLISHED, from_host};
use super::ruleset::{Ruleset, family};
use super::sandbox::NEIGHBOURS;
use super::shared::PEERS;
use super::tree::{GROUP, ROOT};
use crate::datapath::freebsd::flood;
use crate::network::Network;

/// The anchor of a network.
pub(in super::super) fn net_anchor(network: &Network) -> String {
    format!("{ROOT}/net/{}", network.id())
}

/// The anchor that keeps others from passing for a network's sandboxes.
pub(in super::super) fn guard_anchor(network: &Network) -> String {
    format!("{ROOT}/guard/{}", network.id())
}

/// Lists know sandboxes by their addresses, and who comes by another way than the network's bridge has none of those. Asked
/// of what the host routes to any sandbox, by the interface that it came by: such that are made later need no rule of their
/// own, and what stations on the bridge send each other is not meant.
pub(in super::super) fn guard(network: &Network) -> Ruleset {
    let mut set = Ruleset::of(guard_anchor(network));
    for net in network.subnets_inside() {
        let from = format!("{} from {net}", family(net.addr()));
        set.line(&format!("block drop out quick {from} ! received-on {}", network.bridge));
    }
    set
}

/// An interface by which packets leave for the world outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Outside {
    /// Its name.
    pub(in super::super) name: String,
    /// Whether it has an IPv4 address.
    pub(in super::super) ipv4: bool,
    /// Whether it has an IPv6 address of more than the link.
    pub(in super::super) ipv6: bool,
}

/// A network's rules.
pub(in super::super) fn rules(network: &Network, outside: &[Outside]) -> Ruleset {
    let mut set = Ruleset::of(net_anchor(network));
    let bridge = &network.bridge;
    for gateway in &network.gateways {
        let (net, af) = (gateway.trunc(), family(gateway.addr()));
        // A sandbox that uses a port published on its own network, perhaps its own: the answer must come back by us.
        set.line(&format!("nat on {bridge} {af} from {net} to any tagged {PUBLISHED} -> {}", gateway.addr()));
        // So must the answer to the host itself.
        let host = from_host(gateway.addr().is_ipv6());
        set.line(&format!(
            "nat on {bridge} {af} from {host} to any tagged {PUBLISHED} -> {}",
            gateway.addr()
        ));
        if network.ip_masq {
            let able = |one: &&Outside| if gateway.addr().is_ipv4() { one.ipv4 } else { one.ipv6 };
            for Outside { name, .. } in outside.iter().filter(able) {
                set.line(&format!("nat on {name} {af} from {net} to ! {net} -> ({name}:0)"));
            }
        }
    }
    if network.ip_masq {
        for gateway in &network.gateways {
            // What others open to a sandbox, where they have a route to it, is no flow of the sandbox's: its answers keep
            // their address. The administrator's rules, which come later, have the last word.
            let (net, af) = (gateway.trunc(), family(gateway.addr()));
            set.line(&format!("pass in on ! {GROUP} {af} from any to {net} keep state"));
        }
    }
    // Who is no peer says nothing to our links.
    let mut listening: Vec<u16> = network.links.iter().map(|link| link.port).collect();
    listening.dedup();
    for port in listening {
        set.line(&format!("block drop in quick proto udp from ! <{PEERS}> to (self) port {port}"));
    }
    for link in &network.links {
        set.line(&format!("pass quick on {} no state", link.name));
        for (sender, _) in flood::senders(link) {
            set.line(&format!("pass quick on {sender} no state"));
        }
    }
    for kind in NEIGHBOURS.iter().chain(&["routersol"]) {
        set.line(&format!("pass in quick on {bridge} inet6 proto icmp6 icmp6-type {kind} no state"));
    }
    for kind in NEIGHBOURS {
        set.line(&format!("pass out quick on {bridge} inet6 proto icmp6 icmp6-type {kind} no state"));
    }
    for service in &network.policy.host_services {
        let what = format!("proto {} to (self) port {}", service.protocol, service.port);
        set.line(&format!("pass in quick on {bridge} {what} keep state"));
    }
    if network.nic.is_none() {
        set.line(&format!("block drop in quick on {bridge} to (self)"));
        // The ports' rules have looked at it, here or on the sandbox's own node.
        set.line(&format!("pass in quick on {bridge} no state"));
        set.line(&format!("pass out quick on {bridge} keep state"));
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_subnet_behind_the_bridge_is_guarded_and_none_of_the_network_outside() {
        let mut network: Network = serde_json::from_value(json!({"version": 1, "name": "pods", "bridge": "skb-pods",
            "owns_bridge": true, "mac": "02:00:00:00:00:01", "mtu": 1500, "gateways": ["10.1.0.1/24", "fd01::1/64"],
            "ip_masq": true, "policy": {}, "nic": null, "vpc": null, "keep": false, "peer_bridges": [], "links": [],
            "groups": []}))
        .unwrap();
        let set = guard(&network);
        assert_eq!(set.filters(), 2);
        assert!(set.text.contains("inet from 10.1.0.0/24 ! received-on skb-pods"), "{}", set.text);
        assert!(set.text.contains("inet6 from fd01::/64 ! received-on skb-pods"), "{}", set.text);
        network.nic = Some("em0".to_owned());
        assert_eq!(guard(&network).text, "");
    }
}

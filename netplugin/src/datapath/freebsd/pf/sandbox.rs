//! A sandbox's rules. No input or output.

use ipnet::IpNet;

use super::published::PUBLISHED;
use super::ruleset::Ruleset;
use super::shared::{apart_table, group_table};
use super::tree::port_anchor;
use crate::network::{Attachment, Network};
use crate::policy::{PortRange, Rule, Service, Transport, always_denied, by_service};

fn ports(range: PortRange) -> String {
    match range {
        PortRange::ALL => String::new(),
        PortRange { first, last } if first == last => format!(" port {first}"),
        PortRange { first, last } => format!(" port {first}:{last}"),
    }
}

/// Messages of neighbour discovery that pass the packet filter: frames that carry false ones do not get so far.
pub(super) const NEIGHBOURS: [&str; 2] = ["neighbrsol", "neighbradv"];

/// A sandbox's rules.
pub(in super::super) fn rules(network: &Network, attachment: &Attachment) -> Ruleset {
    let mut set = Ruleset::of(port_anchor(&attachment.id));
    from_sandbox(&mut set, network, attachment);
    // In this order pf skips all rules of the one or of the other for an interface that is not theirs.
    bridged(&mut set, network, attachment);
    routed(&mut set, network, attachment);
    let own: Vec<IpNet> = attachment.senders().into_iter().map(IpNet::from).collect();
    set.table("own", own);
    let denied = always_denied().into_iter().chain(network.policy.always_deny.iter().copied()).collect();
    set.table("never", denied);
    set
}

fn from_sandbox(set: &mut Ruleset, network: &Network, attachment: &Attachment) {
    let port = &attachment.host_ifname;
    if attachment.dhcp {
        // What the host asks for the sandbox: its own frames to a server do not come so far.
        set.line(&format!("pass in quick on {port} inet proto udp from any port 68 to any port 67 no state"));
    }
    // Who has no address yet asks whether somebody else has it, and tells which groups it is in. What the frames may say is
    // checked before they come here.
    for kind in ["neighbrsol", "routersol"] {
        set.line(&format!("pass in quick on {port} inet6 proto icmp6 from :: icmp6-type {kind} no state"));
    }
    set.line(&format!("block drop in quick on {port} inet6 proto icmp6 from :: to ff00::/8"));
    set.line(&format!("block drop in quick on {port} from ! <own> label \"spoofed\""));
    for kind in NEIGHBOURS.iter().chain(&["routersol"]) {
        set.line(&format!("pass in quick on {port} inet6 proto icmp6 icmp6-type {kind} no state"));
    }
    set.line(&format!("block drop in quick on {port} to <never> label \"refused_out\""));
    if network.policy.multicast {
        for range in GROUP_RANGES {
            set.line(&format!("pass in quick on {port} to {range} no state"));
        }
    }
    for service in &network.policy.host_services {
        let what = format!("proto {} to (self) port {}", service.protocol, service.port);
        set.line(&format!("pass in quick on {port} {what} keep state"));
    }
    set.line(&format!("block drop in quick on {port} to (self) label \"refused_out\""));
    let lists =
        [&attachment.policy.egress, &network.policy.egress].map(|lists| network.policy.resolved(lists));
    for (whose, list) in ["own", "net"].into_iter().zip(&lists) {
        append(set, network, &format!("out_deny_{whose}"), &list.deny, |peer, what, to_port| {
            format!("block drop in quick on {port} {what} to {peer}{to_port} label \"refused_out\"")
        });
    }
    set.line(&format!(
        "block drop in quick on {port} to <{}> ! tagged {PUBLISHED} label \"refused_out\"",
        apart_table(network)
    ));
    for (whose, list) in ["own", "net"].into_iter().zip(&lists) {
        append(set, network, &format!("out_allow_{whose}"), &list.allow, |peer, what, to_port| {
            format!("pass in quick on {port} {what} to {peer}{to_port} keep state")
        });
    }
    set.line(&format!("block drop in quick on {port} label \"refused_out\""));
}

/// Addresses of groups of stations.
const GROUP_RANGES: [&str; 3] = ["224.0.0.0/4", "255.255.255.255", "ff00::/8"];

/// What comes to the sandbox by way of the bridge.
fn bridged(set: &mut Ruleset, network: &Network, attachment: &Attachment) {
    let port = &attachment.host_ifname;
    for kind in NEIGHBOURS {
        set.line(&format!("pass out quick on {port} inet6 proto icmp6 icmp6-type {kind} no state"));
    }
    if network.nic.is_some() {
        // Other sandboxes' do not leave these.
        for to in ["ff02::1", "<own>"].iter().filter(|_| network.accept_ra) {
            let what = format!("inet6 proto icmp6 from fe80::/10 to {to} icmp6-type routeradv");
            set.line(&format!("pass out quick on {port} {what} no state"));
        }
        set.line(&format!("block drop out quick on {port} inet6 proto icmp6 icmp6-type routeradv"));
        // The host asks for others; nobody hears what they ask, or are told.
        set.line(&format!("block drop out quick on {port} inet proto udp to any port 67"));
        set.line(&format!("block drop out quick on {port} inet proto udp from any port 67 to any port 68"));
    }
    if network.policy.multicast {
        for range in GROUP_RANGES {
            set.line(&format!("pass out quick on {port} to {range} no state"));
        }
    }
    set.line(&format!("block drop out quick on {port} to ! <own>"));
    to_sandbox(set, network, attachment, port);
    set.line(&format!("block drop out quick on {port} label \"refused_in\""));
}

/// What the host routes to the sandbox.
fn routed(set: &mut Ruleset, network: &Network, attachment: &Attachment) {
    let bridge = &attachment.bridge;
    for kind in NEIGHBOURS {
        let what = format!("inet6 proto icmp6 to <own> icmp6-type {kind}");
        set.line(&format!("pass out quick on {bridge} {what} no state"));
    }
    to_sandbox(set, network, attachment, bridge);
    if network.policy.host_ingress {
        set.line(&format!("pass out quick on {bridge} from (self) to <own> keep state"));
    }
    set.line(&format!("block drop out quick on {bridge} to <own> label \"refused_in\""));
}

fn to_sandbox(set: &mut Ruleset, network: &Network, attachment: &Attachment, on: &str) {
    let lists =
        [&attachment.policy.ingress, &network.policy.ingress].map(|lists| network.policy.resolved(lists));
    for (whose, list) in ["own", "net"].into_iter().zip(&lists) {
        append(set, network, &format!("in_deny_{whose}"), &list.deny, |peer, what, to_port| {
            format!("block drop out quick on {on} {what} from {peer} to <own>{to_port} label \"refused_in\"")
        });
    }
    for one in &attachment.ports {
        let what = format!("proto {} to <own> port {}", one.protocol, one.container_port);
        set.line(&format!("pass out quick on {on} {what} tagged {PUBLISHED} keep state"));
    }
    for (whose, list) in ["own", "net"].into_iter().zip(&lists) {
        append(set, network, &format!("in_allow_{whose}"), &list.allow, |peer, what, to_port| {
            format!("pass out quick on {on} {what} from {peer} to <own>{to_port} keep state")
        });
    }
}

/// Appends what `rule` makes of the services of a list: their peers are in tables, those of groups in tables that
/// sandboxes share.
fn append(
    set: &mut Ruleset,
    network: &Network,
    name: &str,
    rules: &[Rule],
    rule: impl Fn(&str, &str, &str) -> String,
) {
    for Service { transport, ports: range, any, nets, groups } in by_service(rules) {
        let everything = any || nets.iter().any(|net| net.prefix_len() == 0);
        let mut peers = Vec::new();
        if any {
            peers.push("any".to_owned());
        } else if everything || !nets.is_empty() {
            // Named after the service: however lists change, a table never comes to mean something else.
            let protocol = transport.map_or("any", name_of);
            peers.push(set.table(&format!("{name}_{protocol}_{}_{}", range.first, range.last), nets));
        }
        if !any {
            peers.extend(groups.into_iter().map(|group| format!("<{}>", group_table(network, group))));
        }
        for peer in peers {
            for what in protocols(transport) {
                set.line(&rule(&peer, what, &ports(range)));
            }
        }
    }
}

fn name_of(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
        Transport::Sctp => "sctp",
        Transport::Icmp => "icmp",
    }
}

fn protocols(transport: Option<Transport>) -> &'static [&'static str] {
    match transport {
        None => &[""],
        Some(Transport::Tcp) => &["proto tcp"],
        Some(Transport::Udp) => &["proto udp"],
        Some(Transport::Sctp) => &["proto sctp"],
        Some(Transport::Icmp) => &["inet proto icmp", "inet6 proto icmp6"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::GroupName;
    use proptest::prelude::*;
    use serde_json::json;

    fn network_of(policy: &serde_json::Value) -> Network {
        serde_json::from_value(json!({"version": 1, "name": "pods", "bridge": "skb-pods", "owns_bridge": true,
            "mac": "02:00:00:00:00:01", "mtu": 1500, "gateways": ["10.1.0.1/24"], "ip_masq": true, "policy": policy,
            "nic": null, "vpc": null, "keep": false, "peer_bridges": [], "links": [], "groups": []}))
        .unwrap()
    }

    fn sandbox_of(own: &serde_json::Value) -> Attachment {
        serde_json::from_value(json!({"version": 1, "id": "0123456789ab", "container_id": "c", "ifname": "eth0",
            "network": "pods", "netns": "j", "kind": "veth", "host_ifname": "skv0123456789ab", "bridge": "skb-pods",
            "mac": "02:00:00:00:00:09", "mtu": 1500, "addresses": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}],
            "routes": [], "policy": own, "group": null,
            "ports": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}], "bandwidth": null, "own_ipam": true}))
        .unwrap()
    }

    #[test]
    fn a_sandbox_without_lists_gets_nothing_but_its_published_port() {
        let set = rules(&network_of(&json!({})), &sandbox_of(&json!({})));
        let passes: Vec<&str> = set
            .text
            .lines()
            .filter(|line| line.starts_with("pass") && line.ends_with("keep state"))
            .collect();
        assert_eq!(passes.len(), 2, "{passes:?}");
        assert!(passes.iter().all(|line| line.contains("port 80 tagged skep_published")));
    }

    #[test]
    fn deny_comes_before_allow_and_what_is_always_denied_before_both() {
        let set = rules(
            &network_of(&json!({"egress": {"deny": ["192.0.2.9"]}})),
            &sandbox_of(
                &json!({"egress": {"allow": ["any", {"cidr": "10.0.0.0/8", "protocol": "tcp", "ports": [80, "90-99"]}]}}),
            ),
        );
        let at = |what: &str| set.text.find(what).unwrap_or_else(|| panic!("{what}: {}", set.text));
        assert!(at("to <never>") < at("to <out_deny_net_any_0_65535>"));
        assert!(at("to <out_deny_net_any_0_65535>") < at("to any keep state"));
        assert!(set.text.contains("proto tcp to <out_allow_own_tcp_90_99> port 90:99 keep state"));
        assert_eq!(
            set.tables.iter().find(|(name, _)| name == "out_deny_net_any_0_65535").unwrap().1.len(),
            1
        );
    }

    #[test]
    fn routers_and_servers_behind_a_card_are_heard_as_far_as_they_may_be() {
        let mut network = network_of(&json!({"multicast": true, "ingress": {"allow": ["any"]}}));
        let mut attachment = sandbox_of(&json!({}));
        let plain = rules(&network, &attachment).text;
        assert!(!plain.contains("routeradv") && !plain.contains("port 67"), "{plain}");
        network.nic = Some("em0".to_owned());
        let at = |text: &str, what: &str| text.find(what).unwrap_or_else(|| panic!("{what}: {text}"));
        for heard in [true, false] {
            network.accept_ra = heard;
            let text = rules(&network, &attachment).text;
            assert_eq!(text.matches("icmp6-type routeradv no state").count(), if heard { 2 } else { 0 });
            let blocked =
                at(&text, "block drop out quick on skv0123456789ab inet6 proto icmp6 icmp6-type routeradv");
            // Nothing that is to everybody passes before.
            assert!(blocked < at(&text, "pass out quick on skv0123456789ab to ff00::/8"));
            assert!(
                at(&text, "udp to any port 67")
                    < at(&text, "pass out quick on skv0123456789ab to 255.255.255.255")
            );
            assert!(!text.contains("pass in quick on skv0123456789ab inet proto udp from any port 68"));
        }
        attachment.dhcp = true;
        let text = rules(&network, &attachment).text;
        assert!(text.contains(
            "pass in quick on skv0123456789ab inet proto udp from any port 68 to any port 67 no state"
        ));
        // One whose lease is lost has no address that anything could be from or to.
        let own = |attachment: &Attachment| {
            rules(&network, attachment).tables.into_iter().find(|(name, _)| name == "own").unwrap().1
        };
        assert_eq!(own(&attachment).len(), 1);
        attachment.lapsed = true;
        assert!(own(&attachment).is_empty());
    }

    #[test]
    fn what_two_lists_say_is_one_rule() {
        let open = json!({"egress": {"allow": ["any"]}});
        let (none, both) = (
            rules(&network_of(&open), &sandbox_of(&json!({}))),
            rules(&network_of(&open), &sandbox_of(&open)),
        );
        assert!(both.text.lines().count() > none.text.lines().count());
        assert_eq!(both.filters(), none.filters());
    }

    #[test]
    fn names_fit_into_what_pf_allows() {
        let network = network_of(&json!({}));
        let group = GroupName::try_from("x".repeat(63)).unwrap();
        assert_eq!(group_table(&network, &group).len(), 31);
    }

    proptest! {
        #[test]
        fn any_policy_makes_lines_that_begin_with_a_verb(nets in proptest::collection::vec(any::<(u32, u8)>(), 0..6), ports in proptest::collection::vec(any::<u16>(), 0..3)) {
            let list: Vec<_> = nets.iter().map(|(net, len)| json!({"cidr": format!("{}/{}", std::net::Ipv4Addr::from(*net), len % 33), "protocol": "udp", "ports": ports})).collect();
            let set = rules(&network_of(&json!({"ingress": {"deny": list.clone()}})), &sandbox_of(&json!({"egress": {"allow": list}})));
            for line in set.text.lines() {
                prop_assert!(["table <", "pass ", "block drop "].iter().any(|verb| line.starts_with(verb)), "{}", line);
            }
            // Tables come first, then the filter (pfctl takes no other order), first of the port, then of the bridge.
            let order: Vec<u8> = set
                .text
                .lines()
                .map(|line| if line.starts_with("table") { 0 } else if line.contains(" on skv0123456789ab ") { 1 } else { 2 })
                .collect();
            prop_assert!(order.is_sorted());
            for (name, _) in &set.tables {
                prop_assert!(name.len() < 32);
                let declaration = format!("table <{name}> persist");
                prop_assert_eq!(set.text.matches(&declaration).count(), 1);
            }
        }
    }
}

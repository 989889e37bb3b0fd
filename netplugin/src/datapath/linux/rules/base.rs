//! The rules that are the same on every host.

use super::{BRIDGE_SETS, INET_SETS};
use crate::datapath::linux::nft::{Base, Batch, ChainType, Family, Hook, Meta, Rule};

/// What the tables carry as a note: rules of another note were made by another version of this program and are
/// replaced as a whole.
pub(crate) const NOTE: &[u8] = b"skep-cni rules 1";

/// Before conntrack's defragmentation (-400) there is nothing to do for us, and before br_netfilter (0) spoofed
/// frames must be gone.
const PRIORITY_FRAMES: i32 = -350;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_SRCNAT: i32 = 100;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD_QUERY: u8 = 130;

/// Makes the tables, which must not exist, with all chains and sets that do not depend on networks.
pub(crate) fn create_base(batch: &mut Batch) {
    batch.family(Family::Bridge).create_table(NOTE);
    BRIDGE_SETS.iter().for_each(|spec| batch.set(spec));
    frames(batch);
    batch.family(Family::Inet).create_table(NOTE);
    INET_SETS.iter().for_each(|spec| batch.set(spec));
    flows(batch);
    translation(batch);
}

fn append(batch: &mut Batch, chain: &str, rules: &[Rule]) {
    for rule in rules {
        batch.rule(chain, rule);
    }
}

fn frames(batch: &mut Batch) {
    batch.base_chain("prerouting", ChainType::Filter, Hook::Prerouting, PRIORITY_FRAMES);
    batch.base_chain("forward", ChainType::Filter, Hook::Forward, PRIORITY_FRAMES);
    for chain in [
        "sandbox",
        "arp",
        "ipv4",
        "ipv6",
        "icmpv6",
        "nd",
        "spoof",
        "uplink",
        "deliver",
        "deliver_ipv6",
        "depart",
    ] {
        batch.chain(chain);
    }
    append(
        batch,
        "prerouting",
        &[
            Rule::new().iifname().in_set("ports").goto("sandbox"),
            Rule::new().iifname().in_set("uplinks").goto("uplink"),
        ],
    );
    append(
        batch,
        "sandbox",
        &[
            Rule::new().iifname().and_payload(Base::Link, 6, 6).not_in_set("mac").goto("spoof"),
            Rule::new().ether_type(IPV4).goto("ipv4"),
            Rule::new().ether_type(IPV6).goto("ipv6"),
            Rule::new().ether_type(ARP).goto("arp"),
            // Anything else (VLAN tags, PPPoE, ...) could carry IP past the rules.
            Rule::new().goto("spoof"),
        ],
    );
    append(
        batch,
        "arp",
        &[
            // Ethernet, IPv4, 6 and 4 bytes of address.
            Rule::new().payload(Base::Network, 0, 6, 0).not_equal(0, &[0, 1, 8, 0, 6, 4]).goto("spoof"),
            Rule::new().iifname().and_payload(Base::Network, 8, 6).not_in_set("mac").goto("spoof"),
            Rule::new().iifname().and_payload(Base::Network, 14, 4).in_set("src4").accept(),
            // A probe (RFC 5227) has no sender yet and asks for the address it is going to have.
            Rule::new()
                .payload(Base::Network, 14, 4, 0)
                .equal(0, &[0; 4])
                .iifname()
                .and_payload(Base::Network, 24, 4)
                .in_set("src4")
                .accept(),
            Rule::new().goto("spoof"),
        ],
    );
    append(
        batch,
        "ipv4",
        &[
            Rule::new().payload(Base::Network, 16, 1, 0).equal(0, &[127]).goto("spoof"),
            // No sandbox is a DHCP server.
            Rule::new()
                .l4proto(UDP)
                .payload(Base::Transport, 0, 2, 0)
                .equal(0, &67_u16.to_be_bytes())
                .goto("spoof"),
            Rule::new().iifname().and_payload(Base::Network, 12, 4).in_set("src4").accept(),
            Rule::new()
                .payload(Base::Network, 12, 8, 0)
                .equal(0, &[0, 0, 0, 0, 255, 255, 255, 255])
                .l4proto(UDP)
                .payload(Base::Transport, 0, 4, 0)
                .equal(0, &[0, 68, 0, 67])
                .iifname()
                .in_set("dhcp")
                .accept(),
            Rule::new().goto("spoof"),
        ],
    );
    append(
        batch,
        "ipv6",
        &[
            Rule::new().l4proto(ICMPV6).goto("icmpv6"),
            // No sandbox is a DHCPv6 server.
            Rule::new()
                .l4proto(UDP)
                .payload(Base::Transport, 0, 2, 0)
                .equal(0, &547_u16.to_be_bytes())
                .goto("spoof"),
            Rule::new().iifname().and_payload(Base::Network, 8, 16).in_set("src6").accept(),
            Rule::new().goto("spoof"),
        ],
    );
    neighbour_discovery(batch);
    append(
        batch,
        "spoof",
        &[
            // The lookup counts, by port.
            Rule::new().iifname().in_set("spoofed").drop(),
            Rule::new().drop(),
        ],
    );
    delivery(batch);
}

fn icmp_type(rule: Rule, value: u8) -> Rule {
    rule.payload(Base::Transport, 0, 1, 0).equal(0, &[value])
}

/// Loads the UDP destination port and, behind it, the VXLAN network identifier (RFC 7348).
fn tunnel(rule: Rule, reg: u32) -> Rule {
    rule.payload(Base::Transport, 2, 2, reg).payload(Base::Transport, 12, 3, reg + 1)
}

fn neighbour_discovery(batch: &mut Batch) {
    let to_spoof = |kind| icmp_type(Rule::new(), kind).goto("spoof");
    append(
        batch,
        "icmpv6",
        &[
            to_spoof(ROUTER_ADVERTISEMENT),
            to_spoof(REDIRECT),
            to_spoof(MLD_QUERY),
            icmp_type(Rule::new(), ROUTER_SOLICITATION).goto("nd"),
            icmp_type(Rule::new(), NEIGHBOUR_SOLICITATION).goto("nd"),
            icmp_type(Rule::new(), NEIGHBOUR_ADVERTISEMENT).goto("nd"),
            Rule::new().iifname().and_payload(Base::Network, 8, 16).in_set("src6").accept(),
            // Reports of group membership (RFC 3810) may come before there is an address.
            icmp_type(Rule::new().payload(Base::Network, 8, 16, 0).equal(0, &[0; 16]), 143).accept(),
            Rule::new().goto("spoof"),
        ],
    );
    let option = |rule: Rule, at: u32, kind: u8| {
        rule.payload(Base::Transport, at, 2, 0)
            .equal(0, &[kind, 1])
            .iifname()
            .and_payload(Base::Transport, at + 2, 6)
            .in_set("mac")
            .accept()
    };
    // Payload lengths that leave room for one option of eight bytes, or none: with more, the one that counts
    // could hide behind another.
    let length = |rule: Rule, bytes: u16| rule.payload(Base::Network, 4, 2, 0).equal(0, &bytes.to_be_bytes());
    let from_nowhere = |rule: Rule| rule.payload(Base::Network, 8, 16, 0).equal(0, &[0; 16]);
    let own_target = |rule: Rule| rule.iifname().and_payload(Base::Transport, 8, 16).in_set("src6");
    append(
        batch,
        "nd",
        &[
            // RFC 6980: neighbour discovery is never fragmented; with any extension header in front, lengths below
            // would not mean what they seem to.
            Rule::new().payload(Base::Network, 6, 1, 0).not_equal(0, &[ICMPV6]).goto("spoof"),
            // Duplicate address detection: from nowhere, for an own address, with at most a nonce.
            from_nowhere(own_target(icmp_type(length(Rule::new(), 24), NEIGHBOUR_SOLICITATION))).accept(),
            from_nowhere(own_target(icmp_type(length(Rule::new(), 32), NEIGHBOUR_SOLICITATION)))
                .payload(Base::Transport, 24, 2, 0)
                .equal(0, &[14, 1])
                .accept(),
            from_nowhere(icmp_type(length(Rule::new(), 8), ROUTER_SOLICITATION)).accept(),
            Rule::new().iifname().and_payload(Base::Network, 8, 16).not_in_set("src6").goto("spoof"),
            icmp_type(length(Rule::new(), 8), ROUTER_SOLICITATION).accept(),
            option(icmp_type(length(Rule::new(), 16), ROUTER_SOLICITATION), 8, 1),
            icmp_type(length(Rule::new(), 24), NEIGHBOUR_SOLICITATION).accept(),
            option(icmp_type(length(Rule::new(), 32), NEIGHBOUR_SOLICITATION), 24, 1),
            own_target(icmp_type(length(Rule::new(), 24), NEIGHBOUR_ADVERTISEMENT)).accept(),
            option(own_target(icmp_type(length(Rule::new(), 32), NEIGHBOUR_ADVERTISEMENT)), 24, 2),
            Rule::new().goto("spoof"),
        ],
    );
}

fn delivery(batch: &mut Batch) {
    append(
        batch,
        "forward",
        &[
            Rule::new().oifname().in_set("ports").goto("deliver"),
            Rule::new().oifname().in_set("uplinks").goto("depart"),
        ],
    );
    // A sandbox gets what is addressed to it and nothing else, whatever the frame's Ethernet address says: what it
    // may receive is decided by that address.
    append(
        batch,
        "deliver",
        &[
            // Ports reflect frames (a sandbox may use a port it publishes itself), but nobody wants to hear himself ask.
            Rule::new().to_group().oifname().and_payload(Base::Link, 6, 6).in_set("mac").drop(),
            Rule::new().ether_type(IPV4).oifname().and_payload(Base::Network, 16, 4).in_set("src4").accept(),
            Rule::new().ether_type(ARP).oifname().and_payload(Base::Network, 24, 4).in_set("src4").accept(),
            Rule::new().ether_type(IPV6).goto("deliver_ipv6"),
            Rule::new()
                .ether_type(IPV4)
                .payload(Base::Link, 0, 3, 0)
                .equal(0, &[0x01, 0x00, 0x5e])
                .oifname()
                .in_set("mcast")
                .accept(),
            Rule::new()
                .ether_type(IPV4)
                .payload(Base::Link, 0, 6, 0)
                .equal(0, &[0xff; 6])
                .oifname()
                .in_set("mcast")
                .accept(),
            Rule::new().drop(),
        ],
    );
    append(
        batch,
        "deliver_ipv6",
        &[
            Rule::new().oifname().and_payload(Base::Network, 24, 16).in_set("src6").accept(),
            icmp_type(Rule::new().l4proto(ICMPV6), NEIGHBOUR_SOLICITATION)
                .oifname()
                .and_payload(Base::Transport, 8, 16)
                .in_set("src6")
                .accept(),
            icmp_type(Rule::new().l4proto(ICMPV6), ROUTER_ADVERTISEMENT).drop(),
            icmp_type(Rule::new().l4proto(ICMPV6), NEIGHBOUR_ADVERTISEMENT).drop(),
            Rule::new()
                .payload(Base::Link, 0, 2, 0)
                .equal(0, &[0x33, 0x33])
                .oifname()
                .in_set("mcast")
                .accept(),
            Rule::new().drop(),
        ],
    );
    append(
        batch,
        "uplink",
        &[
            // Who lives here cannot call from elsewhere: a spoofer, or a loop.
            Rule::new().iifname().and_payload(Base::Link, 6, 6).in_set("own_mac").drop(),
            Rule::new().ether_type(IPV4).payload(Base::Network, 16, 1, 0).equal(0, &[127]).drop(),
            // Another node's gateway is not ours.
            Rule::new().ether_type(ARP).iifname().and_payload(Base::Network, 14, 4).in_set("gateway4").drop(),
            icmp_type(Rule::new().ether_type(IPV6).l4proto(ICMPV6), NEIGHBOUR_ADVERTISEMENT)
                .iifname()
                .and_payload(Base::Transport, 8, 16)
                .in_set("gateway6")
                .drop(),
        ],
    );
    append(
        batch,
        "depart",
        &[
            // Each node answers for the gateway itself.
            Rule::new().ether_type(ARP).oifname().and_payload(Base::Network, 24, 4).in_set("gateway4").drop(),
            icmp_type(Rule::new().ether_type(IPV6).l4proto(ICMPV6), NEIGHBOUR_SOLICITATION)
                .oifname()
                .and_payload(Base::Transport, 8, 16)
                .in_set("gateway6")
                .drop(),
        ],
    );
}

fn flows(batch: &mut Batch) {
    batch.base_chain("forward", ChainType::Filter, Hook::Forward, PRIORITY_FILTER);
    batch.base_chain("input", ChainType::Filter, Hook::Input, PRIORITY_FILTER);
    batch.base_chain("output", ChainType::Filter, Hook::Output, PRIORITY_FILTER);
    for chain in
        ["through", "outbound", "inbound", "to_host", "from_host", "refuse_out", "refuse_in", "from_peers"]
    {
        batch.chain(chain);
    }
    append(
        batch,
        "forward",
        &[
            Rule::new().iifname().in_set("bridges").goto("through"),
            Rule::new().oifname().in_set("bridges").goto("through"),
        ],
    );
    append(
        batch,
        "input",
        &[
            Rule::new().iifname().in_set("bridges").goto("to_host"),
            // Only identifiers that are ours: others on the same port are somebody else's.
            tunnel(Rule::new().l4proto(UDP), 0).in_set("vxlan").goto("from_peers"),
        ],
    );
    append(
        batch,
        "from_peers",
        &[
            tunnel(Rule::new().family(false).payload(Base::Network, 12, 4, 0), 1).in_set("peers4").accept(),
            tunnel(Rule::new().family(true).payload(Base::Network, 8, 16, 0), 4).in_set("peers6").accept(),
            Rule::new().drop(),
        ],
    );
    append(batch, "output", &[Rule::new().oifname().in_set("bridges").goto("from_host")]);

    let same_bridge = |rule: Rule| rule.iifname().meta(Meta::Oifname, 4).in_set("same");
    let nd = |kind| same_bridge(icmp_type(Rule::new().l4proto(ICMPV6), kind)).accept();
    append(
        batch,
        "through",
        &[
            Rule::new().ct_established().accept(),
            Rule::new().ct_invalid().drop(),
            // The frames' rules have looked at it.
            nd(NEIGHBOUR_SOLICITATION),
            nd(NEIGHBOUR_ADVERTISEMENT),
            // Put together from fragments, it was not looked at.
            icmp_type(Rule::new().l4proto(ICMPV6), ROUTER_ADVERTISEMENT).drop(),
            icmp_type(Rule::new().l4proto(ICMPV6), REDIRECT).drop(),
            // A published port may be used from another network, anything else needs the two to be peers.
            Rule::new().ct_dnat().goto("outbound"),
            Rule::new()
                .iifname()
                .in_set("bridges")
                .oifname()
                .in_set("bridges")
                .iifname()
                .meta(Meta::Oifname, 4)
                .not_in_set("linked")
                .goto("refuse_out"),
            Rule::new().goto("outbound"),
        ],
    );
    let source = |rule: Rule, ipv6: bool| {
        let (at, len) = if ipv6 { (8, 16) } else { (12, 4) };
        rule.family(ipv6).iifname().and_payload(Base::Network, at, len)
    };
    let destination = |rule: Rule, ipv6: bool| {
        let (at, len) = if ipv6 { (24, 16) } else { (16, 4) };
        rule.family(ipv6).oifname().and_payload(Base::Network, at, len)
    };
    append(
        batch,
        "outbound",
        &[
            // A sandbox's chain returns what it allows.
            source(Rule::new(), false).verdict_map("out4"),
            source(Rule::new(), true).verdict_map("out6"),
            Rule::new().goto("inbound"),
        ],
    );
    append(
        batch,
        "inbound",
        &[
            destination(Rule::new(), false).verdict_map("in4"),
            destination(Rule::new(), true).verdict_map("in6"),
            Rule::new().accept(),
        ],
    );
    append(
        batch,
        "to_host",
        &[
            Rule::new().ct_established().accept(),
            Rule::new().ct_invalid().drop(),
            icmp_type(Rule::new().l4proto(ICMPV6), ROUTER_SOLICITATION).accept(),
            icmp_type(Rule::new().l4proto(ICMPV6), NEIGHBOUR_SOLICITATION).accept(),
            icmp_type(Rule::new().l4proto(ICMPV6), NEIGHBOUR_ADVERTISEMENT).accept(),
            Rule::new()
                .iifname()
                .meta(Meta::L4proto, 4)
                .payload(Base::Transport, 2, 2, 5)
                .in_set("host_services")
                .accept(),
            Rule::new().goto("refuse_out"),
        ],
    );
    let nd_type = |kind| icmp_type(Rule::new().l4proto(ICMPV6), kind).accept();
    append(
        batch,
        "from_host",
        &[
            Rule::new().ct_established().accept(),
            nd_type(ROUTER_ADVERTISEMENT),
            nd_type(NEIGHBOUR_SOLICITATION),
            nd_type(NEIGHBOUR_ADVERTISEMENT),
            Rule::new().oifname().in_set("host_ok").accept(),
            Rule::new().goto("inbound"),
        ],
    );
    append(
        batch,
        "refuse_out",
        &[
            source(Rule::new(), false).in_set("refused_out4").drop(),
            source(Rule::new(), true).in_set("refused_out6").drop(),
            Rule::new().drop(),
        ],
    );
    append(
        batch,
        "refuse_in",
        &[
            destination(Rule::new(), false).in_set("refused_in4").drop(),
            destination(Rule::new(), true).in_set("refused_in6").drop(),
            Rule::new().drop(),
        ],
    );
}

fn translation(batch: &mut Batch) {
    batch.base_chain("nat_prerouting", ChainType::Nat, Hook::Prerouting, PRIORITY_DSTNAT);
    batch.base_chain("nat_output", ChainType::Nat, Hook::Output, PRIORITY_DSTNAT);
    batch.base_chain("nat_postrouting", ChainType::Nat, Hook::Postrouting, PRIORITY_SRCNAT);
    batch.chain("publish");
    for hook in ["nat_prerouting", "nat_output"] {
        append(batch, hook, &[Rule::new().to_local_address().goto("publish")]);
    }
    let service =
        |rule: Rule, reg: u32| rule.meta(Meta::L4proto, reg).payload(Base::Transport, 2, 2, reg + 1);
    append(
        batch,
        "publish",
        &[
            service(Rule::new().family(false).payload(Base::Network, 16, 4, 0), 1)
                .dnat_by("published4_at", false),
            service(Rule::new().family(false), 0).dnat_by("published4", false),
            service(Rule::new().family(true).payload(Base::Network, 24, 16, 0), 4)
                .dnat_by("published6_at", true),
            service(Rule::new().family(true), 0).dnat_by("published6", true),
        ],
    );
    let source_on = |rule: Rule, ipv6: bool| {
        let (at, len) = if ipv6 { (8, 16) } else { (12, 4) };
        rule.family(ipv6).oifname().and_payload(Base::Network, at, len)
    };
    append(
        batch,
        "nat_postrouting",
        &[
            // A sandbox that uses a port published on its own network, perhaps its own: the answer must come back by us.
            // (A bridged packet has no interface it came by any more.)
            source_on(Rule::new().ct_dnat(), false).in_set("own4").masquerade(),
            source_on(Rule::new().ct_dnat(), true).in_set("own6").masquerade(),
            Rule::new().ct_dnat().iifname().meta(Meta::Oifname, 4).in_set("same").masquerade(),
            Rule::new()
                .family(false)
                .oifname()
                .in_set("bridges")
                .payload(Base::Network, 12, 1, 0)
                .equal(0, &[127])
                .masquerade(),
            Rule::new().oifname().in_set("bridges").accept(),
            Rule::new().iifname().in_set("masq").masquerade(),
        ],
    );
}

//! The rules for frames on bridges: from sandboxes, to sandboxes, from and to other hosts.

use super::packet::{
    ARP, ICMPV6, IPV4, IPV6, MLD_QUERY, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, REDIRECT,
    ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION, UDP, append, icmp_type,
};
use crate::datapath::linux::nft::{Base, Batch, ChainType, Hook, Rule};

/// Before conntrack's defragmentation (-400) there is nothing to do for us, and before `br_netfilter` (0) spoofed
/// frames must be gone.
const PRIORITY_FRAMES: i32 = -350;

/// Makes the chains of the bridge table.
pub(super) fn frames(batch: &mut Batch) {
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
            Rule::new().group_frame().oifname().and_payload(Base::Link, 6, 6).in_set("mac").drop(),
            Rule::new().ether_type(IPV4).oifname().and_payload(Base::Network, 16, 4).in_set("src4").accept(),
            Rule::new().ether_type(ARP).oifname().and_payload(Base::Network, 24, 4).in_set("src4").accept(),
            // What a DHCP server answers is for an address that the sandbox has not yet, or for everybody. From another
            // sandbox it does not come: none may send from that port.
            Rule::new()
                .ether_type(IPV4)
                .l4proto(UDP)
                .payload(Base::Transport, 0, 4, 0)
                .equal(0, &[0, 67, 0, 68])
                .oifname()
                .in_set("dhcp")
                .accept(),
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
            icmp_type(Rule::new().l4proto(ICMPV6), ROUTER_ADVERTISEMENT).iifname().in_set("routers").accept(),
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

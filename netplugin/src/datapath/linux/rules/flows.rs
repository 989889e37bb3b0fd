//! The rules for flows: who may open what to whom, and address translation.
//!
//! To the maps that lead to sandboxes' chains there is one way each from a hook: for every change that has a jump in it
//! the kernel walks all ways through the table, and twice as many rules in front would double the cost of an ADD.

use super::packet::{
    ICMPV6, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, REDIRECT, ROUTER_ADVERTISEMENT,
    ROUTER_SOLICITATION, SCTP, TCP, UDP, append, icmp_type,
};
use crate::datapath::linux::nft::{Base, Batch, ChainType, Hook, Meta, Rule, Verdict};

const PRIORITY_FILTER: i32 = 0;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_SRCNAT: i32 = 100;

/// Makes the filter's chains of the inet table.
pub(super) fn flows(batch: &mut Batch) {
    batch.base_chain("forward", ChainType::Filter, Hook::Forward, PRIORITY_FILTER);
    batch.base_chain("input", ChainType::Filter, Hook::Input, PRIORITY_FILTER);
    batch.base_chain("output", ChainType::Filter, Hook::Output, PRIORITY_FILTER);
    for chain in [
        "unlinked",
        "related",
        "outbound",
        "inbound",
        "to_host",
        "from_host",
        "refuse_out",
        "refuse_in",
        "from_peers",
        "note_source",
        "note_destination",
        "note_sender",
        "note_receiver",
    ] {
        batch.chain(chain);
    }
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
    append(
        batch,
        "output",
        &[
            Rule::new().oifname().in_set("bridges").goto("from_host"),
            // A port published on 127.0.0.1: it seems to leave by the loopback interface still.
            Rule::new().ct_new().ct_dnat().goto("note_receiver"),
        ],
    );

    let same_bridge = |rule: Rule| rule.iifname().meta(Meta::Oifname, 4).in_set("same");
    let nd = |kind| same_bridge(icmp_type(Rule::new().l4proto(ICMPV6), kind)).accept();
    let router = |kind| icmp_type(Rule::new().family(true).l4proto(ICMPV6), kind);
    let from_outside = |ipv6: bool| {
        let (at, len) = if ipv6 { (8, 16) } else { (12, 4) };
        Rule::new().iifname().not_in_set("bridges").family(ipv6).payload(Base::Network, at, len, 0)
    };
    let dhcp = |rule: Rule, ports: &[u8]| {
        rule.family(false).l4proto(UDP).payload(Base::Transport, 0, 4, 0).equal(0, ports)
    };
    append(
        batch,
        "forward",
        &[
            Rule::new().iifname().not_in_set("bridges").oifname().not_in_set("bridges").accept(),
            // Lists know sandboxes by their addresses, and nobody outside has one of them.
            from_outside(false).in_set("inside4").drop(),
            from_outside(true).in_set("inside6").drop(),
            Rule::new().ct_established().accept(),
            Rule::new().ct_related().goto("related"),
            Rule::new().ct_invalid().drop(),
            // The frames' rules have looked at it.
            nd(NEIGHBOUR_SOLICITATION),
            nd(NEIGHBOUR_ADVERTISEMENT),
            // Put together from fragments, it was not looked at: only that a sandbox sends from its own addresses was.
            router(ROUTER_ADVERTISEMENT).iifname().and_payload(Base::Network, 8, 16).in_set("own6").drop(),
            same_bridge(router(ROUTER_ADVERTISEMENT)).iifname().in_set("routed").accept(),
            router(ROUTER_ADVERTISEMENT).drop(),
            same_bridge(router(ROUTER_SOLICITATION)).iifname().in_set("routed").accept(),
            icmp_type(Rule::new().l4proto(ICMPV6), REDIRECT).drop(),
            // A lease is renewed by a packet to its server, and by one to everybody when that does not answer.
            same_bridge(dhcp(Rule::new(), &[0, 68, 0, 67]))
                .iifname()
                .and_payload(Base::Network, 12, 4)
                .in_set("leased4")
                .accept(),
            same_bridge(dhcp(Rule::new(), &[0, 67, 0, 68]))
                .oifname()
                .and_payload(Base::Network, 16, 4)
                .in_set("leased4")
                .accept(),
            Rule::new()
                .iifname()
                .in_set("bridges")
                .oifname()
                .in_set("bridges")
                .iifname()
                .meta(Meta::Oifname, 4)
                .not_in_set("linked")
                .jump("unlinked"),
            Rule::new().goto("outbound"),
        ],
    );
    append(
        batch,
        "unlinked",
        &[
            // A published port may be used from another network, anything else needs the two to be peers. (Written this
            // way round because a packet that is not tracked matches no rule about its connection.)
            Rule::new().ct_dnat().verdict(&Verdict::Return),
            Rule::new().goto("refuse_out"),
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
            Rule::new().jump("note_source"),
            Rule::new().goto("inbound"),
        ],
    );
    append(
        batch,
        "inbound",
        &[
            Rule::new().jump("note_destination"),
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
            Rule::new().ct_related().goto("related"),
            Rule::new().ct_invalid().drop(),
            icmp_type(Rule::new().l4proto(ICMPV6), ROUTER_SOLICITATION).accept(),
            icmp_type(Rule::new().l4proto(ICMPV6), NEIGHBOUR_SOLICITATION).accept(),
            icmp_type(Rule::new().l4proto(ICMPV6), NEIGHBOUR_ADVERTISEMENT).accept(),
            Rule::new().jump("note_source"),
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
            Rule::new().ct_related().goto("related"),
            nd_type(ROUTER_ADVERTISEMENT),
            nd_type(NEIGHBOUR_SOLICITATION),
            nd_type(NEIGHBOUR_ADVERTISEMENT),
            Rule::new().jump("note_destination"),
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

/// Makes the chains that note who has flows: see `history`. Every flow of a sandbox passes one of them before the kernel
/// tracks it.
pub(super) fn notes(batch: &mut Batch) {
    append(
        batch,
        "related",
        &[Rule::new().jump("note_source"), Rule::new().jump("note_destination"), Rule::new().accept()],
    );
    append(batch, "note_source", &[Rule::new().iifname().in_set("noted").goto("note_sender")]);
    append(batch, "note_destination", &[Rule::new().oifname().in_set("noted").goto("note_receiver")]);
    for (chain, [at4, at6], [note4, note6]) in [
        ("note_sender", [12, 8], ["opened4", "opened6"]),
        ("note_receiver", [16, 24], ["answered4", "answered6"]),
    ] {
        for (ipv6, at, len, met) in [(false, at4, 4, note4), (true, at6, 16, note6)] {
            let address = || Rule::new().family(ipv6).payload(Base::Network, at, len, 0);
            append(
                batch,
                chain,
                &[
                    address().note(met),
                    // There was no room for it.
                    address().not_in_set(met).meta(Meta::Nfproto, 0).note("crowded"),
                ],
            );
        }
    }
}

/// Makes the chains of the inet table that translate addresses.
pub(super) fn translation(batch: &mut Batch) {
    batch.base_chain("nat_prerouting", ChainType::Nat, Hook::Prerouting, PRIORITY_DSTNAT);
    batch.base_chain("nat_output", ChainType::Nat, Hook::Output, PRIORITY_DSTNAT);
    batch.base_chain("nat_postrouting", ChainType::Nat, Hook::Postrouting, PRIORITY_SRCNAT);
    batch.chain("publish");
    for hook in ["nat_prerouting", "nat_output"] {
        append(batch, hook, &[Rule::new().local_destination().goto("publish")]);
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
    for protocol in [TCP, UDP, SCTP] {
        let port = Rule::new().l4proto(protocol).payload(Base::Transport, 2, 2, 1);
        append(batch, "publish", &[port.note("asked")]);
    }
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
/// Loads the UDP destination port and, behind it, the VXLAN network identifier (RFC 7348).
fn tunnel(rule: Rule, reg: u32) -> Rule {
    rule.payload(Base::Transport, 2, 2, reg).payload(Base::Transport, 12, 3, reg + 1)
}

//! A network card on the bridge.

use std::net::Ipv6Addr;

use crate::support;
use crate::support::frames::{Tap, ethernet, group_mac, icmpv6, ipv6};
use crate::support::{Host, Ns, PATIENCE, SILENCE, comes, open_policy};
use serde_json::json;

#[test]
fn a_network_card_on_the_bridge_brings_the_network_outside() {
    needs_root!();
    let host = Host::new();
    let outside = Ns::new();
    host.ns.wire("nic0", &outside, "far0");
    outside.ip("addr add 203.0.113.1/24 dev far0");
    outside.serve_tcp("0.0.0.0:80");
    let before = host.ns.census();
    let mut conf = host.conf(
        "public",
        "203.0.113.0/24",
        json!({"uplink": "nic0", "isGateway": false, "ipam": {"rangeStart": "203.0.113.10"}, "policy": {
            "egress": {"allow": ["any"], "deny": ["203.0.113.99"]}, "ingress": {"allow": [{"protocol": "tcp", "ports": [443]}]}}}),
    );
    let a = host.add("a", &conf);
    assert!(a.ns.reaches("203.0.113.1:80"), "out by the wire");
    a.ns.serve_tcp("0.0.0.0:443");
    a.ns.serve_tcp("0.0.0.0:444");
    assert!(outside.reaches(&format!("{}:443", a.ip())), "in by the wire");
    assert!(outside.blocked(&format!("{}:444", a.ip())));
    host.del(&a, &conf);
    // The kernel gives it an IPv6 address again.
    host.ns.settle_link("nic0");
    assert_eq!(host.ns.census(), before, "the card is the host's again");
    // A card with addresses is the host's own line.
    host.ns.ip("addr add 203.0.113.2/24 dev nic0");
    conf["ipam"]["rangeStart"] = json!("203.0.113.20");
    let error = host.call("ADD", "b", "eth0", &Ns::new().path(), &conf).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("nic0 has the host's address"), "{error}");
}

const IPV6: u16 = 0x86dd;

/// `ff02::1`.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A router advertisement with a lifetime of half an hour and a prefix (RFC 4861) to make addresses of: the frame, and what
/// is in it behind the IPv6 header.
fn advertisement(from: Ipv6Addr, mac: [u8; 6]) -> (Vec<u8>, Vec<u8>) {
    let prefix: Ipv6Addr = "2001:db8:6::".parse().unwrap();
    let head = [64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let information = [&[3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0][..], &prefix.octets()];
    let message = icmpv6(from, ALL_NODES, 134, &[&head[..], &information.concat()].concat());
    (ethernet(group_mac(ALL_NODES), mac, IPV6, &ipv6(from, ALL_NODES, 58, &message)), message)
}

#[test]
fn routers_are_heard_behind_the_card_and_nowhere_else() {
    needs_root!();
    for heard in [true, false] {
        let host = Host::new();
        let outside = Ns::new();
        host.ns.wire("nic0", &outside, "far0");
        let mut conf = host.conf(
            "public",
            "203.0.113.0/24",
            json!({"uplink": "nic0", "isGateway": false, "isDefaultGateway": false, "acceptRA": heard,
                "ipam": {"ranges": [[{"subnet": "2001:db8:5::/64", "rangeStart": "2001:db8:5::10"}]]}}),
        );
        support::merge(&mut conf, open_policy());
        let (a, b) = (host.add("a", &conf), host.add("b", &conf));
        let (line, from, ear) =
            (Tap::open(&outside, "far0"), Tap::open(&a.ns, "eth0"), Tap::open(&b.ns, "eth0"));
        let (frame, message) = advertisement("fe80::1".parse().unwrap(), [2, 0, 0, 0, 0, 0xfe]);
        line.send(&frame);
        assert_eq!(ear.sees(&message, if heard { PATIENCE } else { SILENCE }), heard);
        let learned = || b.ns.ip("-6 route show default");
        // The kernel gets round to it after the frame was seen.
        let knows = || learned().contains("via fe80::1");
        assert_eq!(if heard { comes(knows) } else { knows() }, heard, "{}", learned());
        assert!(!b.ns.ip("-6 addr").contains("2001:db8:6:"), "an address that nobody gave");
        // A sandbox is no router, also not in pieces.
        let own = skep_cni::mac::Mac(a.mac()).link_local();
        let (frame, message) = advertisement(own, a.mac());
        from.send(&frame);
        let whole = [&[58, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &message].concat();
        let fragments = [
            [&[60, 0, 0, 1, 0, 0, 0, 9][..], &whole[..8]].concat(),
            [&[60, 0, 0, 8, 0, 0, 0, 9][..], &whole[8..]].concat(),
        ];
        for part in fragments {
            from.send(&ethernet(group_mac(ALL_NODES), a.mac(), IPV6, &ipv6(own, ALL_NODES, 44, &part)));
        }
        assert!(!ear.sees(&message, SILENCE) && !line.sees(&message, SILENCE));
        assert!(!learned().contains(&own.to_string()), "{}", learned());
    }
}

#[test]
fn a_host_that_routes_for_sandboxes_still_hears_its_own_router() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    host.ns.set_sysctl("ipv6/conf/out0/accept_ra", "1");
    let line = Tap::open(&outside, "out1");
    let hears = |n: u8| {
        let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, u16::from(n));
        line.send(&advertisement(router, [2, 0, 0, 0, 0, n]).0);
        comes(|| host.ns.ip("-6 route show default").contains(&router.to_string()))
    };
    assert!(hears(7), "before there are sandboxes");
    let mut conf = host.pods(json!({"ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}}));
    support::merge(&mut conf, open_policy());
    let _a = host.add("a", &conf);
    assert_eq!(host.ns.sysctl("ipv6/conf/all/forwarding"), "1");
    assert!(host.ns.ip("-6 route show default").contains("fe80::7"), "what it knew");
    assert!(hears(8), "and one more");
}

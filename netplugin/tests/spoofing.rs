//! What a hostile sandbox sends under another's name, and what it could overhear.
#![cfg(target_os = "linux")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::many_single_char_names,
    reason = "tests"
)]

mod support;

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::json;
use skep_cni::network::Store;
use skep_cni::plugin;
use support::frames::{BROADCAST, Tap, arp, ethernet, group_mac, icmpv6, ipv4, ipv6, udp};
use support::{Container, Host, PATIENCE, SILENCE, comes, open_policy};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;

struct Stage {
    host: Host,
    a: Container,
    b: Container,
    from: Tap,
    at: Tap,
    bridge: Tap,
}

impl Stage {
    fn new() -> Self {
        let host = Host::new();
        let mut conf = host.pods(json!({"ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}}));
        support::merge(&mut conf, open_policy());
        conf["policy"]["multicast"] = json!(true);
        let (a, b) = (host.add("a", &conf), host.add("b", &conf));
        let (from, at) = (Tap::open(&a.ns, "eth0"), Tap::open(&b.ns, "eth0"));
        let bridge = Tap::open(&host.ns, "skb-pods");
        Self { host, a, b, from, at, bridge }
    }

    fn spoofed(&self) -> u64 {
        let store = Store::new(self.host.data_dir());
        let status =
            self.host.ns.run(|| plugin::status(&skep_cni::datapath::Host::new().unwrap(), &store).unwrap());
        let a = status.networks[0].attachments.iter().find(|one| one.container_id == "a").unwrap();
        a.counters.spoofed_packets
    }

    /// Sends a frame that must reach nobody: neither the neighbour nor the host.
    fn refused(&self, what: &str, frame: &[u8], mark: &[u8]) {
        let before = self.spoofed();
        self.from.send(frame);
        assert!(comes(|| self.spoofed() > before), "{what}: not counted");
        assert!(!self.at.sees(mark, SILENCE), "{what}: reached the neighbour");
        assert!(!self.bridge.sees(mark, std::time::Duration::from_millis(10)), "{what}: reached the host");
        assert_eq!(self.spoofed(), before + 1, "{what}: counted twice");
    }

    fn passes(&self, what: &str, frame: &[u8], mark: &[u8]) {
        let before = self.spoofed();
        self.from.send(frame);
        assert!(self.at.sees(mark, PATIENCE), "{what}: did not arrive");
        assert_eq!(self.spoofed(), before, "{what}: counted as spoofed");
    }

    fn v4(container: &Container) -> Ipv4Addr {
        container.ip().parse().unwrap()
    }

    fn v6(container: &Container) -> Ipv6Addr {
        container.address(1).parse().unwrap()
    }
}

fn mark(n: u8) -> Vec<u8> {
    format!("<<mark-{n}>>").into_bytes()
}

#[test]
fn ipv4_and_ethernet_sources() {
    needs_root!();
    let stage = Stage::new();
    let (a, b) = (Stage::v4(&stage.a), Stage::v4(&stage.b));
    let (mac_a, mac_b) = (stage.a.mac(), stage.b.mac());
    let gateway: Ipv4Addr = "10.1.0.1".parse().unwrap();
    let send = |from: Ipv4Addr, n: u8| ipv4(from, b, 17, &udp(1000, 2000, &mark(n)));
    stage.passes("own addresses", &ethernet(mac_b, mac_a, IPV4, &send(a, 1)), &mark(1));
    stage.refused("another's Ethernet address", &ethernet(mac_b, mac_b, IPV4, &send(a, 2)), &mark(2));
    stage.refused(
        "an invented Ethernet address",
        &ethernet(mac_b, [2, 9, 9, 9, 9, 9], IPV4, &send(a, 3)),
        &mark(3),
    );
    stage.refused("another's IPv4 address", &ethernet(mac_b, mac_a, IPV4, &send(b, 4)), &mark(4));
    stage.refused("the gateway's IPv4 address", &ethernet(mac_b, mac_a, IPV4, &send(gateway, 5)), &mark(5));
    stage.refused(
        "no IPv4 address",
        &ethernet(mac_b, mac_a, IPV4, &send(Ipv4Addr::UNSPECIFIED, 6)),
        &mark(6),
    );
    stage.refused(
        "an outside IPv4 address",
        &ethernet(mac_b, mac_a, IPV4, &send(Ipv4Addr::new(8, 8, 8, 8), 7)),
        &mark(7),
    );
    // Under a VLAN tag, which the rules for IP would not look behind.
    let tagged = [&[0, 5][..], &IPV4.to_be_bytes(), &send(b, 8)].concat();
    stage.refused("in a VLAN tag", &ethernet(mac_b, mac_a, 0x8100, &tagged), &mark(8));
    let pppoe = [&[0x11, 0, 0, 1, 0, 60, 0, 0x21][..], &send(b, 9)].concat();
    stage.refused("in PPPoE", &ethernet(mac_b, mac_a, 0x8864, &pppoe), &mark(9));
    // A fragment is no way around: its source is looked at like any other's.
    let mut fragment = send(b, 10);
    fragment[6] = 0x20;
    stage.refused("a fragment", &ethernet(mac_b, mac_a, IPV4, &fragment), &mark(10));
}

#[test]
fn arp_and_dhcp() {
    needs_root!();
    let stage = Stage::new();
    let (a, b) = (Stage::v4(&stage.a), Stage::v4(&stage.b));
    let (mac_a, mac_b) = (stage.a.mac(), stage.b.mac());
    let gateway: Ipv4Addr = "10.1.0.1".parse().unwrap();
    let ask = arp(1, (mac_a, a), ([0; 6], b));
    stage.passes("a question", &ethernet(BROADCAST, mac_a, ARP, &ask), &ask);
    let probe = arp(1, (mac_a, Ipv4Addr::UNSPECIFIED), ([0; 6], a));
    let before = stage.spoofed();
    stage.from.send(&ethernet(BROADCAST, mac_a, ARP, &probe));
    assert_eq!(stage.spoofed(), before, "a probe for one's own address is fine");
    for (what, message) in [
        ("the gateway's address claimed", arp(2, (mac_a, gateway), (mac_b, b))),
        ("the gateway's address claimed for all", arp(1, (mac_a, gateway), ([0; 6], gateway))),
        ("another's address claimed", arp(2, (mac_a, b), (mac_b, b))),
        ("another's Ethernet address in the message", arp(2, ([2, 7, 7, 7, 7, 7], a), (mac_b, b))),
        ("a probe for another's address", arp(1, (mac_a, Ipv4Addr::UNSPECIFIED), ([0; 6], b))),
    ] {
        stage.refused(what, &ethernet(mac_b, mac_a, ARP, &message), &message);
    }
    // A question about a third is for the third only.
    let third = arp(1, (mac_a, a), ([0; 6], Ipv4Addr::new(10, 1, 0, 99)));
    stage.from.send(&ethernet(BROADCAST, mac_a, ARP, &third));
    assert!(!stage.at.sees(&third, SILENCE), "overheard");
    let offer = ipv4(a, b, 17, &udp(67, 68, &mark(1)));
    stage.refused("a DHCP server", &ethernet(mac_b, mac_a, IPV4, &offer), &mark(1));
    let discover = ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 17, &udp(68, 67, &mark(2)));
    stage.refused(
        "a DHCP client where there is no DHCP",
        &ethernet(BROADCAST, mac_a, IPV4, &discover),
        &mark(2),
    );
    // The neighbour's caches are right after all this.
    stage.b.ns.serve_tcp("0.0.0.0:80");
    assert!(stage.a.ns.reaches(&format!("{b}:80")));
}

#[test]
fn neighbour_discovery_and_router_advertisements() {
    needs_root!();
    let stage = Stage::new();
    let (a, b) = (Stage::v6(&stage.a), Stage::v6(&stage.b));
    let (mac_a, mac_b) = (stage.a.mac(), stage.b.mac());
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    let gateway: Ipv6Addr = "fd01::1".parse().unwrap();
    let frame = |to: Ipv6Addr, from: Ipv6Addr, kind: u8, body: &[u8]| {
        let mac = if to.is_multicast() { group_mac(to) } else { mac_b };
        let message = icmpv6(from, to, kind, body);
        (ethernet(mac, mac_a, IPV6, &ipv6(from, to, 58, &message)), message)
    };
    let target = |ip: Ipv6Addr| [&[0x60, 0, 0, 0][..], &ip.octets()].concat();
    let option = |kind: u8, mac: [u8; 6]| [&[kind, 1][..], &mac].concat();

    let honest = [target(a), option(2, mac_a)].concat();
    let (bytes, message) = frame(b, a, 136, &honest);
    stage.passes("an honest advertisement", &bytes, &message);
    let solicited = [&[0; 4][..], &b.octets(), &option(1, mac_a)].concat();
    let (bytes, message) = frame(b, a, 135, &solicited);
    stage.passes("an honest solicitation", &bytes, &message);

    let router = [&[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &option(1, mac_a)].concat();
    for (what, to, from, kind, body) in [
        ("a router advertisement", all, stage_link_local(&stage.a), 134, router.clone()),
        ("a router advertisement to one", b, a, 134, router.clone()),
        ("a redirect", b, a, 137, [&[0; 4][..], &a.octets(), &b.octets()].concat()),
        ("the gateway advertised", b, a, 136, [target(gateway), option(2, mac_a)].concat()),
        ("another advertised", all, a, 136, [target(b), option(2, mac_a)].concat()),
        ("an address at another's Ethernet address", b, a, 136, [target(a), option(2, mac_b)].concat()),
        (
            "the option hidden behind another",
            b,
            a,
            136,
            [target(a), option(14, mac_a), option(2, mac_b)].concat(),
        ),
        (
            "a solicitation with another's Ethernet address",
            b,
            a,
            135,
            [&[0; 4][..], &b.octets(), &option(1, mac_b)].concat(),
        ),
        (
            "a solicitation from the gateway",
            b,
            gateway,
            135,
            [&[0; 4][..], &b.octets(), &option(1, mac_a)].concat(),
        ),
        (
            "duplicate detection for another's address",
            all,
            Ipv6Addr::UNSPECIFIED,
            135,
            [&[0; 4][..], &b.octets()].concat(),
        ),
        ("a listener query", all, stage_link_local(&stage.a), 130, [&[0; 20][..]].concat()),
        ("an echo from another's address", b, gateway, 128, mark(1)),
    ] {
        let (bytes, message) = frame(to, from, kind, &body);
        stage.refused(what, &bytes, &message);
    }
    // Behind extension headers: destination options, and a fragment header.
    let message = icmpv6(a, b, 134, &router);
    let options = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &message].concat();
    stage.refused(
        "a router advertisement behind options",
        &ethernet(mac_b, mac_a, IPV6, &ipv6(a, b, 60, &options)),
        &message,
    );
    let fragment = [&[58, 0, 0, 1, 0, 0, 0, 9][..], &message].concat();
    stage.refused(
        "a router advertisement in a fragment",
        &ethernet(mac_b, mac_a, IPV6, &ipv6(a, b, 44, &fragment)),
        &message,
    );
    let lie = icmpv6(a, b, 136, &[target(gateway), option(2, mac_a)].concat());
    let fragment = [&[58, 0, 0, 1, 0, 0, 0, 9][..], &lie].concat();
    stage.refused(
        "an advertisement in a fragment",
        &ethernet(mac_b, mac_a, IPV6, &ipv6(a, b, 44, &fragment)),
        &lie,
    );
    let server = ipv6(a, b, 17, &udp(547, 546, &mark(2)));
    stage.refused("a DHCPv6 server", &ethernet(mac_b, mac_a, IPV6, &server), &mark(2));

    stage.b.ns.serve_tcp("[::]:80");
    assert!(stage.a.ns.reaches(&format!("[{b}]:80")));
}

fn stage_link_local(container: &Container) -> Ipv6Addr {
    let [a, b, c, d, e, f] = container.mac();
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[test]
fn a_router_advertisement_put_together_from_fragments_is_refused() {
    needs_root!();
    let stage = Stage::new();
    let (a, b) = (Stage::v6(&stage.a), Stage::v6(&stage.b));
    let (mac_a, mac_b) = (stage.a.mac(), stage.b.mac());
    let router = [&[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &[1, 1], &mac_a].concat();
    let message = icmpv6(a, b, 134, &router);
    // The first fragment ends inside a destination options header: nothing in it says what follows.
    let whole = [&[58, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &message].concat();
    let first = [&[60, 0, 0, 1, 0, 0, 0, 9][..], &whole[..8]].concat();
    let second = [&[60, 0, 0, 8, 0, 0, 0, 9][..], &whole[8..]].concat();
    for part in [first, second] {
        stage.from.send(&ethernet(mac_b, mac_a, IPV6, &ipv6(a, b, 44, &part)));
    }
    assert!(!stage.at.sees(&message, SILENCE));
}

#[test]
fn frames_for_others_are_not_overheard_and_do_not_go_around_a_policy() {
    needs_root!();
    let host = Host::new();
    let mut conf = host.pods(json!({"policy": {"egress": {"allow": ["any"]}}}));
    let a = host.add("a", &conf);
    // b lets nobody in.
    let b = host.add("b", &conf);
    conf["policy"]["multicast"] = json!(true);
    let (from, at) = (Tap::open(&a.ns, "eth0"), Tap::open(&b.ns, "eth0"));
    let source: Ipv4Addr = a.ip().parse().unwrap();
    for (n, (to_mac, to)) in [
        // A destination that no list of b's speaks of, in a frame for b.
        (b.mac(), Ipv4Addr::new(8, 8, 8, 8)),
        (b.mac(), Ipv4Addr::new(10, 1, 0, 200)),
        (BROADCAST, Ipv4Addr::BROADCAST),
        (BROADCAST, Ipv4Addr::new(10, 1, 0, 255)),
        ([1, 0, 0x5e, 0, 0, 1], Ipv4Addr::new(224, 0, 0, 1)),
        (b.mac(), b.ip().parse().unwrap()),
        // To nobody's Ethernet address: flooded by a bridge that knows no better.
        ([2, 1, 2, 3, 4, 5], b.ip().parse().unwrap()),
    ]
    .into_iter()
    .enumerate()
    {
        let n = u8::try_from(n).unwrap();
        from.send(&ethernet(to_mac, a.mac(), IPV4, &ipv4(source, to, 17, &udp(1, 2, &mark(n)))));
        assert!(!at.sees(&mark(n), SILENCE), "{to_mac:?} {to}");
    }
}

#[test]
fn fragments_are_judged_as_what_they_make_together() {
    needs_root!();
    let host = Host::new();
    let conf = host.pods(json!({"policy": {
        "egress": {"allow": [{"cidr": "10.1.0.0/24", "protocol": "udp", "ports": [2000]}]}, "ingress": {"allow": ["any"]}}}));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    let (from, at) = (Tap::open(&a.ns, "eth0"), Tap::open(&b.ns, "eth0"));
    let send = |port: u16, id: u8, n: u8| {
        let datagram = udp(1000, port, &[mark(n), vec![b'x'; 40]].concat());
        for (offset, more, part) in [(0_u16, true, &datagram[..16]), (2, false, &datagram[16..])] {
            let mut packet = ipv4(a.ip().parse().unwrap(), b.ip().parse().unwrap(), 17, part);
            packet[5] = id;
            let field = offset | if more { 0x2000 } else { 0 };
            packet[6..8].copy_from_slice(&field.to_be_bytes());
            // The checksum of the header, again.
            packet[10..12].fill(0);
            let sum: u32 =
                packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            from.send(&ethernet(b.mac(), a.mac(), IPV4, &packet));
        }
    };
    let tail = [b'x'; 30];
    send(2000, 1, 1);
    assert!(at.sees(&tail, PATIENCE), "allowed in fragments");
    send(2001, 2, 2);
    assert!(!at.sees(&tail, SILENCE), "forbidden in fragments");
}

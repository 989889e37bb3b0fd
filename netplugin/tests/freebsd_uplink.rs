//! The network outside behind a card on FreeBSD: addresses of its own DHCP server, routes of its own routers.
#![cfg(target_os = "freebsd")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod jails;

use std::net::Ipv4Addr;
use std::time::Duration;

use jails::dhcp::Server;
use jails::frames::{advertisement, dhcp_question, udp};
use jails::uplink::{Outside, Vm};
use jails::{Host, PATIENCE, SILENCE, alone, merge, open_policy, sh, until};
use serde_json::{Value, json};
use skep_cni::mac::Mac;

const BROADCAST: [u8; 6] = [0xff; 6];

fn policy() -> Value {
    json!({"policy": {"multicast": true, "egress": {"allow": [{"cidr": "203.0.113.1", "protocol": "tcp", "ports": [80]},
        {"cidr": "203.0.113.1", "protocol": "udp"}]}}})
}

#[test]
fn jails_and_vms_have_addresses_of_the_networks_server_and_no_other() {
    let _turn = alone();
    let host = Host::new(None);
    let outside = Outside::new();
    let server = Server::start(&outside.jail, 3600);
    for port in [80, 81] {
        outside.jail.serve_tcp(&format!("0.0.0.0:{port}"));
    }
    outside.jail.serve_udp("0.0.0.0:9");
    let conf = outside.conf(&host, policy());
    let before = host.census_after_first(&conf);
    assert_eq!(server.log().matches("RELEASE").count(), 1);
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    let result = host.call("ADD", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    let mut vm = Vm::start(&result);
    let range = Ipv4Addr::new(203, 0, 113, 50)..=Ipv4Addr::new(203, 0, 113, 90);
    let mut all = [a.ip(), b.ip(), vm.ip.clone()];
    assert!(all.iter().all(|ip| range.contains(&ip.parse::<Ipv4Addr>().unwrap())), "{all:?}");
    all.sort();
    assert!(all[0] != all[1] && all[1] != all[2], "{all:?}");
    // What goes with the address.
    assert_eq!(result["ips"][0]["gateway"], "203.0.113.1");
    assert_eq!(result["dns"], json!({"nameservers": ["203.0.113.2"], "domain": "example.net"}));
    let routes = a.jail.sh("netstat -rnf inet");
    let by = |net: &str, router: &str| {
        routes.lines().any(|line| line.split_whitespace().take(2).eq([net, router]))
    };
    assert!(by("default", "203.0.113.1") && by("198.51.100.0/24", "203.0.113.9"), "{routes}");
    for (id, netns) in [("a", a.jail.name.as_str()), ("vm", "0")] {
        host.call("CHECK", id, netns, &conf).unwrap_or_else(|error| panic!("{id}: {error}"));
    }
    // The policy holds, and the host is no part of it.
    assert!(a.jail.reaches("203.0.113.1:80") && b.jail.reaches("203.0.113.1:80"));
    assert!(a.jail.blocked("203.0.113.1:81"));
    assert!(b.jail.blocked(&format!("{}:80", a.ip())));
    assert!(!sh("ifconfig -a").contains("203.0.113."));
    // With its address the VM gets an answer, with a neighbour's none.
    let to = outside.mac();
    let answered = |vm: &mut Vm, from: &str, mark: &[u8]| {
        let frame = udp(vm.mac, to, (from, 4000), ("203.0.113.1", 9), b"?");
        // A neighbour's answer for it, which the server asks for.
        vm.send(&jails::frames::arp_answer(vm.mac, vm.mac, &vm.ip.clone(), to, "203.0.113.1"));
        vm.send(&frame);
        vm.hears(mark, PATIENCE.min(Duration::from_secs(5)))
    };
    let (own, theirs) = (vm.ip.clone(), b.ip());
    assert!(answered(&mut vm, &own, own.as_bytes()), "its own address");
    assert!(!answered(&mut vm, &theirs, theirs.as_bytes()), "another's");

    // A sandbox is no client: its questions reach nobody, from whatever address.
    let xids = [[0xaa, 0xbb, 0, 1], [0xaa, 0xbb, 0, 2], [0xaa, 0xbb, 0, 3]];
    let question = |mac: [u8; 6], from: &str, to: &str, xid: [u8; 4]| {
        udp(mac, BROADCAST, (from, 68), (to, 67), &dhcp_question(1, xid, mac))
    };
    let heard = b.jail.hears("eth0", &xids[1], SILENCE, || {
        a.jail.inject(
            "eth0",
            &[
                question(a.mac(), "0.0.0.0", "255.255.255.255", xids[0]),
                question(a.mac(), &a.ip(), "255.255.255.255", xids[1]),
            ],
        );
        vm.send(&question(vm.mac, &own, "203.0.113.1", xids[2]));
    });
    assert!(!heard, "a question of a sandbox");
    assert!(!server.log().contains("aabb"), "{}", server.log());
    // And no server: neither in whole nor in pieces, to everybody or to one.
    let offer =
        |mac: [u8; 6], from: &str| udp(mac, BROADCAST, (from, 67), ("255.255.255.255", 68), b"<<offer>>");
    assert!(
        !b.jail.hears("eth0", b"<<offer>>", SILENCE, || a.jail.inject("eth0", &[offer(a.mac(), &a.ip())]))
    );
    assert!(!outside.jail.hears(&outside.far, b"<<offer>>", SILENCE, || vm.send(&offer(vm.mac, &own))));
    // Nobody hears what the host asks for another, or is answered.
    let mut third = None;
    let hardware = [&Mac::derive(&["public", "c", "eth0"]).0[..], &[0; 10]].concat();
    let heard = b.jail.hears("eth0", &hardware, Duration::from_secs(6), || {
        third = Some(host.add("c", &conf));
    });
    assert!(!heard, "another's lease");
    assert!(!vm.hears(&hardware, SILENCE), "another's lease");
    // Everything else that is to everybody comes by this network's policy: they were able to hear.
    let heard = b.jail.hears("eth0", b"<<all>>", PATIENCE, || {
        let all = udp(to, BROADCAST, ("203.0.113.1", 4000), ("255.255.255.255", 4000), b"<<all>>");
        outside.jail.inject(&outside.far, &[all]);
    });
    assert!(heard, "broadcasts of others");

    // Given back when they go.
    let third = third.unwrap();
    drop(vm);
    for one in [&a, &b, &third] {
        host.del(one, &conf);
        assert_eq!(
            server.asked("RELEASE", &one.ip()),
            1 + usize::from(one.ip() == a.ip()),
            "{}",
            server.log()
        );
    }
    host.del(&third, &conf);
    host.call("DEL", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(server.asked("RELEASE", &own), 1, "{}", server.log());
    host.settles_to(&before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn routers_are_heard_behind_the_card_and_nowhere_else() {
    let _turn = alone();
    for heard in [true, false] {
        let host = Host::new(None);
        let outside = Outside::new();
        outside.jail.serve_tcp("[::]:80");
        let mut conf = outside.conf(
            &host,
            json!({"isGateway": false, "isDefaultGateway": false, "acceptRA": heard, "policy": {"multicast": true},
                "ipam": {"type": "skep", "ranges": [[{"subnet": "2001:db8:5::/64", "rangeStart": "2001:db8:5::10"}]]}}),
        );
        merge(&mut conf, open_policy());
        let (a, b) = (host.add("a", &conf), host.add("b", &conf));
        let result = host.call("ADD", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
        let mut vm = Vm::start(&result);
        host.check(&a, &conf).unwrap_or_else(|error| panic!("{error}"));
        let mac = outside.mac();
        let router = Mac(mac).link_local().to_string();
        // Its own prefix and one more, to make addresses of.
        let frame = advertisement(mac, &router, &["2001:db8:5::", "2001:db8:6::"]);
        let message = &frame[54..];
        let patience = if heard { PATIENCE } else { SILENCE };
        let send = || outside.jail.inject(&outside.far, std::slice::from_ref(&frame));
        assert_eq!(b.jail.hears("eth0", message, patience, send), heard);
        assert_eq!(vm.hears(message, patience), heard);
        let learned = || b.jail.sh("netstat -rnf inet6 | grep default || true");
        if heard {
            until(|| if learned().contains(&router) { Ok(()) } else { Err(learned()) });
            assert!(b.jail.reaches("[2001:db8:9::1]:80"), "by the router: {}", b.jail.sh("ifconfig eth0"));
        } else {
            assert!(!learned().contains("fe80"), "{}", learned());
            assert!(b.jail.blocked("[2001:db8:9::1]:80"));
        }
        assert!(b.jail.reaches("[2001:db8:5::1]:80"), "on the link");
        let addresses = b.jail.sh("ifconfig eth0 inet6");
        assert_eq!(addresses.matches("2001:db8:").count(), 1, "an address that nobody gave: {addresses}");
        // A sandbox is no router.
        let own = Mac(a.mac()).link_local().to_string();
        let frame = advertisement(a.mac(), &own, &["2001:db8:7::"]);
        let send = || a.jail.inject("eth0", std::slice::from_ref(&frame));
        assert!(!b.jail.hears("eth0", &frame[54..], SILENCE, send));
        assert!(!outside.jail.hears(&outside.far, &frame[54..], SILENCE, send));
        assert!(!learned().contains(&own), "{}", learned());
        drop(vm);
        host.call("DEL", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
        for one in [&a, &b] {
            host.del(one, &conf);
        }
        assert_eq!(host.files(), Vec::<String>::new());
    }
}

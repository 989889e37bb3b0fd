//! Live flows: those that a changed policy ends, and those that nobody inherits.

use std::net::IpAddr;

use crate::support::{self, Container, Host, Ns, PATIENCE, SILENCE, echoes, open_policy, policy};
use crate::{own, set_policy};
use serde_json::json;

#[test]
fn a_changed_policy_ends_live_flows_and_spares_the_others() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    outside.ip("addr add 192.0.2.9/24 dev out1");
    outside.serve_tcp("0.0.0.0:80");
    let conf =
        host.pods(json!({"ipMasq": true, "policy": {"ingress": {"allow": [{"cidr": "10.1.0.0/24"}]}}}));
    let allow = json!({"egress": {"allow": ["any"]}});
    let a = own(&host, "a", &conf, allow.clone());
    let b = own(&host, "b", &conf, allow.clone());
    b.ns.serve_tcp("0.0.0.0:80");
    let mut cut = a.ns.connect("192.0.2.9:80", PATIENCE).unwrap();
    let mut spared = a.ns.connect("192.0.2.2:80", PATIENCE).unwrap();
    let mut neighbour = a.ns.connect(&format!("{}:80", b.ip()), PATIENCE).unwrap();
    let mut others = b.ns.connect("192.0.2.9:80", PATIENCE).unwrap();
    for stream in [&mut cut, &mut spared, &mut neighbour, &mut others] {
        assert!(echoes(stream));
        stream.set_read_timeout(Some(SILENCE)).unwrap();
    }
    set_policy(&host, "a", &json!({"egress": {"allow": ["any"], "deny": ["192.0.2.9"]}}));
    assert!(!echoes(&mut cut), "the denied flow must end");
    for stream in [&mut spared, &mut neighbour, &mut others] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(echoes(stream));
    }
    assert!(a.ns.blocked("192.0.2.9:80"));
    assert!(b.ns.reaches("192.0.2.9:80"));
    // Bridged flows end too, by the receiver's list.
    neighbour.set_read_timeout(Some(SILENCE)).unwrap();
    set_policy(&host, "b", &json!({"ingress": {"deny": [{"cidr": a.ip()}]}}));
    assert!(!echoes(&mut neighbour));
    host.check(&a, &conf).unwrap();
}

#[test]
fn flows_between_link_local_addresses_end_as_all_do() {
    needs_root!();
    let host = Host::new();
    let _elsewhere = host.add("elsewhere", &host.conf("other", "10.9.0.0/24", json!({})));
    let mut conf = host.pods(json!({"policy": {"hostIngress": true}}));
    support::merge(
        &mut conf,
        json!({"ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}, "policy": {"ingress": {"allow": ["any"]}}}),
    );
    let allow = json!({"egress": {"allow": ["any"]}});
    let a = own(&host, "a", &conf, allow.clone());
    let b = own(&host, "b", &conf, allow);
    b.ns.serve_tcp("[::]:80");
    let address = |one: &Container| skep_cni::mac::Mac(one.mac()).link_local().to_string();
    let index = a.ns.run(|| nix::net::if_::if_nametoindex("eth0").unwrap());
    let by_a = format!("[{}%{index}]:80", address(&b));
    let mut flow = a.ns.connect(&by_a, PATIENCE).unwrap();
    let mut hosts = host.ns.connect(&format!("[{}]:80", b.address(1)), PATIENCE).unwrap();
    assert!(echoes(&mut flow) && echoes(&mut hosts));
    flow.set_read_timeout(Some(SILENCE)).unwrap();
    // By the sandbox's own lists, to whom it is opened.
    set_policy(&host, "b", &json!({"ingress": {"deny": [{"cidr": format!("{}/128", address(&a))}]}}));
    assert!(!echoes(&mut flow), "the denied flow must end");
    assert!(echoes(&mut hosts), "no list speaks of what the host opens");
    set_policy(&host, "b", &json!({}));
    // By those of who opened it.
    let mut flow = a.ns.connect(&by_a, PATIENCE).unwrap();
    assert!(echoes(&mut flow));
    flow.set_read_timeout(Some(SILENCE)).unwrap();
    set_policy(&host, "a", &json!({}));
    assert!(!echoes(&mut flow), "what nothing allows must end");
    // By the network's.
    set_policy(&host, "a", &json!({"egress": {"allow": ["any"]}}));
    let mut flow = a.ns.connect(&by_a, PATIENCE).unwrap();
    assert!(echoes(&mut flow));
    flow.set_read_timeout(Some(SILENCE)).unwrap();
    conf["policy"]["ingress"] = json!({"allow": ["any"], "deny": ["fe80::/10"]});
    let c = own(&host, "c", &conf, json!({}));
    assert!(!echoes(&mut flow), "the network's deny list must end it");
    assert!(echoes(&mut hosts), "no list speaks of what the host opens");
    // None is left of who goes; the other end may go on trying, which would be tracked anew.
    conf["policy"]["ingress"] = json!({"allow": ["any"]});
    let d = own(&host, "d", &conf, json!({}));
    assert!(a.ns.reaches(&by_a));
    let own = [address(&b), b.address(1)];
    assert!(own.iter().all(|ip| !flows_of(&host, ip).is_empty()));
    drop(hosts);
    host.ns.ip(&format!("route add blackhole {}/128", own[1]));
    host.del(&b, &conf);
    assert_eq!(own.map(|ip| flows_of(&host, &ip)), [const { Vec::<String>::new() }; 2]);
    // Nor a word of their addresses, with the network.
    assert!(host.ns.ruleset().contains("fe80::"));
    for one in [&a, &c, &d] {
        host.del(one, &conf);
    }
    assert!(!host.ns.ruleset().contains("fe80::"), "{}", host.ns.ruleset());
}

#[test]
fn the_next_user_of_an_address_inherits_no_flow() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    host.remember_flows();
    let conf = host.conf("pods", "10.1.0.0/30", json!({}));
    outside.ip("route add 10.1.0.0/30 via 192.0.2.1");
    let open = own(&host, "a", &conf, json!({"egress": {"allow": ["any"]}}));
    let ip = open.ip();
    // a asks; the host remembers that answers to this port may pass.
    open.ns.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:6000").unwrap();
        socket.send_to(b"?", "192.0.2.2:7000").unwrap();
    });
    host.del(&open, &conf);
    let heir = host.add("b", &conf);
    assert_eq!(heir.ip(), ip);
    let socket = heir.ns.run(|| std::net::UdpSocket::bind("0.0.0.0:6000").unwrap());
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    outside.run(|| {
        let socket = std::net::UdpSocket::bind("192.0.2.2:7000").unwrap();
        socket.send_to(b"late answer", format!("{ip}:6000")).unwrap();
    });
    assert!(socket.recv(&mut [0; 64]).is_err());
}

#[test]
fn among_many_flows_those_end_that_must_and_no_others() {
    const MANY: usize = 12_000;
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    host.remember_flows();
    outside.ip("addr add 192.0.2.9/24 dev out1");
    outside.ip("route add 10.1.0.0/24 via 192.0.2.1");
    outside.serve_tcp("0.0.0.0:80");
    let conf = host.pods(policy(json!({}), json!({"allow": ["any"]})));
    let allow = json!({"egress": {"allow": ["any"]}});
    let a = own(&host, "a", &conf, allow.clone());
    let b = own(&host, "b", &conf, allow);
    a.ns.serve_tcp("0.0.0.0:80");
    let mut cut = a.ns.connect("192.0.2.9:80", PATIENCE).unwrap();
    let mut spared = a.ns.connect("192.0.2.2:80", PATIENCE).unwrap();
    let mut incoming = outside.connect(&format!("{}:80", a.ip()), PATIENCE).unwrap();
    let mut others = b.ns.connect("192.0.2.9:80", PATIENCE).unwrap();
    b.ns.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:6000").unwrap();
        for port in 10_000..10_000 + MANY {
            socket.send_to(b"?", format!("192.0.2.2:{port}")).unwrap();
        }
    });
    let tracked = |ip: &str| {
        let lines = host.ns.run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap());
        let word = format!("src={ip} ");
        lines.lines().filter(|line| line.contains(&word)).count()
    };
    assert!(tracked(&b.ip()) > MANY);
    set_policy(
        &host,
        "a",
        &json!({"egress": {"allow": ["any"], "deny": ["192.0.2.9"]}, "ingress": {"deny": ["any"]}}),
    );
    for stream in [&mut cut, &mut incoming] {
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(!echoes(stream), "the denied flow must end");
    }
    for stream in [&mut spared, &mut others] {
        assert!(echoes(stream));
    }
    let (of_a, of_b) = (a.ip(), b.ip());
    // Or what is sent again on the connection that was cut would be tracked anew.
    outside.ip(&format!("route add blackhole {of_a}/32"));
    host.del(&a, &conf);
    assert_eq!(tracked(&of_a), 0);
    assert!(tracked(&of_b) > MANY);
    assert!(echoes(&mut others));
    host.del(&b, &conf);
    assert_eq!(tracked(&of_b), 0);
}

/// The flows that a host tracks with this address on either side.
fn flows_of(host: &Host, ip: &str) -> Vec<String> {
    let lines = host.ns.run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap());
    // The kernel writes an IPv6 address in full.
    let ip = match ip.parse().unwrap() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => ip.segments().map(|part| format!("{part:04x}")).join(":"),
    };
    let words = [format!("src={ip} "), format!("dst={ip} ")];
    lines.lines().filter(|line| words.iter().any(|word| line.contains(word))).map(ToOwned::to_owned).collect()
}

/// Sends a packet that nobody answers.
fn send(from: &Ns, to: &str) {
    from.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"?", to).unwrap());
}

#[test]
fn flows_to_an_address_that_was_nobodys_are_not_its_next_owners() {
    needs_root!();
    let host = Host::new();
    let _outside = host.outside();
    host.remember_flows();
    let mut conf = host.pods(json!({"policy": {"hostIngress": true}}));
    support::merge(&mut conf, open_policy());
    let to = |n: u8| format!("10.1.0.{n}:6000");
    let inherits_none = |id: &str, n: u8, when: &str| {
        let ip = format!("10.1.0.{n}");
        assert_ne!(flows_of(&host, &ip).len(), 0, "{when}");
        let heir = host.add(id, &conf);
        assert_eq!(heir.ip(), ip);
        assert_eq!(flows_of(&host, &ip), Vec::<String>::new(), "{when}");
        heir
    };
    // Something else of ours has the host track flows before the network is there; they leave by the default route.
    host.ns.ip("route add default via 192.0.2.2");
    let _tracking = host.add("track", &host.conf("track", "10.3.0.0/24", json!({})));
    for n in [2, 3, 4] {
        send(&host.ns, &to(n));
    }
    let _first = inherits_none("a", 2, "from before the network, its first sandbox");
    let _second = inherits_none("b", 3, "from before the network, its second");
    let _third = inherits_none("c", 4, "from before the network, its third");
    send(&host.ns, &to(5));
    let _fourth = inherits_none("d", 5, "from the host");
    host.ns.nft("flush ruleset");
    host.ns.nft("table ip track { chain c { type filter hook output priority 0; ct state new accept; }; }");
    send(&host.ns, &to(6));
    let _fifth = inherits_none("e", 6, "from while our rules were gone");
}

/// A kind of flow, and how one is made: host, the outside, the sandbox that is to go, another.
type Kind = (&'static str, fn(&Host, &Ns, &Container, &Container) -> bool);

#[test]
fn every_kind_of_flow_ends_with_its_sandbox() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    host.remember_flows();
    outside.serve_udp("0.0.0.0:53");
    host.ns.serve_udp("0.0.0.0:53");
    let mut conf = host.pods(json!({"ipMasq": true, "policy": {"hostServices": [{"protocol": "udp", "port": 53}], "hostIngress": true}}),
    );
    support::merge(&mut conf, open_policy());
    let _elsewhere = host.add("elsewhere", &host.conf("other", "10.9.0.0/24", json!({})));
    let neighbour = host.add("stays", &conf);
    neighbour.ns.serve_udp("0.0.0.0:53");
    let mut publishing = conf.clone();
    publishing["runtimeConfig"] =
        json!({"portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]});
    let kinds: [Kind; 8] = [
        ("none", |_, _, _, _| true),
        ("to the outside", |_, _, a, _| a.ns.ask_udp("192.0.2.2:53", PATIENCE).is_some()),
        ("to the host", |_, _, a, _| a.ns.ask_udp("10.1.0.1:53", PATIENCE).is_some()),
        ("to a neighbour", |_, _, a, b| a.ns.ask_udp(&format!("{}:53", b.ip()), PATIENCE).is_some()),
        ("from a neighbour", |_, _, a, b| b.ns.ask_udp(&format!("{}:53", a.ip()), PATIENCE).is_some()),
        ("from the host", |host, _, a, _| host.ns.ask_udp(&format!("{}:53", a.ip()), PATIENCE).is_some()),
        ("published, from the outside", |_, outside, _, _| {
            outside.ask_udp("192.0.2.1:5353", PATIENCE).is_some()
        }),
        ("published, from the host by 127.0.0.1", |host, _, _, _| {
            host.ns.ask_udp("127.0.0.1:5353", PATIENCE).is_some()
        }),
    ];
    for (kind, make) in kinds {
        let sandbox = host.add("a", &publishing);
        sandbox.ns.serve_udp("0.0.0.0:53");
        assert!(make(&host, &outside, &sandbox, &neighbour), "{kind}");
        let ip = sandbox.ip();
        assert_eq!(flows_of(&host, &ip).is_empty(), kind == "none", "{kind}");
        host.del(&sandbox, &publishing);
        assert_eq!(flows_of(&host, &ip), Vec::<String>::new(), "{kind}");
    }
    // Not a word of its addresses stays behind a network, while others do.
    assert!(host.ns.ruleset().contains("10.1.0."));
    host.del(&neighbour, &conf);
    assert!(!host.ns.ruleset().contains("10.1.0."), "{}", host.ns.ruleset());
}

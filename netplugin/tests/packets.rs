//! What arrives and what does not: policy, port maps, isolation, live flows.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod support;

use std::net::Ipv6Addr;

use serde_json::{Value, json};
use skep_cni::network::Store;
use skep_cni::plugin;

use support::frames::{Tap, ethernet, group_mac, icmpv6, ipv6};
use support::{Container, Host, Ns, PATIENCE, SILENCE, echoes, open_policy};

fn policy(egress: Value, ingress: Value) -> Value {
    json!({ "policy": { "egress": egress, "ingress": ingress } })
}

fn own(host: &Host, id: &str, conf: &Value, own: Value) -> Container {
    let mut conf = conf.clone();
    support::merge(
        &mut conf,
        json!({"policy": {"annotations": true}, "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"network.skep.org/policy": own.to_string()}}}),
    );
    host.add(id, &conf)
}

/// Changes a live sandbox's policy, in the host's namespace.
fn set_policy(host: &Host, id: &str, policy: &Value) {
    let store = Store::new(host.data_dir());
    let policy = serde_json::from_value(policy.clone()).unwrap();
    host.ns.run(|| {
        let datapath = skep_cni::datapath::Host::new().unwrap();
        plugin::set_policy(&datapath, &store, "pods", id, "eth0", policy).unwrap();
    });
}

#[test]
fn everything_is_denied_until_allowed() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    outside.serve_tcp("0.0.0.0:80");
    outside.serve_udp("0.0.0.0:53");
    host.ns.serve_tcp("0.0.0.0:7000");
    let conf = host.conf("pods", "10.1.0.0/24", json!({"ipMasq": true}));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.ns.serve_tcp("0.0.0.0:80");
    b.ns.serve_udp("0.0.0.0:53");
    assert!(a.ns.blocked("192.0.2.2:80"), "to the outside");
    assert!(a.ns.ask_udp("192.0.2.2:53", SILENCE).is_none(), "to the outside by UDP");
    assert!(a.ns.blocked(&format!("{}:80", b.ip())), "to a neighbour");
    assert!(a.ns.ask_udp(&format!("{}:53", b.ip()), SILENCE).is_none(), "to a neighbour by UDP");
    assert!(a.ns.blocked("10.1.0.1:7000"), "to the host");
    assert!(a.ns.blocked("192.0.2.1:7000"), "to another address of the host");
    assert!(host.ns.blocked(&format!("{}:80", b.ip())), "from the host");
    outside.ip("route add 10.1.0.0/24 via 192.0.2.1");
    assert!(outside.blocked(&format!("{}:80", b.ip())), "from the outside");
}

#[test]
fn lists_decide_by_address_protocol_and_port() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    outside.ip("addr add 192.0.2.9/24 dev out1");
    for at in ["0.0.0.0:80", "0.0.0.0:81", "0.0.0.0:8005", "[::]:90"] {
        outside.serve_tcp(at);
    }
    outside.serve_udp("0.0.0.0:80");
    let conf = host.conf(
        "pods",
        "10.1.0.0/24",
        json!({"ipMasq": true, "ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}, "policy": {"egress": {
            "allow": [{"cidr": "192.0.2.0/24", "protocol": "tcp", "ports": [80, "8000-8010"]}, {"cidr": "2001:db8::/32", "protocol": "tcp"}],
            "deny": ["192.0.2.9"]}}}),
    );
    let a = host.add("a", &conf);
    assert!(a.ns.reaches("192.0.2.2:80"));
    assert!(a.ns.reaches("192.0.2.2:8005"));
    assert!(a.ns.reaches("[2001:db8::2]:90"));
    assert!(a.ns.blocked("192.0.2.2:81"), "another port");
    assert!(a.ns.ask_udp("192.0.2.2:80", SILENCE).is_none(), "another protocol");
    assert!(a.ns.blocked("192.0.2.9:80"), "denied, though the range is allowed");
    // The outside sees the host's address, not the sandbox's.
    outside.serve_udp("0.0.0.0:53");
    let open = own(&host, "b", &conf, json!({"egress": {"allow": ["any"]}}));
    assert_eq!(open.ns.ask_udp("192.0.2.2:53", PATIENCE).unwrap().to_string(), "192.0.2.1");
    assert!(open.ns.blocked("192.0.2.9:80"), "a sandbox's list does not override the network's deny list");
}

#[test]
fn nothing_overrides_what_is_always_denied() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    for ip in ["169.254.169.254", "203.0.113.5", "203.0.113.77"] {
        outside.ip(&format!("addr add {ip}/32 dev lo"));
        host.ns.ip(&format!("route add {ip}/32 via 192.0.2.2"));
    }
    outside.serve_tcp("0.0.0.0:80");
    host.ns.serve_tcp("0.0.0.0:80");
    host.ns.serve_tcp("0.0.0.0:9999");
    let mut conf = host.conf("pods", "10.1.0.0/24", open_policy());
    support::merge(
        &mut conf,
        json!({"ipMasq": true, "policy": {"alwaysDeny": ["203.0.113.5/32"], "hostServices": [{"protocol": "tcp", "port": 9999}]}}),
    );
    let a = own(&host, "a", &conf, json!({"egress": {"allow": ["169.254.169.254", "203.0.113.5", "any"]}}));
    assert!(a.ns.reaches("203.0.113.77:80"));
    assert!(a.ns.blocked("169.254.169.254:80"), "metadata");
    assert!(a.ns.blocked("203.0.113.5:80"), "a control network");
    assert!(a.ns.blocked("192.0.2.1:80"), "the host");
    assert!(a.ns.blocked("10.1.0.1:80"), "the host as gateway");
    assert!(a.ns.reaches("10.1.0.1:9999"), "a service of the host that the network opens");
}

#[test]
fn sandboxes_and_networks_are_apart_unless_joined() {
    needs_root!();
    let host = Host::new();
    let ingress_any = json!({"allow": ["any"]});
    let one = host.conf("one", "10.1.0.0/24", policy(json!({"allow": ["any"]}), ingress_any.clone()));
    let two = host.conf("two", "10.2.0.0/24", policy(json!({"allow": ["any"]}), ingress_any));
    let (a, b, c) = (host.add("a", &one), host.add("b", &one), host.add("c", &two));
    b.ns.serve_tcp("0.0.0.0:80");
    c.ns.serve_tcp("0.0.0.0:80");
    assert!(a.ns.reaches(&format!("{}:80", b.ip())), "same network, both lists allow");
    assert!(a.ns.blocked(&format!("{}:80", c.ip())), "another network, whatever the lists say");
    let mut peered = one.clone();
    peered["policy"]["peerNetworks"] = json!(["two"]);
    let d = host.add("d", &peered);
    assert!(d.ns.reaches(&format!("{}:80", c.ip())), "peers");
    d.ns.serve_tcp("0.0.0.0:80");
    assert!(c.ns.blocked(&format!("{}:80", d.ip())), "the other did not name us");
}

#[test]
fn groups_are_their_members_and_nobody_else() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf(
        "pods",
        "10.1.0.0/24",
        policy(
            json!({"allow": ["any"]}),
            json!({"allow": [{"group": "web", "protocol": "tcp", "ports": [80]}]}),
        ),
    );
    let in_group = |group: &str| {
        let mut conf = conf.clone();
        conf["policy"]["group"] = json!(group);
        conf
    };
    // The first one there: nobody is in the group of the rules yet.
    let db = host.add("db", &in_group("db"));
    let (web, other) = (host.add("web", &in_group("web")), host.add("other", &in_group("else")));
    db.ns.serve_tcp("0.0.0.0:80");
    db.ns.serve_tcp("0.0.0.0:81");
    let target = format!("{}:80", db.ip());
    assert!(web.ns.reaches(&target));
    assert!(web.ns.blocked(&format!("{}:81", db.ip())));
    assert!(other.ns.blocked(&target));
    // The next user of an address is not in its predecessor's group.
    let ip = web.ip();
    host.del(&web, &in_group("web"));
    let mut same_ip = in_group("else");
    same_ip["runtimeConfig"] = json!({"ips": [ip]});
    let heir = host.add("heir", &same_ip);
    assert_eq!(heir.ip(), ip);
    assert!(heir.ns.blocked(&target));
}

#[test]
fn published_ports_are_reached_from_everywhere() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    let conf = host.conf("pods", "10.1.0.0/24", json!({"ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}, "policy": {"egress": {"allow": ["10.1.0.0/24", "fd01::/64"]}}}));
    let mut published = conf.clone();
    published["runtimeConfig"] = json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80}, {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 9090, "containerPort": 80, "hostIP": "192.0.2.1"}]});
    let a = host.add("a", &published);
    let b = host.add("b", &conf);
    let other_net = host.conf("other", "10.2.0.0/24", policy(json!({"allow": ["10.1.0.0/24"]}), json!({})));
    let c = host.add("c", &other_net);
    a.ns.serve_tcp("[::]:80");
    a.ns.serve_tcp("0.0.0.0:81");
    a.ns.serve_udp("0.0.0.0:53");
    assert!(outside.reaches("192.0.2.1:8080"), "from outside");
    assert!(outside.reaches("[2001:db8::1]:8080"), "from outside by IPv6");
    assert_eq!(
        outside.ask_udp("192.0.2.1:5353", PATIENCE).unwrap().to_string(),
        "192.0.2.2",
        "with the true source"
    );
    assert!(host.ns.reaches("192.0.2.1:8080"), "from the host");
    assert!(host.ns.reaches("127.0.0.1:8080"), "from the host by loopback");
    assert!(b.ns.reaches("192.0.2.1:8080"), "from a neighbour");
    assert!(b.ns.reaches("10.1.0.1:8080"), "from a neighbour by the gateway");
    assert!(a.ns.reaches("192.0.2.1:8080"), "from itself");
    assert!(c.ns.reaches("10.2.0.1:8080"), "from another network, which may not reach it otherwise");
    assert!(c.ns.blocked(&format!("{}:80", a.ip())));
    assert!(outside.reaches("192.0.2.1:9090"), "bound to one address");
    assert!(host.ns.blocked("127.0.0.1:9090"), "and to no other");
    outside.ip("route add 10.1.0.0/24 via 192.0.2.1");
    assert!(outside.blocked(&format!("{}:81", a.ip())), "published is the one port only");
    assert!(outside.blocked(&format!("{}:80", a.ip())), "and only by the map");
    let taken = host.call("ADD", "d", "eth0", &Ns::new().path(), &published).unwrap_err();
    assert!(taken["msg"].as_str().unwrap().contains("already mapped to container `a`"), "{taken}");
    let mut never = conf.clone();
    never["runtimeConfig"] =
        json!({"portMappings": [{"hostPort": 7070, "containerPort": 80, "hostIP": "::1"}]});
    let refused = host.call("ADD", "d", "eth0", &Ns::new().path(), &never).unwrap_err();
    assert_eq!(refused["code"], 105, "{refused}");
    host.del(&a, &published);
    assert!(outside.blocked("192.0.2.1:8080"));
    // The port is free for the next.
    let d = host.add("d", &published);
    d.ns.serve_tcp("0.0.0.0:80");
    assert!(outside.reaches("192.0.2.1:8080"));
}

#[test]
fn a_udp_flow_from_before_a_port_was_published_does_not_hide_it() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    let conf = host.conf("pods", "10.1.0.0/24", json!({"runtimeConfig": {"portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]}}));
    // Conntrack must be on for the host to remember the flow.
    let _first = host.add("x", &host.conf("track", "10.3.0.0/24", json!({})));
    let socket = outside.run(|| std::net::UdpSocket::bind("192.0.2.2:4000").unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"?", "192.0.2.1:5353").unwrap();
    let a = host.add("a", &conf);
    a.ns.serve_udp("0.0.0.0:53");
    socket.send_to(b"?", "192.0.2.1:5353").unwrap();
    let mut buffer = [0; 64];
    // The first answer may be the host's refusal of the first question.
    let answered = (0..2).any(|_| socket.recv(&mut buffer).is_ok_and(|n| &buffer[..n] == b"192.0.2.2"));
    assert!(answered);
}

#[test]
fn a_changed_policy_ends_live_flows_and_spares_the_others() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    outside.ip("addr add 192.0.2.9/24 dev out1");
    outside.serve_tcp("0.0.0.0:80");
    let conf = host.conf(
        "pods",
        "10.1.0.0/24",
        json!({"ipMasq": true, "policy": {"ingress": {"allow": [{"cidr": "10.1.0.0/24"}]}}}),
    );
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
fn the_next_user_of_an_address_inherits_no_flow() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
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
    outside.ip("addr add 192.0.2.9/24 dev out1");
    outside.ip("route add 10.1.0.0/24 via 192.0.2.1");
    outside.serve_tcp("0.0.0.0:80");
    let conf = host.conf("pods", "10.1.0.0/24", policy(json!({}), json!({"allow": ["any"]})));
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
    host.del(&a, &conf);
    assert_eq!(tracked(&of_a), 0);
    assert!(tracked(&of_b) > MANY);
    assert!(echoes(&mut others));
    host.del(&b, &conf);
    assert_eq!(tracked(&of_b), 0);
}

#[test]
fn flushing_the_ruleset_loses_nothing_for_long() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf(
        "pods",
        "10.1.0.0/24",
        policy(
            json!({"allow": [{"cidr": "10.1.0.0/24", "protocol": "tcp", "ports": [80]}]}),
            json!({"allow": ["any"]}),
        ),
    );
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.ns.serve_tcp("0.0.0.0:80");
    b.ns.serve_tcp("0.0.0.0:81");
    host.ns.nft("flush ruleset");
    let store = Store::new(host.data_dir());
    let restore =
        || host.ns.run(|| plugin::restore(&skep_cni::datapath::Host::new().unwrap(), &store).unwrap());
    assert!(restore(), "there was something to restore");
    assert!(!restore(), "and then nothing");
    host.check(&a, &conf).unwrap();
    host.check(&b, &conf).unwrap();
    assert!(a.ns.reaches(&format!("{}:80", b.ip())));
    assert!(a.ns.blocked(&format!("{}:81", b.ip())));
    // An ADD restores as well.
    host.ns.nft("delete table inet skep");
    let c = host.add("c", &conf);
    assert!(c.ns.reaches(&format!("{}:80", b.ip())));
    host.check(&a, &conf).unwrap();
}

#[test]
fn the_host_comes_in_where_the_network_says_so() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/24", json!({"policy": {"hostIngress": true}}));
    let a = host.add("a", &conf);
    a.ns.serve_tcp("0.0.0.0:80");
    assert!(host.ns.reaches(&format!("{}:80", a.ip())));
    let mut closed = conf.clone();
    closed["policy"]["hostIngress"] = json!(false);
    let mut live = host.ns.connect(&format!("{}:80", a.ip()), PATIENCE).unwrap();
    assert!(echoes(&mut live));
    // The network's policy is changed by the next ADD that has another: live sandboxes follow.
    let _b = host.add("b", &closed);
    assert!(host.ns.blocked(&format!("{}:80", a.ip())));
    live.set_read_timeout(Some(SILENCE)).unwrap();
    assert!(!echoes(&mut live));
}

#[test]
fn what_was_carried_and_refused_is_counted() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf(
        "pods",
        "10.1.0.0/24",
        policy(
            json!({"allow": [{"cidr": "10.1.0.0/24", "protocol": "tcp", "ports": [80]}]}),
            json!({"allow": [{"protocol": "tcp", "ports": [80]}]}),
        ),
    );
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.ns.serve_tcp("0.0.0.0:80");
    assert!(a.ns.reaches(&format!("{}:80", b.ip())));
    assert!(a.ns.blocked(&format!("{}:81", b.ip())));
    let store = Store::new(host.data_dir());
    let status = host.ns.run(|| plugin::status(&skep_cni::datapath::Host::new().unwrap(), &store).unwrap());
    let of =
        |id: &str| status.networks[0].attachments.iter().find(|one| one.container_id == id).unwrap().clone();
    assert!(of("a").problems.is_empty(), "{:?}", of("a").problems);
    assert!(of("a").counters.denied_out_packets > 0);
    assert_eq!(of("b").counters.denied_out_packets, 0);
    assert!(of("b").counters.received_bytes > 0 && of("b").counters.sent_bytes > 0);
}

#[test]
fn bandwidth_is_limited_both_ways() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    let mut conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let free = host.add("free", &conf);
    conf["runtimeConfig"] = json!({"bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 100_000, "egressRate": 1_000_000, "egressBurst": 100_000}});
    let limited = host.add("limited", &conf);
    host.check(&limited, &conf).unwrap();
    assert!(free.ns.ask_udp(&format!("{}:1", limited.ip()), SILENCE).is_none());
    let burst = |from: &Container, to: &Container| {
        let target = to.ns.run(|| std::net::UdpSocket::bind("0.0.0.0:5000").unwrap());
        target.set_read_timeout(Some(SILENCE)).unwrap();
        let source = from.ns.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        // 2 MB at once, where a second's worth is an eighth of one. In rounds, so that nothing else overflows.
        let mut arrived = 0;
        for _ in 0..40 {
            for _ in 0..50 {
                let _ = source.send_to(&[0; 1000], format!("{}:5000", to.ip()));
            }
            target.set_nonblocking(true).unwrap();
            while target.recv(&mut [0; 1500]).is_ok() {
                arrived += 1;
            }
        }
        arrived
    };
    let other = host.add("other", &host.conf("pods", "10.1.0.0/24", open_policy()));
    assert!(burst(&free, &other) > 1500, "without a limit nearly all arrives");
    assert!(burst(&free, &limited) < 1000, "towards the sandbox");
    assert!(burst(&limited, &free) < 1000, "from the sandbox");
    for container in [&free, &limited, &other] {
        host.del(container, &conf);
    }
    assert_eq!(host.ns.census(), before);
}

#[test]
fn the_watcher_puts_rules_back_at_once() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let a = host.add("a", &conf);
    let mut watcher = host.ns.run(|| {
        std::process::Command::new(env!("CARGO_BIN_EXE_skep-cni"))
            .args(["watch", "--data-dir"])
            .arg(host.data_dir())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    });
    // It looks once when it starts: only what comes after shows that it hears.
    let whole = |wanted: bool| {
        (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            host.check(&a, &conf).is_ok() == wanted
        })
    };
    for _ in 0..3 {
        host.ns.nft("flush ruleset");
        assert!(whole(true), "not put back within five seconds");
    }
    watcher.kill().unwrap();
    watcher.wait().unwrap();
}

#[test]
fn a_network_card_on_the_bridge_brings_the_network_outside() {
    needs_root!();
    let host = Host::new();
    let outside = Ns::new();
    host.ns.wire("nic0", &outside, "far0");
    outside.ip("addr add 203.0.113.1/24 dev far0");
    outside.serve_tcp("0.0.0.0:80");
    host.ns.settle_link("nic0");
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
    assert_eq!(host.ns.census(), before, "the card is the host's again");
    // A card with addresses is the host's own line.
    host.ns.ip("addr add 203.0.113.2/24 dev nic0");
    conf["ipam"]["rangeStart"] = json!("203.0.113.20");
    let error = host.call("ADD", "b", "eth0", &Ns::new().path(), &conf).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("nic0 has the host's address"), "{error}");
}

#[test]
fn routers_are_heard_behind_the_card_and_nowhere_else() {
    const IPV6: u16 = 0x86dd;
    needs_root!();
    let everybody: Ipv6Addr = "ff02::1".parse().unwrap();
    let router: Ipv6Addr = "fe80::1".parse().unwrap();
    // A lifetime of half an hour, and a prefix (RFC 4861) to make addresses of.
    let advertisement = |from: Ipv6Addr, mac: [u8; 6]| {
        let prefix: Ipv6Addr = "2001:db8:6::".parse().unwrap();
        let head = [64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        let information = [&[3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0][..], &prefix.octets()];
        let message = icmpv6(from, everybody, 134, &[&head[..], &information.concat()].concat());
        (ethernet(group_mac(everybody), mac, IPV6, &ipv6(from, everybody, 58, &message)), message)
    };
    for heard in [true, false] {
        let host = Host::new();
        let outside = Ns::new();
        host.ns.wire("nic0", &outside, "far0");
        host.ns.settle_link("nic0");
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
        let (frame, message) = advertisement(router, [2, 0, 0, 0, 0, 0xfe]);
        line.send(&frame);
        assert_eq!(ear.sees(&message, if heard { PATIENCE } else { SILENCE }), heard);
        let learned = || b.ns.ip("-6 route show default");
        if heard {
            // The kernel gets round to it after the frame was seen.
            for _ in 0..500 {
                if learned().contains("via fe80::1") {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        assert_eq!(learned().contains("via fe80::1"), heard, "{}", learned());
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
            from.send(&ethernet(group_mac(everybody), a.mac(), IPV6, &ipv6(own, everybody, 44, &part)));
        }
        assert!(!ear.sees(&message, SILENCE) && !line.sees(&message, SILENCE));
        assert!(!learned().contains(&own.to_string()), "{}", learned());
    }
}

#[test]
fn a_policy_kept_open_follows_what_other_calls_do() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/24", policy(json!({}), json!({"allow": ["any"]})));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.ns.serve_tcp("0.0.0.0:80");
    let target = format!("{}:80", b.ip());
    let store = skep_cni::network::Store::new(host.data_dir());
    let lists = |text: Value| serde_json::from_value::<skep_cni::policy::Policy>(text).unwrap();
    let open = || lists(json!({"egress": {"allow": ["any"]}}));
    host.ns.run(|| {
        let datapath = skep_cni::datapath::Host::new().unwrap();
        let mut live = plugin::LivePolicy::open(&datapath, &store, "pods", "a", "eth0").unwrap();
        assert!(a.ns.blocked(&target));
        live.replace(open()).unwrap();
        assert!(a.ns.reaches(&target));
        live.replace(lists(json!({"egress": {"allow": ["any"], "deny": [b.ip()]}}))).unwrap();
        assert!(a.ns.blocked(&target));
        // Another process's change, then one of ours.
        set_policy(&host, "a", &json!({"egress": {"allow": ["any"]}}));
        assert!(a.ns.reaches(&target));
        live.replace(lists(json!({}))).unwrap();
        assert!(a.ns.blocked(&target));
        // The network's policy changes by an ADD, and the tables go: both are seen.
        let mut closed = conf.clone();
        closed["policy"]["ingress"] = json!({});
        let c = host.add("c", &closed);
        host.ns.nft("flush ruleset");
        live.replace(open()).unwrap();
        assert!(a.ns.blocked(&target));
        host.check(&a, &closed).unwrap();
        let d = host.add("d", &conf);
        assert!(a.ns.reaches(&target));
        // It ends with its sandbox, whoever has the name next.
        host.del(&a, &conf);
        let error = live.replace(open()).unwrap_err();
        assert!(matches!(error, skep_cni::cni::CniError::NotAttached { .. }), "{error}");
        let again = host.add("a", &conf);
        assert!(again.ns.blocked(&target), "the next of this name inherits no policy");
        live.replace(open()).unwrap_err();
        for container in [&again, &b, &c, &d] {
            host.del(container, &conf);
        }
    });
    assert_eq!(host.files(), Vec::<String>::new());
}

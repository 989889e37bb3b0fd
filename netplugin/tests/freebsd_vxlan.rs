//! Networks that VXLAN stretches, on FreeBSD: peers played by hand, and a kernel's plain link. Takes root, pf and netgraph.
#![cfg(target_os = "freebsd")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod jails;

use jails::frames::{arp_answer, udp4};
use jails::{Host, Jail, Node, alone, merge, outside, policy, sh};
use serde_json::{Value, json};

/// A frame in VXLAN (RFC 7348).
fn wrapped(vni: u32, frame: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = vni.to_be_bytes();
    [&[8, 0, 0, 0, high, middle, low, 0][..], frame].concat()
}

/// The kernel makes VXLAN links on the machine's own stack only, so the other nodes are played by hand.
#[test]
fn a_network_is_stretched_to_its_peers_and_to_nobody_else() {
    let _turn = alone();
    let host = Host::new(None);
    let (peer, _wire) = outside();
    peer.sh("ifconfig lo0 alias 198.51.100.3/32; ifconfig lo0 alias 198.51.100.9/32");
    sh("route -q add 198.51.100.0/24 192.0.2.2 || true");
    let nodes = json!([{"name": "here", "address": "192.0.2.1", "id": 1}, {"name": "two", "address": "192.0.2.2", "id": 2},
        {"name": "three", "address": "198.51.100.3", "id": 3}]);
    let conf = |mode: &str| {
        host.conf(
            "vpc",
            "10.5.0.0/24",
            json!({"policy": {"egress": {"allow": ["any"]}, "ingress": {"allow": ["any"]}},
            "vxlan": {"vni": 100, "mode": mode, "nodes": nodes}}),
        )
    };
    // In mode `mesh` the pair of nodes 1 and 2 has the first identifier, 1 and 3 the second; `flood` has one.
    for (mode, second) in [("mesh", 101), ("flood", 100)] {
        stretched(&host, &peer, &conf(mode), second);
    }
    sh("route -q delete 198.51.100.0/24 || true");
}

/// Packets on a network of three nodes, of which one is here; the pair with the third has the identifier `second`.
fn stretched(host: &Host<'_>, peer: &Jail, conf: &Value, second: u32) {
    let a = host.add("a", conf);
    assert_eq!(a.result["interfaces"][2]["mtu"], 1450);
    host.check(&a, conf).unwrap_or_else(|error| panic!("{error}"));
    let (mac, far) = (a.mac(), [2, 7, 7, 7, 7, 7]);
    let hears = |source: &str, vni: u32| {
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                a.jail.ask(|| {
                    let socket = std::net::UdpSocket::bind("0.0.0.0:7000").unwrap();
                    socket.set_read_timeout(Some(2 * jails::SILENCE)).unwrap();
                    socket.recv(&mut [0; 8]).is_ok()
                })
            });
            std::thread::sleep(std::time::Duration::from_millis(700));
            peer.ask(|| {
                let socket = std::net::UdpSocket::bind((source, 4000)).unwrap();
                let frame = udp4(far, mac, "10.5.0.77", &a.ip(), 7000);
                socket.send_to(&wrapped(vni, &frame), "192.0.2.1:4789").is_ok()
            });
            waiting.join().unwrap()
        })
    };
    assert!(hears("192.0.2.2", 100), "from a peer");
    assert!(hears("198.51.100.3", second), "from another peer");
    assert!(!hears("198.51.100.9", 100), "from somebody who is none");
    // What the sandbox asks all goes to each peer once; what a peer asks all goes to no other.
    let counted = |at: &str, vni: u32, act: &dyn Fn()| {
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                peer.ask(|| {
                    let socket = std::net::UdpSocket::bind((at, 4789)).unwrap();
                    socket.set_read_timeout(Some(2 * jails::SILENCE)).unwrap();
                    let mut buffer = [0; 2048];
                    let wanted = wrapped(vni, &[0xff; 6]);
                    matches!(socket.recv(&mut buffer), Ok(n) if n > 14 && buffer[..14] == wanted[..])
                })
            });
            std::thread::sleep(std::time::Duration::from_millis(700));
            act();
            waiting.join().unwrap()
        })
    };
    let ask_all = || {
        a.jail.ask(|| {
            std::net::UdpSocket::bind("0.0.0.0:0")
                .is_ok_and(|socket| socket.send_to(b"?", "10.5.0.99:9").is_ok())
        });
    };
    assert!(counted("192.0.2.2", 100, &ask_all), "an ARP question, to one peer");
    a.jail.sh("arp -d 10.5.0.99 >/dev/null 2>&1 || true");
    assert!(counted("198.51.100.3", second, &ask_all), "and to the other");
    let loops = counted("198.51.100.3", second, &|| {
        peer.ask(|| {
            let socket = std::net::UdpSocket::bind("192.0.2.2:4001").unwrap();
            let frame = arp_answer(far, far, "10.5.0.77", [0xff; 6], "10.5.0.88");
            socket.send_to(&wrapped(100, &frame), "192.0.2.1:4789").is_ok()
        });
    });
    assert!(!loops, "what came by one link leaves by no other");
    host.del(&a, conf);
    assert!(!sh("ifconfig -l").contains("sk"));
}

/// Two ends of the kernel's own, with an underlay of either family: whole packets, both ways, and neighbours who ask.
#[test]
fn sandboxes_and_another_nodes_kernel_talk_across_vxlan() {
    let _turn = alone();
    let host = Host::new(None);
    for (here, there, mtu) in [("192.0.2.1", "192.0.2.2", 1450), ("2001:db8:5::1", "2001:db8:5::2", 1430)] {
        let far = Node::new(here, there);
        let nodes = json!([{"name": "here", "address": here}, {"name": "there", "address": there}]);
        let mut conf = host.conf("vpc", "10.5.0.0/24", json!({"vxlan": {"vni": 100, "nodes": nodes}}));
        merge(
            &mut conf,
            policy(
                json!({"allow": ["10.5.0.0/24"]}),
                json!({"allow": [{"cidr": "10.5.0.0/24", "protocol": "tcp", "ports": [80]}]}),
            ),
        );
        let a = host.add("a", &conf);
        far.link(100, "10.5.0.77/24");
        assert_eq!(a.result["interfaces"][2]["mtu"], mtu);
        assert!(far.jail.sh("ifconfig far").contains(&format!("mtu {mtu}")), "the kernel thinks alike");
        far.jail.serve_tcp("0.0.0.0:80");
        for port in [80, 81] {
            a.jail.serve_tcp(&format!("0.0.0.0:{port}"));
        }
        assert!(a.jail.reaches("10.5.0.77:80"), "{there}: out");
        assert!(far.jail.reaches(&format!("{}:80", a.ip())), "{there}: in");
        assert!(far.jail.blocked(&format!("{}:81", a.ip())), "{there}: what the list does not have");
        // The biggest packets pass whole.
        let big = mtu - 28;
        a.jail.sh(&format!("ping -q -c 1 -t 10 -D -s {big} 10.5.0.77"));
        assert!(
            a.jail
                .sh(&format!("ping -q -c 1 -t 3 -D -s {} 10.5.0.77 2>&1 || true", big + 1))
                .contains("too long")
        );
        // False answers about the other node's neighbour do not cross.
        let false_mac = [2, 9, 9, 9, 9, 9];
        a.jail.inject(
            "eth0",
            &[
                arp_answer(a.mac(), false_mac, "10.5.0.1", [0xff; 6], "10.5.0.77"),
                arp_answer(false_mac, false_mac, "10.5.0.1", [0xff; 6], "10.5.0.77"),
            ],
        );
        assert!(a.jail.reaches("10.5.0.77:80"));
        assert!(!far.jail.sh("arp -an").contains("02:09:09"));
        host.del(&a, &conf);
        drop(far);
        assert!(!sh("ifconfig -l").contains("skx"));
    }
}

/// Members of a declared group are known by their addresses, whichever node they are on.
#[test]
fn rules_about_a_group_are_true_of_another_nodes_members() {
    let _turn = alone();
    let host = Host::new(None);
    let far = Node::new("192.0.2.1", "192.0.2.2");
    let nodes = json!([{"name": "here", "address": "192.0.2.1"}, {"name": "there", "address": "192.0.2.2"}]);
    let range =
        |start: &str, end: &str| json!([[{"subnet": "10.5.0.0/16", "rangeStart": start, "rangeEnd": end}]]);
    let mut conf = host.conf("vpc", "10.5.0.0/16", json!({"vxlan": {"vni": 100, "nodes": nodes}}));
    conf["ipam"] = json!({"type": "skep", "ranges": range("10.5.1.0", "10.5.1.9"),
        "groups": {"web": range("10.5.16.0", "10.5.16.9"), "db": range("10.5.32.0", "10.5.32.9")}});
    merge(
        &mut conf,
        policy(
            json!({"allow": [{"group": "web"}, {"group": "db"}]}),
            json!({"allow": [{"group": "web", "protocol": "tcp", "ports": [80]}]}),
        ),
    );
    conf["policy"]["groups"] = json!({"web": ["10.5.16.0/20"], "db": ["10.5.32.0/20"]});
    conf["policy"]["group"] = json!("db");
    let db = host.add("db", &conf);
    assert_eq!(db.ip(), "10.5.32.0");
    let mut web = conf.clone();
    web["policy"]["group"] = json!("web");
    let near = host.add("near", &web);
    for (jail, port) in [(&db.jail, 80), (&db.jail, 81), (&near.jail, 80), (&far.jail, 80)] {
        jail.serve_tcp(&format!("0.0.0.0:{port}"));
    }
    let at = |port: u16| format!("{}:{port}", db.ip());
    assert!(near.jail.reaches(&at(80)));
    far.link(100, "10.5.16.77/16");
    let mut live = far.jail.hold(&at(80));
    assert!(live.alive(), "a member there");
    assert!(far.jail.blocked(&at(81)), "what the list does not have");
    assert!(db.jail.reaches("10.5.16.77:80"), "to a member there");
    let deny = json!({"ingress": {"deny": [{"group": "web"}]}}).to_string();
    let (ok, told) = host.administer(&["policy", "vpc", "db"], &deny);
    assert!(ok, "{told}");
    assert!(live.dead(), "its flow ends");
    for jail in [&near.jail, &far.jail] {
        assert!(jail.blocked(&at(80)));
    }
    let (ok, told) = host.administer(&["policy", "vpc", "db"], "{}");
    assert!(ok, "{told}");
    assert!(far.jail.reaches(&at(80)));
    let strange = json!({"ingress": {"deny": [{"group": "cache"}]}}).to_string();
    let (ok, told) = host.administer(&["policy", "vpc", "db"], &strange);
    assert!(!ok && told.contains("group `cache` is not declared"), "{told}");
    // The same node with an address of no group.
    far.jail.sh("ifconfig far inet 10.5.0.77/16");
    assert!(far.jail.blocked(&at(80)), "no member");
    assert!(db.jail.blocked("10.5.0.77:80"), "to no member");
    host.check(&db, &conf).unwrap_or_else(|error| panic!("{error}"));
    for one in [&db, &near] {
        host.del(one, &conf);
    }
    drop(far);
    assert!(!sh("ifconfig -l").contains("skx"));
}

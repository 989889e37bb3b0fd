//! Who is listened to across nodes.

use std::net::{Ipv4Addr, UdpSocket};

use crate::cluster::Cluster;
use crate::support::frames::{BROADCAST, Tap, arp, ethernet, ipv4, udp};
use crate::support::{Ns, PATIENCE, SILENCE};
use crate::{ARP, IPV4};
use serde_json::json;

#[test]
fn strangers_are_not_listened_to() {
    needs_root!();
    let cluster = Cluster::new(2, "flood", false, 1500);
    let containers = cluster.populate();
    let stranger = Ns::new();
    cluster.plug(&stranger, 7, 1500);
    let at = Tap::open(&containers[0].ns, "eth0");
    let question = arp(
        1,
        ([2, 6, 6, 6, 6, 6], Ipv4Addr::new(10, 1, 7, 7)),
        ([0; 6], containers[0].ip().parse().unwrap()),
    );
    let frame = ethernet(BROADCAST, [2, 6, 6, 6, 6, 6], ARP, &question);
    let send = |ns: &Ns, from: &str, vni: u32| {
        let socket = ns.run(|| UdpSocket::bind(format!("{from}:0")).unwrap());
        let header = [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), &frame].concat();
        socket.send_to(&header, format!("{}:4789", Cluster::v4(0))).unwrap();
    };
    send(&stranger, &Cluster::v4(7), 100);
    assert!(!at.sees(&question, SILENCE), "a stranger on the wire");
    // The same from a peer arrives, so the frame itself is good.
    send(&cluster.hosts[1].ns, &Cluster::v4(1), 100);
    assert!(at.sees(&question, PATIENCE), "a peer");
    send(&cluster.hosts[1].ns, &Cluster::v4(1), 101);
    assert!(!at.sees(&question, SILENCE), "another network's identifier");
}

#[test]
fn the_gateway_is_on_every_node_and_its_name_stays_there() {
    needs_root!();
    let cluster = Cluster::new(2, "flood", false, 1500);
    let mut containers = Vec::new();
    for n in 0..2 {
        let mut conf = cluster.conf(n, &cluster.all());
        conf["policy"]["hostServices"] = json!([{"protocol": "tcp", "port": 7000}]);
        containers.push(cluster.hosts[n].add(&format!("c{n}"), &conf));
        cluster.hosts[n].ns.serve_tcp("10.1.0.1:7000");
    }
    let wire = Tap::open(&cluster.hosts[1].ns, "u0");
    let source: Ipv4Addr = containers[0].ip().parse().unwrap();
    let question = arp(1, (containers[0].mac(), source), ([0; 6], Ipv4Addr::new(10, 1, 0, 1)));
    let from = Tap::open(&containers[0].ns, "eth0");
    from.send(&ethernet(BROADCAST, containers[0].mac(), ARP, &question));
    assert!(!wire.sees(&question, SILENCE));
    for container in &containers {
        assert!(container.ns.reaches("10.1.0.1:7000"));
    }
    // A node gone bad claims the gateway, and a sandbox's Ethernet address of another node.
    let link = cluster.hosts[1].ns.ip("-br link show type vxlan");
    let bad = Tap::open(&cluster.hosts[1].ns, link.split(['@', ' ']).next().unwrap());
    let at = Tap::open(&containers[0].ns, "eth0");
    let claim = arp(2, ([2, 6, 6, 6, 6, 6], Ipv4Addr::new(10, 1, 0, 1)), (containers[0].mac(), source));
    bad.send(&ethernet(containers[0].mac(), [2, 6, 6, 6, 6, 6], ARP, &claim));
    assert!(!at.sees(&claim, SILENCE));
    let steal = ipv4(Ipv4Addr::new(10, 1, 9, 9), source, 17, &udp(1, 2, b"<<steal>>"));
    bad.send(&ethernet(containers[0].mac(), containers[0].mac(), IPV4, &steal));
    assert!(!at.sees(b"<<steal>>", SILENCE));
    containers[0].ns.serve_tcp("0.0.0.0:80");
    assert!(containers[1].ns.reaches(&format!("{}:80", containers[0].ip())));
}

#[test]
fn the_receivers_policy_holds_across_nodes() {
    needs_root!();
    let cluster = Cluster::new(2, "flood", false, 1500);
    let a = cluster.hosts[0].add("a", &cluster.conf(0, &[0, 1]));
    let mut strict = cluster.conf(1, &[0, 1]);
    strict["policy"]["ingress"] =
        json!({"allow": [{"cidr": "10.1.0.0/16", "protocol": "tcp", "ports": [80]}]});
    let b = cluster.hosts[1].add("b", &strict);
    b.ns.serve_tcp("0.0.0.0:80");
    b.ns.serve_tcp("0.0.0.0:81");
    assert!(a.ns.reaches(&format!("{}:80", b.ip())));
    assert!(a.ns.blocked(&format!("{}:81", b.ip())));
}

//! Frames between nodes: who reaches whom, how large, how often.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, everybody_reaches_everybody, mtu_of};
use crate::support::frames::{BROADCAST, Tap, arp, contains, ethernet};
use crate::support::{PATIENCE, SILENCE};
use crate::{ARP, IPV4};
use serde_json::{Value, json};

#[test]
fn three_nodes_flood_over_ipv4() {
    needs_root!();
    let cluster = Cluster::new(3, "flood", false, 1500);
    let before: Vec<_> = cluster.hosts.iter().map(|host| host.ns.census()).collect();
    let containers = cluster.populate();
    assert_eq!(mtu_of(&containers[0]), 1450);
    everybody_reaches_everybody(&containers);
    cluster.teardown(&containers);
    for (host, before) in cluster.hosts.iter().zip(before) {
        assert_eq!(host.ns.census(), before);
        assert_eq!(host.files(), Vec::<String>::new());
    }
}

#[test]
fn ten_nodes_mesh_over_ipv6_with_loss() {
    needs_root!();
    let cluster = Cluster::new(10, "mesh", true, 1500);
    let before: Vec<_> = cluster.hosts.iter().map(|host| host.ns.census()).collect();
    let containers = cluster.populate();
    assert_eq!(mtu_of(&containers[0]), 1430);
    // One frame in fifty is lost on the wire.
    cluster.switch.nft("table bridge loss {\n chain forward { type filter hook forward priority 0; numgen random mod 50 == 0 counter drop; }\n}");
    everybody_reaches_everybody(&containers);
    cluster.switch.nft("delete table bridge loss");
    cluster.teardown(&containers);
    for (host, before) in cluster.hosts.iter().zip(before) {
        assert_eq!(host.ns.census(), before);
    }
}

#[test]
fn nodes_of_both_families_meet() {
    needs_root!();
    let cluster = Cluster::new(3, "flood", false, 1500);
    let mut containers = Vec::new();
    let nodes = json!([
        {"name": "n0", "address": Cluster::v4(0), "alternate": Cluster::v6(0)},
        {"name": "n1", "address": Cluster::v4(1), "alternate": Cluster::v6(1)},
        {"name": "n2", "address": Cluster::v6(2)},
    ]);
    for n in 0..3 {
        let mut conf = cluster.conf(n, &cluster.all());
        conf["vxlan"]["nodes"] = nodes.clone();
        containers.push(cluster.hosts[n].add(&format!("c{n}"), &conf));
    }
    assert_eq!(mtu_of(&containers[0]), 1430);
    everybody_reaches_everybody(&containers);
}

#[test]
fn full_packets_pass_and_nothing_is_fragmented() {
    needs_root!();
    for (ipv6, mtu, inner) in [(false, 1500, 1450), (true, 1500, 1430), (false, 9000, 8950)] {
        let cluster = Cluster::new(2, "flood", ipv6, mtu);
        let containers = cluster.populate();
        assert_eq!(mtu_of(&containers[0]), inner);
        let wire = Tap::open(&cluster.hosts[1].ns, "u0");
        let target = containers[1].ns.run(|| UdpSocket::bind("0.0.0.0:5000").unwrap());
        target.set_read_timeout(Some(PATIENCE)).unwrap();
        let source = containers[0].ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        let payload = vec![b'm'; usize::try_from(inner).unwrap() - 28];
        source.send_to(&payload, format!("{}:5000", containers[1].ip())).unwrap();
        let mut buffer = vec![0; 9000];
        assert_eq!(target.recv(&mut buffer).unwrap(), payload.len());
        let mut seen = 0;
        while let Some(frame) = wire.receive(Duration::from_millis(50)) {
            if contains(&frame, b"mmmmmmmm") {
                seen += 1;
                let fragment = match u16::from_be_bytes([frame[12], frame[13]]) {
                    IPV4 => u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff != 0,
                    _ => frame[20] == 44,
                };
                assert!(!fragment);
            }
        }
        assert_eq!(seen, 1, "one packet, one frame");
    }
}

#[test]
fn a_broadcast_is_sent_once_to_each_peer_and_never_comes_back() {
    needs_root!();
    for mode in ["flood", "mesh"] {
        let cluster = Cluster::new(4, mode, false, 1500);
        let containers = cluster.populate();
        let wires: Vec<Tap> = cluster.hosts.iter().map(|host| Tap::open(&host.ns, "u0")).collect();
        let from = Tap::open(&containers[0].ns, "eth0");
        let question = arp(
            1,
            (containers[0].mac(), containers[0].ip().parse().unwrap()),
            ([0; 6], Ipv4Addr::new(10, 1, 99, 99)),
        );
        from.send(&ethernet(BROADCAST, containers[0].mac(), ARP, &question));
        for wire in &wires[1..] {
            assert!(wire.sees(&question, PATIENCE), "{mode}: sent to each");
        }
        for wire in &wires {
            assert!(!wire.sees(&question, SILENCE), "{mode}: sent twice, or back");
        }
        // Nobody but the one asked for gets a question, wherever he is.
        let at = Tap::open(&containers[1].ns, "eth0");
        from.send(&ethernet(BROADCAST, containers[0].mac(), ARP, &question));
        assert!(!at.sees(&question, SILENCE));
    }
}

#[test]
fn ten_nodes_of_both_families_with_latency_and_loss() {
    needs_root!();
    let delay = Duration::from_millis(10);
    let cluster = Cluster::far_apart(10, "flood", delay, 40);
    let before: Vec<_> = cluster.hosts.iter().map(|host| host.ns.census()).collect();
    // Two nodes need a family in common: three have both, the others IPv6.
    let nodes: Vec<Value> = (0..10)
        .map(|n| match n {
            0..3 => json!({"name": format!("n{n}"), "address": Cluster::v4(n), "alternate": Cluster::v6(n)}),
            _ => json!({"name": format!("n{n}"), "address": Cluster::v6(n)}),
        })
        .collect();
    let conf = |n: usize| {
        let mut conf = cluster.conf(n, &cluster.all());
        conf["vxlan"]["nodes"] = json!(nodes);
        conf
    };
    let containers: Vec<_> =
        cluster.all().into_iter().map(|n| cluster.hosts[n].add(&format!("c{n}"), &conf(n))).collect();
    assert_eq!(mtu_of(&containers[0]), 1430);
    for (from, to) in [(0, 1), (0, 9), (9, 4)] {
        containers[to].ns.serve_udp("0.0.0.0:53");
        let at = format!("{}:53", containers[to].ip());
        assert!(containers[from].ns.ask_udp(&at, PATIENCE).is_some());
        let start = Instant::now();
        assert!(containers[from].ns.ask_udp(&at, PATIENCE).is_some());
        assert!(start.elapsed() >= 4 * delay, "it went around the wire");
    }
    everybody_reaches_everybody(&containers);
    for (n, container) in containers.iter().enumerate() {
        cluster.hosts[n].del(container, &conf(n));
        assert_eq!(cluster.hosts[n].ns.census(), before[n]);
    }
}

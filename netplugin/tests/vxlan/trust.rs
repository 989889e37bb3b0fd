//! Who is listened to across nodes.

use std::net::{Ipv4Addr, UdpSocket};

use crate::cluster::Cluster;
use crate::support::frames::{BROADCAST, Tap, arp, ethernet, ipv4, udp};
use crate::support::{Ns, PATIENCE, SILENCE};
use crate::{ARP, IPV4};
use serde_json::{Value, json};
use skep_cni::network::Store;
use skep_cni::plugin;

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

#[test]
fn a_group_is_its_members_on_each_host() {
    needs_root!();
    let cluster = Cluster::new(2, "flood", false, 1500);
    let conf = |n: usize, policy: Value| {
        let mut conf = cluster.conf(n, &[0, 1]);
        conf["policy"] = policy;
        conf
    };
    let web = json!({"egress": {"allow": ["any"]}, "group": "web"});
    let near = cluster.hosts[0].add("near", &conf(0, web.clone()));
    let far = cluster.hosts[1].add("far", &conf(1, web));
    let server = conf(0, json!({"ingress": {"allow": [{"group": "web"}]}}));
    let b = cluster.hosts[0].add("b", &server);
    b.ns.serve_tcp("0.0.0.0:80");
    // The network's policy is that of the last ADD.
    let mut open = conf(0, json!({"egress": {"allow": ["any"]}, "ingress": {"allow": [{"group": "web"}]}}));
    let c = cluster.hosts[0].add("c", &open);
    assert!(near.ns.reaches(&format!("{}:80", b.ip())));
    assert!(far.ns.blocked(&format!("{}:80", b.ip())), "a member of another host's");
    assert!(c.ns.blocked(&format!("{}:80", b.ip())), "no member");
    // To deny one is refused wherever it is asked for: it would let the members of other hosts in.
    let deny = json!({"ingress": {"deny": [{"group": "web"}]}});
    let host = &cluster.hosts[0];
    let refused = |error: String| assert!(error.contains("denies group `web`"), "{error}");
    let end = Ns::new();
    refused(host.call("ADD", "d", "eth0", &end.path(), &conf(0, deny.clone())).unwrap_err().to_string());
    open["policy"]["annotations"] = json!(true);
    open["runtimeConfig"] =
        json!({"io.kubernetes.cri.pod-annotations": {"network.skep.org/policy": deny.to_string()}});
    refused(host.call("ADD", "d", "eth0", &end.path(), &open).unwrap_err().to_string());
    let store = Store::new(host.data_dir());
    let policy = serde_json::from_value(deny).unwrap();
    let changed = host.ns.run(|| {
        let datapath = skep_cni::datapath::Host::new().unwrap();
        plugin::set_policy(&datapath, &store, "vpc", "b", "eth0", policy)
    });
    refused(changed.unwrap_err().to_string());
}

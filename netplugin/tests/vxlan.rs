//! Networks stretched over several hosts.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod support;

use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_cni::cni::NetConf;
use skep_cni::network::Store;
use skep_cni::plugin;
use support::frames::{BROADCAST, Tap, arp, contains, ethernet, ipv4, slow_wire, udp};
use support::{Container, Flow, Host, Ns, PATIENCE, SILENCE, echoes, open_policy};

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;

/// Hosts on one wire.
struct Cluster {
    switch: Ns,
    hosts: Vec<Host>,
    mode: &'static str,
    ipv6: bool,
}

impl Cluster {
    fn new(count: usize, mode: &'static str, ipv6: bool, mtu: u32) -> Self {
        let switch = Ns::new();
        switch.ip("link add sw type bridge mcast_snooping 0");
        switch.ip("link set sw up");
        let hosts = (0..count).map(|_| Host::new()).collect();
        let cluster = Self { switch, hosts, mode, ipv6 };
        for (n, host) in cluster.hosts.iter().enumerate() {
            cluster.plug(&host.ns, n, mtu);
        }
        cluster
    }

    /// As far from each other as these: every frame takes `delay` to the switch and from it, every so many is lost.
    fn far_apart(count: usize, mode: &'static str, delay: Duration, lose_every: usize) -> Self {
        let mut cluster = Self::new(0, mode, false, 1500);
        for n in 0..count {
            let host = Host::new();
            let line = Ns::new();
            host.ns.wire("u0", &line, "near");
            line.wire("far", &cluster.switch, &format!("p{n}"));
            cluster.switch.ip(&format!("link set p{n} master sw"));
            slow_wire(&line, ["near", "far"], delay, lose_every);
            host.ns.ip(&format!("addr add {}/24 dev u0", Self::v4(n)));
            host.ns.ip(&format!("addr add {}/64 dev u0 nodad", Self::v6(n)));
            host.ns.settle(&Self::v6(n));
            cluster.hosts.push(host);
        }
        cluster
    }

    fn plug(&self, ns: &Ns, n: usize, mtu: u32) {
        ns.wire("u0", &self.switch, &format!("p{n}"));
        ns.ip(&format!("link set u0 mtu {mtu}"));
        self.switch.ip(&format!("link set p{n} mtu {mtu} master sw"));
        ns.ip(&format!("addr add {}/24 dev u0", Self::v4(n)));
        ns.ip(&format!("addr add {}/64 dev u0 nodad", Self::v6(n)));
        ns.settle(&Self::v6(n));
    }

    fn v4(n: usize) -> String {
        format!("198.51.100.{}", n + 1)
    }

    fn v6(n: usize) -> String {
        format!("2001:db8:1::{:x}", n + 1)
    }

    fn address(&self, n: usize) -> String {
        if self.ipv6 { Self::v6(n) } else { Self::v4(n) }
    }

    /// The configuration of a host when these nodes are declared. Each host gives out addresses of its own range.
    fn conf(&self, n: usize, nodes: &[usize]) -> Value {
        let nodes: Vec<Value> = nodes
            .iter()
            .map(|n| json!({"name": format!("n{n}"), "address": self.address(*n), "id": n + 1}))
            .collect();
        let mut vxlan = json!({"vni": 100, "mode": self.mode, "nodes": nodes});
        if self.mode == "mesh" {
            vxlan["peerNetwork"] = json!("172.16.0.0/20");
        }
        let ranges = json!([[{"subnet": "10.1.0.0/16", "rangeStart": format!("10.1.{}.10", n + 1), "rangeEnd": format!("10.1.{}.250", n + 1)}]]);
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "vpc", "type": "skep-cni", "dataDir": self.hosts.get(n).map(Host::data_dir),
            "ipam": {"type": "skep", "ranges": ranges}, "vxlan": vxlan,
        });
        support::merge(&mut conf, open_policy());
        conf
    }

    fn all(&self) -> Vec<usize> {
        (0..self.hosts.len()).collect()
    }

    fn populate(&self) -> Vec<Container> {
        self.all()
            .into_iter()
            .map(|n| self.hosts[n].add(&format!("c{n}"), &self.conf(n, &self.all())))
            .collect()
    }

    fn teardown(&self, containers: &[Container]) {
        for (n, container) in containers.iter().enumerate() {
            self.hosts[n].del(container, &self.conf(n, &self.all()));
        }
    }

    /// Brings a host into line with a declaration.
    fn up(&self, n: usize, nodes: &[usize]) {
        let conf = NetConf::parse(self.conf(n, nodes).to_string().as_bytes()).unwrap();
        let store = Store::new(self.hosts[n].data_dir());
        self.hosts[n].ns.run(|| {
            plugin::up(&skep_cni::datapath::Host::new().unwrap(), &store, &conf).unwrap();
        });
    }
}

fn everybody_reaches_everybody(containers: &[Container]) {
    for container in containers {
        container.ns.serve_tcp("0.0.0.0:80");
    }
    for from in containers {
        for to in containers {
            assert!(from.ns.reaches(&format!("{}:80", to.ip())), "{} to {}", from.id, to.id);
        }
    }
}

fn mtu_of(container: &Container) -> u64 {
    container.result["interfaces"][2]["mtu"].as_u64().unwrap()
}

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
fn a_node_cut_off_disturbs_only_itself() {
    needs_root!();
    let cluster = Cluster::new(3, "mesh", false, 1500);
    let containers = cluster.populate();
    everybody_reaches_everybody(&containers);
    let target = |n: usize| format!("{}:80", containers[n].ip());
    let mut live = containers[0].ns.connect(&target(1), PATIENCE).unwrap();
    cluster.hosts[2].ns.ip("link set u0 down");
    assert!(containers[0].ns.blocked(&target(2)));
    assert!(containers[0].ns.reaches(&target(1)));
    assert!(echoes(&mut live));
    cluster.hosts[2].ns.ip("link set u0 up");
    assert!(containers[0].ns.reaches(&target(2)));
}

#[test]
fn nodes_come_and_go_without_disturbing_the_others() {
    needs_root!();
    for mode in ["flood", "mesh"] {
        let cluster = Cluster::new(3, mode, false, 1500);
        let two = [0, 1];
        let a = cluster.hosts[0].add("a", &cluster.conf(0, &two));
        let b = cluster.hosts[1].add("b", &cluster.conf(1, &two));
        b.ns.serve_tcp("0.0.0.0:80");
        let mut live = a.ns.connect(&format!("{}:80", b.ip()), PATIENCE).unwrap();
        assert!(echoes(&mut live));
        // The new one knows the others before they know it: they do not listen to it.
        let c = cluster.hosts[2].add("c", &cluster.conf(2, &[0, 1, 2]));
        assert!(c.ns.blocked(&format!("{}:80", b.ip())));
        for n in [0, 1] {
            cluster.up(n, &[0, 1, 2]);
        }
        assert!(c.ns.reaches(&format!("{}:80", b.ip())), "{mode}");
        assert!(echoes(&mut live));
        // And one leaves.
        cluster.up(1, &[0, 1]);
        assert!(c.ns.blocked(&format!("{}:80", b.ip())));
        assert!(echoes(&mut live));
        assert!(a.ns.reaches(&format!("{}:80", b.ip())));
    }
}

#[test]
fn nothing_of_a_removed_node_is_left_on_the_others() {
    needs_root!();
    for mode in ["flood", "mesh"] {
        let cluster = Cluster::new(3, mode, false, 1500);
        let before = cluster.hosts[0].ns.census();
        let conf = |n: usize, nodes: &[usize]| {
            let mut conf = cluster.conf(n, nodes);
            if nodes.contains(&2) {
                conf["vxlan"]["stations"] =
                    json!([{"mac": "02:00:00:00:99:01", "node": "n2", "ip": "10.1.3.200"}]);
            }
            conf
        };
        let add = |n: usize| cluster.hosts[n].add(&format!("c{n}"), &conf(n, &[0, 1, 2]));
        let ends = [add(0), add(1), add(2)];
        for end in &ends[1..] {
            end.ns.serve_tcp("0.0.0.0:80");
        }
        let mut live = ends[0].ns.connect(&format!("{}:80", ends[1].ip()), PATIENCE).unwrap();
        assert!(ends[0].ns.reaches(&format!("{}:80", ends[2].ip())), "so what is learned is learned");
        let host = &cluster.hosts[0].ns;
        let traces = || {
            let all = [
                host.run(|| Command::new("bridge").args(["fdb", "show"]).output().unwrap().stdout),
                // The wire's own neighbours are the kernel's.
                host.ip("neigh show dev skb-vpc").into_bytes(),
                host.ip("-d link").into_bytes(),
                host.ruleset().into_bytes(),
            ];
            let text = String::from_utf8(all.concat()).unwrap();
            let of_the_node = [Cluster::v4(2), "02:00:00:00:99:01".to_owned(), "10.1.3.200".to_owned()];
            // The sandbox there has its address from elsewhere: what is known of it is no trace of the node.
            text.lines()
                .filter(|line| of_the_node.iter().any(|trace| line.contains(trace.as_str())))
                .map(ToOwned::to_owned)
                .collect::<Vec<_>>()
        };
        let links = || host.ip("-br link").matches("skx").count();
        assert!(traces().len() > 3, "{:?}", traces());
        assert_eq!(links(), if mode == "flood" { 1 } else { 2 });
        cluster.up(0, &[0, 1]);
        assert_eq!(traces(), Vec::<String>::new(), "{mode}");
        assert_eq!(links(), 1);
        assert!(echoes(&mut live), "the others are not disturbed");
        assert!(ends[0].ns.blocked(&format!("{}:80", ends[2].ip())));
        cluster.hosts[0].del(&ends[0], &conf(0, &[0, 1]));
        cluster.hosts[0].ns.run(|| {
            let store = Store::new(cluster.hosts[0].data_dir());
            plugin::down(&skep_cni::datapath::Host::new().unwrap(), &store, "vpc").unwrap();
        });
        assert_eq!(cluster.hosts[0].ns.census(), before);
    }
}

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
        let counts: Vec<usize> = wires
            .iter()
            .map(|wire| {
                std::iter::from_fn(|| wire.receive(Duration::from_millis(200)))
                    .filter(|frame| contains(frame, &question))
                    .count()
            })
            .collect();
        assert_eq!(counts, [0, 1, 1, 1], "{mode}");
        // Nobody but the one asked for gets a question, wherever he is.
        let at = Tap::open(&containers[1].ns, "eth0");
        from.send(&ethernet(BROADCAST, containers[0].mac(), ARP, &question));
        assert!(!at.sees(&question, SILENCE));
    }
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
fn a_node_that_would_make_a_black_hole_is_refused() {
    needs_root!();
    let cluster = Cluster::new(3, "flood", false, 1500);
    let a = cluster.hosts[0].add("a", &cluster.conf(0, &[0, 1]));
    assert_eq!(mtu_of(&a), 1450);
    // The third has IPv6 only: 70 bytes of 1500 are VXLAN's then.
    let nodes = json!([
        {"name": "n0", "address": Cluster::v4(0), "alternate": Cluster::v6(0)},
        {"name": "n1", "address": Cluster::v4(1), "alternate": Cluster::v6(1)},
        {"name": "n2", "address": Cluster::v6(2)},
    ]);
    let with_third = |mtu: u32| {
        let mut conf = cluster.conf(0, &[0, 1]);
        conf["vxlan"]["nodes"] = nodes.clone();
        conf["mtu"] = json!(mtu);
        conf
    };
    let error = cluster.hosts[0].call("ADD", "b", "eth0", &Ns::new().path(), &with_third(0)).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("carries 1430 bytes"), "{error}");
    cluster.hosts[0].check(&a, &cluster.conf(0, &[0, 1])).unwrap();
    // What the underlay cannot carry is refused while the network lives, too.
    let mut large = cluster.conf(0, &[0, 1]);
    large["mtu"] = json!(1451);
    let error = cluster.hosts[0].call("ADD", "b", "eth0", &Ns::new().path(), &large).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("more than the 1450 bytes"), "{error}");
    // Who plans for it has room.
    cluster.hosts[0].del(&a, &cluster.conf(0, &[0, 1]));
    let mut planned = cluster.conf(0, &[0, 1]);
    planned["mtu"] = json!(1430);
    let a = cluster.hosts[0].add("a", &planned);
    let b = cluster.hosts[0].add("b", &with_third(1430));
    assert_eq!((mtu_of(&a), mtu_of(&b)), (1430, 1430));
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
        containers[from].ns.ask_udp(&at, PATIENCE);
        let start = Instant::now();
        containers[from].ns.ask_udp(&at, PATIENCE);
        assert!(start.elapsed() >= 4 * delay, "it went around the wire");
    }
    everybody_reaches_everybody(&containers);
    for (n, container) in containers.iter().enumerate() {
        cluster.hosts[n].del(container, &conf(n));
        assert_eq!(cluster.hosts[n].ns.census(), before[n]);
    }
}

#[test]
fn a_node_cut_off_from_a_flooded_network_comes_back_by_itself() {
    needs_root!();
    let cluster = Cluster::far_apart(3, "flood", Duration::from_millis(5), usize::MAX);
    let containers = cluster.populate();
    everybody_reaches_everybody(&containers);
    let target = |n: usize| format!("{}:80", containers[n].ip());
    let flow = Flow::start(&containers[0].ns, &containers[1].ns, &containers[1].ip());
    let mut live = containers[0].ns.connect(&target(2), PATIENCE).unwrap();
    cluster.switch.ip("link set p2 down");
    assert!(containers[0].ns.blocked(&target(2)));
    assert!(containers[0].ns.reaches(&target(1)));
    cluster.switch.ip("link set p2 up");
    assert!(containers[2].ns.reaches(&target(0)));
    assert!(containers[0].ns.reaches(&target(2)));
    assert!(echoes(&mut live), "a connection outlives the cut");
    let (sent, lost) = flow.finish();
    assert!(sent > 50 && lost == 0, "{lost} of {sent} packets between the other two were lost");
}

/// `wireguard-go` on a host: not every kernel has `WireGuard`, and what it sends is the same.
struct Tunnel {
    name: String,
    process: Child,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Tunnel {
    fn start(host: &Host, n: usize) -> Self {
        // Its control socket is a file called after the interface.
        let name = format!("wg{n}x{}", std::process::id());
        let process = host.ns.run(|| {
            Command::new("wireguard-go")
                .args(["-f", &name])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        });
        let start = Instant::now();
        while !host.ns.command("wg", &["show", &name], "").status.success() {
            assert!(start.elapsed() < Duration::from_secs(20), "wireguard-go does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { name, process }
    }
}

#[test]
fn wireguard_carries_it_encrypted_and_unfragmented() {
    needs_root!();
    let cluster = Cluster::new(2, "flood", false, 1500);
    let tunnels: Vec<Tunnel> =
        cluster.hosts.iter().enumerate().map(|(n, host)| Tunnel::start(host, n)).collect();
    let keys: Vec<(String, String)> = (0..2)
        .map(|_| {
            let wg = |args: &[&str], input: &str| {
                let output = cluster.switch.command("wg", args, input);
                String::from_utf8(output.stdout).unwrap().trim().to_owned()
            };
            let private = wg(&["genkey"], "");
            let public = wg(&["pubkey"], &private);
            (private, public)
        })
        .collect();
    for (n, host) in cluster.hosts.iter().enumerate() {
        let (name, other) = (&tunnels[n].name, 1 - n);
        let peer = &keys[other].1;
        let set = host.ns.command(
            "wg",
            &[
                "set",
                name,
                "listen-port",
                "51820",
                "private-key",
                "/dev/stdin",
                "peer",
                peer,
                "allowed-ips",
                &format!("10.99.0.{}/32", other + 1),
                "endpoint",
                &format!("{}:51820", Cluster::v4(other)),
            ],
            &keys[n].0,
        );
        assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
        host.ns.ip(&format!("addr add 10.99.0.{}/24 dev {name}", n + 1));
        host.ns.ip(&format!("link set {name} mtu 1420 up"));
    }
    let nodes = json!([{"name": "a", "address": "10.99.0.1"}, {"name": "b", "address": "10.99.0.2"}]);
    let containers: Vec<_> = (0..2)
        .map(|n| {
            let mut conf = cluster.conf(n, &cluster.all());
            conf["vxlan"]["nodes"] = nodes.clone();
            cluster.hosts[n].add(&format!("c{n}"), &conf)
        })
        .collect();
    assert_eq!(mtu_of(&containers[0]), 1370);
    everybody_reaches_everybody(&containers);
    let wire = Tap::open(&cluster.hosts[1].ns, "u0");
    let target = containers[1].ns.run(|| UdpSocket::bind("0.0.0.0:5000").unwrap());
    target.set_read_timeout(Some(PATIENCE)).unwrap();
    let source = containers[0].ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let payload = vec![b'm'; 1370 - 28];
    source.send_to(&payload, format!("{}:5000", containers[1].ip())).unwrap();
    assert_eq!(target.recv(&mut vec![0; 9000]).unwrap(), payload.len());
    let mut seen = 0;
    while let Some(frame) = wire.receive(Duration::from_millis(50)) {
        assert!(!contains(&frame, b"mmmmmmmm"), "in the clear");
        assert!(frame.len() <= 1514, "{} bytes", frame.len());
        if u16::from_be_bytes([frame[12], frame[13]]) == IPV4 && frame[23] == 17 {
            assert_eq!(u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff, 0, "a fragment");
            assert_eq!(&frame[36..38], 51820_u16.to_be_bytes(), "nothing but WireGuard");
            seen += usize::from(frame.len() > 1400);
        }
    }
    assert_eq!(seen, 1, "one packet, one frame");
}

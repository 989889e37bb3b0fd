//! Nodes that come, go and are cut off.

use std::process::Command;
use std::time::Duration;

use crate::cluster::{Cluster, everybody_reaches_everybody, mtu_of};
use crate::support::flow::Flow;
use crate::support::{Ns, PATIENCE, echoes};
use serde_json::json;
use skep_cni::network::Store;
use skep_cni::plugin;

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
        // What keeps false frames off a new link is there for the sandboxes of before, and gone with it.
        let on_links = || {
            let set = cluster.hosts[1].ns.command("nft", &["list", "set", "bridge", "skep", "own_mac"], "");
            String::from_utf8(set.stdout).unwrap().matches("skx").count()
        };
        cluster.hosts[1].check(&b, &cluster.conf(1, &[0, 1, 2])).unwrap();
        let links = if mode == "flood" { 1 } else { 2 };
        // The gateway's and the sandbox's.
        assert_eq!(on_links(), 2 * links, "{mode}");
        // And one leaves.
        cluster.up(1, &[0, 1]);
        assert_eq!(on_links(), 2, "{mode}");
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

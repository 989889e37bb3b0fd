//! What each CNI command does, with real interfaces and rules, and that nothing is left of it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod support;

use std::thread;

use serde_json::{Value, json};
use support::{Host, Ns, open_policy};

const FOREIGN: &str = r#"
table inet admin {
    set blocked { type ipv4_addr; elements = { 203.0.113.7 } }
    chain input { type filter hook input priority 0; policy accept; ip saddr @blocked counter drop; }
    chain forward { type filter hook forward priority 0; policy accept; }
}
table ip nat {
    chain postrouting { type nat hook postrouting priority 100; oifname "ppp0" masquerade; }
}
"#;

#[test]
fn nothing_is_left_and_foreign_rules_are_untouched() {
    needs_root!();
    let host = Host::new();
    let _outside = host.outside();
    host.ns.nft(FOREIGN);
    let (before, foreign) = (host.ns.census(), host.ns.ruleset());
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let a = host.add("a", &conf);
    let b = host.add("b", &conf);
    host.check(&a, &conf).unwrap();
    host.check(&b, &conf).unwrap();
    assert_ne!(a.ip(), b.ip());
    let rules = host.ns.ruleset();
    assert!(rules.contains(foreign.trim()), "foreign rules changed: {rules}");
    host.del(&a, &conf);
    host.check(&b, &conf).unwrap();
    host.del(&b, &conf);
    assert_eq!(host.ns.census(), before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn add_twice_is_refused_and_changes_nothing() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let a = host.add("a", &conf);
    let before = host.ns.census();
    let again = host.call("ADD", "a", "eth0", &a.ns.path(), &conf).unwrap_err();
    assert!(again["msg"].as_str().unwrap().contains("already"), "{again}");
    // The same container and interface in another namespace: the record speaks.
    let again = host.call("ADD", "a", "eth0", &Ns::new().path(), &conf).unwrap_err();
    assert_eq!(again["code"], 100, "{again}");
    assert_eq!(host.ns.census(), before);
    host.check(&a, &conf).unwrap();
    // Another interface of the same container is another attachment.
    host.call("ADD", "a", "eth1", &a.ns.path(), &conf).unwrap();
    host.call("CHECK", "a", "eth1", &a.ns.path(), &conf).unwrap();
}

#[test]
fn del_is_idempotent_and_does_not_need_the_namespace() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    let conf = host.conf("pods", "10.1.0.0/24", json!({}));
    host.call("DEL", "never", "eth0", "/nonexistent", &conf).unwrap();
    host.call("DEL", "never", "eth0", "", &conf).unwrap();
    let a = host.add("a", &conf);
    host.call("DEL", "a", "eth0", "", &conf).unwrap();
    host.call("DEL", "a", "eth0", &a.ns.path(), &conf).unwrap();
    let b = host.add("b", &conf);
    let path = b.ns.path();
    drop(b);
    host.call("DEL", "b", "eth0", &path, &conf).unwrap();
    assert_eq!(host.ns.census(), before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn check_finds_what_somebody_broke() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/24", json!({"ipam": {"ranges": [[{"subnet": "fd00:1::/64"}]]}}));
    let unknown = host.call("CHECK", "x", "eth0", &Ns::new().path(), &conf).unwrap_err();
    assert_eq!(unknown["code"], 3);
    for (n, (what, want)) in [
        ("container: addr del 10.1.0.IP/24 dev eth0", "has lost 10.1.0."),
        ("container: route del default", "route to 0.0.0.0/0"),
        ("container: link set eth0 mtu 1600", "MTU of 1600"),
        ("container: link set eth0 down", "eth0 is down"),
        ("host: link set VETH nomaster", "is not a port of skb-pods"),
        ("host: link set skb-pods down", "skb-pods is down"),
        ("host: link set skb-pods type bridge nf_call_iptables 0", "does not pass its frames"),
        ("nft: delete element bridge skep src4 { VETH . 10.1.0.IP }", "set src4"),
        ("nft: flush chain inet skep box_ID_in", "has 0 rules"),
        ("nft: delete table bridge skep", "tables are gone"),
        ("host: link del VETH", "is gone"),
    ]
    .into_iter()
    .enumerate()
    {
        let container = host.add(&format!("c{n}"), &conf);
        host.check(&container, &conf).unwrap();
        let veth = container.host_ifname();
        let last = container.ip().rsplit('.').next().unwrap().to_owned();
        let what =
            what.replace("VETH", &veth).replace("_ID_", &format!("_{}_", &veth[3..])).replace("IP", &last);
        match what.split_once(": ").unwrap() {
            ("container", args) => drop(container.ns.ip(args)),
            ("host", args) => drop(host.ns.ip(args)),
            (_, script) => drop(host.ns.nft(script)),
        }
        let error = host.check(&container, &conf).unwrap_err();
        assert_eq!(error["code"], 101, "{what}: {error}");
        assert!(error["msg"].as_str().unwrap().contains(want), "{what}: {error}");
        // Whatever is broken, DEL works, and the next ADD has everything again.
        host.del(&container, &conf);
    }
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn check_allows_what_later_plugins_of_the_chain_change() {
    needs_root!();
    let host = Host::new();
    let mut conf = host.conf("pods", "10.1.0.0/24", json!({"cniVersion": "1.0.0"}));
    let a = host.add("a", &conf);
    // One makes packets smaller, the other moves the routes to a table of their own.
    let mut result = a.result.clone();
    for (name, more) in [("tuning", json!({"mtu": 1400})), ("sbr", json!({}))] {
        let mut later =
            json!({"cniVersion": "1.0.0", "name": "pods", "type": name, "prevResult": result.clone()});
        support::merge(&mut later, more);
        let plugin = format!("/usr/lib/cni/{name}");
        result = host.call_with(&plugin, "ADD", "a", "eth0", &a.ns.path(), &later).unwrap();
    }
    conf["prevResult"] = result;
    assert!(!a.ns.ip("route").contains("default") && a.ns.ip("-br link").contains("eth0"));
    host.check(&a, &conf).unwrap();
    // What is nowhere is gone.
    a.ns.ip("route flush table 100");
    let error = host.check(&a, &conf).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("route to 0.0.0.0/0 is gone"), "{error}");
    host.del(&a, &conf);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn a_failed_add_leaves_nothing() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    let conf = host.conf("pods", "10.1.0.0/24", json!({}));
    let ns = Ns::new();
    // Nothing is touched for what can be known before.
    for (netns, more, code) in [
        ("/nonexistent".to_owned(), json!({}), 3),
        ("/etc/passwd".to_owned(), json!({}), 3),
        (host.ns.path(), json!({}), 3),
        (ns.path(), json!({"bridge": "lo"}), 104),
        (ns.path(), json!({"uplink": "nic7"}), 104),
        (ns.path(), json!({"runtimeConfig": {"ips": ["10.2.0.9"]}}), 102),
        (ns.path(), json!({"ipam": {"type": "no-such-plugin"}}), 7),
    ] {
        let mut conf = conf.clone();
        support::merge(&mut conf, more);
        let error = host.call("ADD", "a", "eth0", &netns, &conf).unwrap_err();
        assert_eq!(error["code"], code, "{error}");
        assert_eq!(host.ns.census(), before, "{error}");
        assert_eq!(host.files(), Vec::<String>::new());
    }
    // A route that the kernel refuses is seen only when all else is made: everything is undone.
    let mut bad = conf.clone();
    support::merge(&mut bad, json!({"ipam": {"routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]}}));
    let error = host.call("ADD", "a", "eth0", &ns.path(), &bad).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("198.51.100.0/24"), "{error}");
    assert_eq!(host.ns.census(), before);
    assert_eq!(host.files(), Vec::<String>::new());
    assert!(!ns.ip("-br link").contains("eth0"));
    // And the address is free again.
    assert_eq!(host.call("ADD", "a", "eth0", &ns.path(), &conf).unwrap()["ips"][0]["address"], "10.1.0.2/24");
}

#[test]
fn overlapping_subnets_and_bridges_are_refused() {
    needs_root!();
    let host = Host::new();
    let _outside = host.outside();
    let on_wire = host.conf("pods", "192.0.2.0/25", json!({}));
    let error = host.call("ADD", "a", "eth0", &Ns::new().path(), &on_wire).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("overlaps 192.0.2.1/24"), "{error}");
    let _first = host.add("a", &host.conf("one", "10.1.0.0/24", json!({})));
    let same_bridge = host.conf("two", "10.2.0.0/24", json!({"bridge": "skb-one"}));
    let error = host.call("ADD", "b", "eth0", &Ns::new().path(), &same_bridge).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("network one's"), "{error}");
    let same_net = host.conf("two", "10.1.0.128/25", json!({}));
    let error = host.call("ADD", "b", "eth0", &Ns::new().path(), &same_net).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("overlaps"), "{error}");
}

#[test]
fn fifty_at_once_on_a_bare_host() {
    needs_root!();
    let host = Host::new();
    host.ns.nft(FOREIGN);
    let before = host.ns.census();
    let foreign = || {
        [["inet", "admin"], ["ip", "nat"]].map(|[family, table]| {
            host.ns.command("nft", &["--handle", "list", "table", family, table], "").stdout
        })
    };
    let untouched = foreign();
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let containers: Vec<_> = thread::scope(|scope| {
        let adds: Vec<_> = (0..50)
            .map(|n| {
                let (host, conf) = (&host, &conf);
                scope.spawn(move || host.add(&format!("c{n}"), conf))
            })
            .collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    let mut addresses: Vec<_> = containers.iter().map(support::Container::ip).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 50);
    assert_eq!(host.ns.ip("-br link show type bridge").lines().count(), 1);
    let rules = host.ns.ruleset();
    assert_eq!(rules.matches("iifname @ports goto sandbox").count(), 1);
    assert_eq!(foreign(), untouched, "to the byte, handles included");
    for container in &containers {
        host.check(container, &conf).unwrap_or_else(|error| panic!("{error}"));
    }
    containers[0].ns.serve_tcp("0.0.0.0:80");
    assert!(containers[49].ns.reaches(&format!("{}:80", containers[0].ip())));
    thread::scope(|scope| {
        for container in &containers {
            scope.spawn(|| host.del(container, &conf));
        }
    });
    assert_eq!(host.ns.census(), before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn adds_and_dels_of_the_last_sandbox_may_cross() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    thread::scope(|scope| {
        for worker in 0..4 {
            let (host, conf) = (&host, &conf);
            scope.spawn(move || {
                for round in 0..6 {
                    let container = host.add(&format!("w{worker}r{round}"), conf);
                    host.check(&container, conf).unwrap_or_else(|error| panic!("{error}"));
                    host.del(&container, conf);
                }
            });
        }
    });
    assert_eq!(host.ns.census(), before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn gc_removes_what_is_not_on_the_list() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    let conf = host.conf("pods", "10.1.0.0/24", json!({}));
    let keep = host.add("keep", &conf);
    let lost = host.add("lost", &conf);
    // Its runtime died and took the namespace with it.
    let lost_port = lost.host_ifname();
    drop(lost);
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    host.call("GC", "", "", "", &gc).unwrap();
    host.check(&keep, &conf).unwrap();
    assert!(!host.ns.ruleset().contains(&lost_port));
    // Without a list, as cnitool calls it, what lives stays.
    let lost = host.add("lost", &conf);
    let lost_port = lost.host_ifname();
    drop(lost);
    host.call("GC", "", "", "", &conf).unwrap();
    host.check(&keep, &conf).unwrap();
    assert!(!host.ns.ruleset().contains(&lost_port));
    gc["cni.dev/valid-attachments"] = json!(null);
    host.call("GC", "", "", "", &gc).unwrap();
    assert_eq!(host.ns.census(), before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn gc_is_not_deceived_by_another_namespace_under_the_same_path() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    let conf = host.conf("pods", "10.1.0.0/24", json!({}));
    let (first, second) = (Ns::new(), Ns::new());
    let path = host.dir.path().join("netns");
    let lead_to = |target: &str| {
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(target, &path).unwrap();
    };
    // As /proc/PID/ns/net does when the number comes to another process.
    for target in [second.path(), host.ns.path(), "/dev/null".to_owned()] {
        lead_to(&first.path());
        host.call("ADD", "a", "eth0", path.to_str().unwrap(), &conf).unwrap();
        host.call("GC", "", "", "", &conf).unwrap();
        assert!(!host.files().is_empty(), "it lives");
        lead_to(&target);
        host.call("GC", "", "", "", &conf).unwrap();
        assert_eq!(host.files(), Vec::<String>::new(), "{target}");
        assert_eq!(host.ns.census(), before);
    }
}

#[test]
fn a_full_range_is_told_by_add_and_the_network_stays_ready() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/30", json!({}));
    host.call("STATUS", "", "", "", &conf).unwrap();
    let only = host.add("a", &conf);
    // Kubernetes would move the pods of a node away whose network is not ready.
    host.call("STATUS", "", "", "", &conf).unwrap();
    let full = host.call("ADD", "b", "eth0", &Ns::new().path(), &conf).unwrap_err();
    assert_eq!(full["code"], 102);
    assert!(full["msg"].as_str().unwrap().contains("no free address"), "{full}");
    host.del(&only, &conf);
    host.call("STATUS", "", "", "", &conf).unwrap();
}

#[test]
fn every_version_of_the_specification_is_served() {
    needs_root!();
    let host = Host::new();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let conf = host.conf("pods", "10.1.0.0/24", json!({"cniVersion": version}));
        let container = host.add("a", &conf);
        assert_eq!(container.result["cniVersion"], version);
        assert_eq!(container.result["ips"][0].get("version").is_some(), version < "1.0.0");
        let mut with_result = conf.clone();
        with_result["prevResult"] = container.result.clone();
        match host.check(&container, &with_result) {
            Ok(_) => assert!(version >= "0.4.0"),
            Err(error) => assert!(version < "0.4.0" && error["code"] == 1, "{version}: {error}"),
        }
        host.call("DEL", "a", "eth0", &container.ns.path(), &with_result).unwrap();
    }
}

#[test]
fn addresses_may_come_from_host_local() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    let leases = host.dir.path().join("leases");
    let mut conf = host.conf("pods", "10.1.0.0/24", open_policy());
    conf["cniVersion"] = json!("1.0.0");
    conf["ipam"] = json!({"type": "host-local", "dataDir": leases, "ranges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd07::/64"}]]});
    let a = host.add("a", &conf);
    assert_eq!((a.ip(), a.address(1)), ("10.7.0.2".to_owned(), "fd07::2".to_owned()));
    let b = host.add("b", &conf);
    b.ns.serve_tcp("[::]:80");
    assert!(a.ns.reaches(&format!("{}:80", b.ip())));
    assert!(a.ns.reaches(&format!("[{}]:80", b.address(1))));
    host.check(&a, &conf).unwrap();
    // What fails after the addresses came gives them back.
    let taken = std::fs::read_dir(leases.join("pods")).unwrap().count();
    let mut bad = conf.clone();
    bad["bridge"] = json!("other");
    host.call("ADD", "c", "eth0", &Ns::new().path(), &bad).unwrap_err();
    assert_eq!(std::fs::read_dir(leases.join("pods")).unwrap().count(), taken);
    host.del(&a, &conf);
    host.del(&b, &conf);
    host.call("DEL", "b", "eth0", "", &conf).unwrap();
    assert_eq!(host.ns.census(), before);
    let left = std::fs::read_dir(leases.join("pods")).unwrap().flatten();
    assert!(left.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).count() == 0);
}

#[test]
fn it_filters_what_another_plugin_of_the_chain_made() {
    needs_root!();
    let host = Host::new();
    let bridge = json!({"cniVersion": "1.0.0", "name": "chain", "type": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": {"type": "host-local", "dataDir": host.dir.path().join("leases"), "subnet": "10.8.0.0/24"}});
    let mut ours = json!({"cniVersion": "1.0.0", "name": "chain", "type": "skep-cni", "dataDir": host.data_dir(),
        "policy": {"egress": {"allow": [{"cidr": "10.8.0.0/24", "protocol": "tcp", "ports": [80]}]}, "ingress": {"allow": ["any"]}}});
    let (a, b) = (Ns::new(), Ns::new());
    let mut ips = Vec::new();
    for (id, ns) in [("a", &a), ("b", &b)] {
        let made = host.call_with("/usr/lib/cni/bridge", "ADD", id, "eth0", &ns.path(), &bridge).unwrap();
        ours["prevResult"] = made.clone();
        let result = host.call("ADD", id, "eth0", &ns.path(), &ours).unwrap();
        assert_eq!(result["ips"], made["ips"]);
        ips.push(made["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned());
    }
    b.serve_tcp("0.0.0.0:80");
    b.serve_tcp("0.0.0.0:81");
    assert!(a.reaches(&format!("{}:80", ips[1])));
    assert!(a.blocked(&format!("{}:81", ips[1])));
    for (id, ns) in [("a", &a), ("b", &b)] {
        host.call("DEL", id, "eth0", &ns.path(), &ours).unwrap();
        host.call_with("/usr/lib/cni/bridge", "DEL", id, "eth0", &ns.path(), &bridge).unwrap();
    }
    assert_eq!(host.files(), Vec::<String>::new());
    assert!(!host.ns.ruleset().contains("skep"));
    assert!(host.ns.ip("-br link").contains("br0"), "the other plugin's bridge is not ours to remove");
}

#[test]
fn wanted_addresses_are_given() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf(
        "pods",
        "10.1.0.0/24",
        json!({"runtimeConfig": {"ips": ["10.1.0.77/24"], "mac": "02:11:22:33:44:55"}}),
    );
    let a = host.add("a", &conf);
    assert_eq!((a.ip().as_str(), a.mac()), ("10.1.0.77", [2, 0x11, 0x22, 0x33, 0x44, 0x55]));
    let taken = host.call("ADD", "b", "eth0", &Ns::new().path(), &conf).unwrap_err();
    assert!(taken["msg"].as_str().unwrap().contains("10.1.0.77 is taken"), "{taken}");
}

#[test]
fn a_result_tells_ethernet_addresses_of_the_hosts_ends() {
    needs_root!();
    let host = Host::new();
    host.ns.ip("link add there type bridge");
    let mut conf = host.conf("pods", "10.1.0.0/24", open_policy());
    for bridge in ["there", "made"] {
        conf["name"] = json!(bridge);
        conf["bridge"] = json!(bridge);
        let one = host.add(bridge, &conf);
        let links: Value = serde_json::from_str(&host.ns.ip("-j link")).unwrap();
        for told in [&one.result["interfaces"][0], &one.result["interfaces"][1]] {
            let link = links.as_array().unwrap().iter().find(|link| link["ifname"] == told["name"]).unwrap();
            assert_eq!(told["mac"], link["address"], "{told}");
        }
        host.del(&one, &conf);
    }
}

#[test]
fn addresses_may_be_static() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    let mut conf = host.conf("pods", "10.1.0.0/24", open_policy());
    conf["cniVersion"] = json!("1.0.0");
    conf["ipam"] = json!({"type": "static", "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.9.0.1"]},
        "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}, {"address": "fd09::5/64", "gateway": "fd09::1"}]});
    let a = host.add("a", &conf);
    assert_eq!((a.ip(), a.address(1)), ("10.9.0.5".to_owned(), "fd09::5".to_owned()));
    assert_eq!(a.result["dns"]["nameservers"], json!(["10.9.0.1"]));
    // This plugin wants to see what it gave.
    let mut checked = conf.clone();
    checked["prevResult"] = a.result.clone();
    host.check(&a, &checked).unwrap();
    // The same address again belongs to somebody already; the first keeps it.
    let error = host.call("ADD", "b", "eth0", &Ns::new().path(), &conf).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("belongs to another sandbox"), "{error}");
    host.check(&a, &checked).unwrap();
    conf["ipam"]["addresses"] = json!([{"address": "10.9.0.6/24", "gateway": "10.9.0.1"}]);
    let b = host.add("b", &conf);
    b.ns.serve_tcp("0.0.0.0:80");
    assert!(a.ns.reaches("10.9.0.6:80"));
    host.del(&b, &conf);
    host.del(&a, &conf);
    assert_eq!(host.ns.census(), before);
    assert_eq!(host.files(), Vec::<String>::new());
}

/// Runs an administrator's command on a host; what it prints, and whether it was content.
fn administer(host: &Host, args: &[&str]) -> (bool, String) {
    let dir = host.data_dir();
    let all: Vec<&str> = ["--data-dir", dir.to_str().unwrap()].iter().chain(args).copied().collect();
    let output = host.ns.command(env!("CARGO_BIN_EXE_skep-cni"), &all, "");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn what_no_record_speaks_of_is_found_and_removed() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let (kept, lost) = (host.add("kept", &conf), host.add("lost", &conf));
    kept.ns.serve_tcp("0.0.0.0:80");
    assert_eq!(administer(&host, &["status"]), (true, administer(&host, &["status"]).1));
    let before = host.ns.census();
    let files = host.files();
    // Not ours, though one's name nearly is.
    host.ns.ip("link add skv0 type veth peer name other");
    host.ns.ip("link add skb-mine type bridge");
    let port = lost.host_ifname();
    std::fs::remove_file(host.data_dir().join(format!("attachments/pods/{}.json", &port[3..]))).unwrap();
    let (content, told) = administer(&host, &["status"]);
    assert!(!content);
    for what in [
        format!("interface {port}"),
        format!("rules box_{}_in", &port[3..]),
        format!("address {}", lost.ip()),
    ] {
        assert!(told.contains(&what), "{what}: {told}");
    }
    assert_eq!(told.matches("orphan: ").count(), 4, "{told}");
    // Without the flag nothing but the records counts.
    assert!(administer(&host, &["gc"]).0);
    assert_eq!(administer(&host, &["status"]).1, told);
    assert!(administer(&host, &["gc", "--orphans"]).0);
    assert!(!host.ns.ruleset().contains(&port));
    host.ns.ip("link del skv0");
    host.ns.ip("link del skb-mine");
    assert_ne!(host.ns.census(), before);
    host.check(&kept, &conf).unwrap();
    let again = host.add("lost", &conf);
    assert!(again.ns.reaches(&format!("{}:80", kept.ip())));
    assert!(administer(&host, &["status"]).0);
    // As many as before; an address's is called after it, and that is another.
    assert_eq!(host.files().len(), files.len(), "{:?}", host.files());
    // And a whole network whose records are gone.
    std::fs::remove_dir_all(host.data_dir()).unwrap();
    assert!(administer(&host, &["gc", "--orphans"]).0);
    let left = host.ns.ip("-br link");
    assert!(!left.contains("skv") && !left.contains("skb-"), "{left}");
    assert!(!host.ns.ruleset().contains("skep"));
}

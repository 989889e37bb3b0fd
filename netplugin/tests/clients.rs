//! What runtimes send and their users ask for, beyond what the specification's own examples show.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod support;

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Host, Ns, merge, open_policy};

#[test]
fn a_pod_without_annotations_is_attached() {
    needs_root!();
    let host = Host::new();
    let mut conf = host.conf("pods", "10.1.0.0/24", open_policy());
    // As containerd's CRI plugin writes it.
    conf["runtimeConfig"] = json!({
        "io.kubernetes.cri.pod-annotations": null, "portMappings": null, "bandwidth": null, "ips": null,
        "dns": {"Servers": ["192.0.2.53"], "Searches": null, "Options": null},
    });
    conf["prevResult"] = Value::Null;
    let a = host.add("a", &conf);
    assert_eq!(a.result["dns"]["nameservers"], json!(["192.0.2.53"]));
    host.del(&a, &conf);
}

#[test]
fn each_family_is_asked_for_where_its_runtime_asks() {
    needs_root!();
    let host = Host::new();
    let mut conf = host.conf("pods", "10.1.0.0/24", json!({"ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}}));
    // nerdctl run --ip 10.1.0.77 --ip6 fd01::77
    conf["runtimeConfig"] = json!({"ips": ["fd01::77"]});
    let ns = Ns::new();
    let args = [("CNI_ARGS", "IgnoreUnknown=1;IP=10.1.0.77")];
    let result = host.call_as(&args, "ADD", "a", "eth0", &ns.path(), &conf).unwrap();
    let ips: Vec<&str> =
        result["ips"].as_array().unwrap().iter().filter_map(|ip| ip["address"].as_str()).collect();
    assert_eq!(ips, ["10.1.0.77/24", "fd01::77/64"]);
    // Of one family the capability is heard.
    let args = [("CNI_ARGS", "IgnoreUnknown=1;IP=fd01::88")];
    conf["runtimeConfig"] = json!({"ips": ["fd01::99"]});
    let result = host.call_as(&args, "ADD", "b", "eth0", &Ns::new().path(), &conf).unwrap();
    assert_eq!(result["ips"][1]["address"], "fd01::99/64");
}

#[test]
fn a_record_of_a_container_that_is_gone_is_not_in_the_way() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    let before = host.ns.census();
    let leases = host.dir.path().join("leases");
    let own = json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}], "ips": ["10.1.0.9"]}});
    let mut foreign = json!({"cniVersion": "1.0.0"});
    foreign["ipam"] = json!({"type": "host-local", "dataDir": leases, "subnet": "10.1.0.0/24"});
    for more in [own, foreign] {
        let mut conf = host.conf("pods", "10.1.0.0/24", open_policy());
        if more["ipam"].is_object() {
            conf["ipam"] = Value::Null;
        }
        merge(&mut conf, more);
        let first = host.add("a", &conf);
        let living = host.call("ADD", "a", "eth0", &Ns::new().path(), &conf).unwrap_err();
        assert_eq!(living["code"], 100, "{living}");
        // The host fell over: the namespace is gone, and nobody said DEL.
        drop(first);
        let again = host.add("a", &conf);
        host.check(&again, &conf).unwrap_or_else(|error| panic!("{error}"));
        again.ns.serve_tcp("[::]:80");
        if !conf["runtimeConfig"].is_null() {
            assert_eq!(again.ip(), "10.1.0.9");
            assert!(outside.reaches("192.0.2.1:8080"));
        }
        host.del(&again, &conf);
        assert_eq!(host.ns.census(), before);
        assert_eq!(host.files(), Vec::<String>::new());
    }
    let left = std::fs::read_dir(leases.join("pods")).unwrap().flatten();
    assert!(left.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).count() == 0);
}

#[test]
fn the_dead_keep_neither_address_nor_port() {
    needs_root!();
    let host = Host::new();
    // One address, one port.
    let mut conf = host.conf("pods", "10.1.0.0/30", open_policy());
    conf["runtimeConfig"] = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    let mut other = host.conf("other", "10.2.0.0/24", open_policy());
    let (port, no_port) = (conf.clone(), Value::Null);
    let first = host.add("a", &conf);
    conf["runtimeConfig"] = no_port;
    other["runtimeConfig"] = port["runtimeConfig"].clone();
    let ns = Ns::new();
    let full = host.call("ADD", "b", "eth0", &ns.path(), &conf).unwrap_err();
    assert!(full["msg"].as_str().unwrap().contains("no free address"), "{full}");
    let taken = host.call("ADD", "b", "eth0", &ns.path(), &other).unwrap_err();
    assert!(taken["msg"].as_str().unwrap().contains("mapped to container `a`"), "{taken}");
    let gone = |container: support::Container| {
        let port = container.host_ifname();
        drop(container);
        // The kernel takes a namespace away in the background.
        while host.ns.ip("-br link").contains(&port) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    gone(first);
    let second = host.add("b", &conf);
    assert_eq!(second.ip(), "10.1.0.2");
    host.del(&second, &conf);
    gone(host.add("c", &port));
    let third = host.add("d", &other);
    host.check(&third, &other).unwrap_or_else(|error| panic!("{error}"));
    host.del(&third, &other);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn a_second_add_says_that_it_is_one() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/24", json!({}));
    let a = host.add("a", &conf);
    let again = host.call("ADD", "a", "eth0", &a.ns.path(), &conf).unwrap_err();
    assert_eq!(again["code"], 100, "{again}");
    host.check(&a, &conf).unwrap();
}

/// A container that the plugin `bridge` has attached to a network of two plugins, and the second one's configuration.
fn second_of_a_chain(host: &Host, id: &str) -> (Ns, Value, Value) {
    let ns = Ns::new();
    let bridge = json!({"cniVersion": "1.0.0", "name": "chain", "type": "bridge", "bridge": "br0",
        "ipam": {"type": "host-local", "dataDir": host.dir.path().join("leases"), "subnet": "10.8.0.0/24"}});
    let made = host.call_with("/usr/lib/cni/bridge", "ADD", id, "eth0", &ns.path(), &bridge).unwrap();
    let ours =
        json!({"cniVersion": "1.0.0", "name": "chain", "type": "skep-cni", "dataDir": host.data_dir()});
    (ns, ours, made)
}

#[test]
fn a_chain_hands_on_what_it_was_handed() {
    needs_root!();
    let host = Host::new();
    let (ns, mut ours, mut made) = second_of_a_chain(&host, "a");
    // What this plugin has no use for, or does not know.
    made["interfaces"][1]["pciID"] = json!("0000:00:1f.6");
    made["interfaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "tun0", "mac": "00:00:00:00:00:00", "sandbox": "/x"}));
    made["example.org/x"] = json!({"y": 1});
    ours["prevResult"] = made.clone();
    let result = host.call("ADD", "a", "eth0", &ns.path(), &ours).unwrap();
    assert_eq!(result, made);
    host.call("CHECK", "a", "eth0", &ns.path(), &ours).unwrap();
    host.call("DEL", "a", "eth0", &ns.path(), &ours).unwrap();
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn a_chain_has_its_addresses_from_the_first_plugin() {
    needs_root!();
    let host = Host::new();
    let (ns, mut ours, made) = second_of_a_chain(&host, "a");
    let before = host.ns.census();
    ours["prevResult"] = made;
    let leases = host.dir.path().join("leases");
    for ipam in [
        json!({"type": "skep", "subnet": "10.9.0.0/24"}),
        json!({"type": "host-local", "dataDir": leases, "subnet": "10.9.0.0/24"}),
        json!({"type": "dhcp"}),
    ] {
        ours["ipam"] = ipam;
        let error = host.call("ADD", "a", "eth0", &ns.path(), &ours).unwrap_err();
        assert!(
            error["code"] == 7 && error["msg"].as_str().unwrap().contains("ipam: an earlier plugin"),
            "{error}"
        );
        assert_eq!(host.ns.census(), before);
        assert_eq!(host.files(), Vec::<String>::new());
    }
    // What is on no bridge is not filtered, and that is said.
    let ptp = json!({"cniVersion": "1.0.0", "name": "chain", "type": "ptp", "ipam": {"type": "host-local", "dataDir": leases, "subnet": "10.9.0.0/24"}});
    let ns = Ns::new();
    ours["prevResult"] = host.call_with("/usr/lib/cni/ptp", "ADD", "p", "eth0", &ns.path(), &ptp).unwrap();
    ours["ipam"] = Value::Null;
    let error = host.call("ADD", "p", "eth0", &ns.path(), &ours).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("not what ptp"), "{error}");
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn who_may_not_change_the_network_is_told_so() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/24", json!({}));
    let input = host.dir.path().join("conf");
    std::fs::write(&input, conf.to_string()).unwrap();
    for (verb, code) in [("ADD", 105), ("STATUS", 50)] {
        let ns = Ns::new();
        let output = host.ns.run(|| {
            Command::new("setpriv")
                .args(["--bounding-set=-net_admin", env!("CARGO_BIN_EXE_skep-cni")])
                .env("CNI_COMMAND", verb)
                .envs([("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")])
                .env("CNI_NETNS", ns.path())
                .stdin(std::fs::File::open(&input).unwrap())
                .stdout(Stdio::piped())
                .output()
                .unwrap()
        });
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(
            error["code"] == code && error["msg"].as_str().unwrap().contains("CAP_NET_ADMIN"),
            "{verb}: {error}"
        );
    }
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn a_rootless_runtime_has_networks_in_its_own_namespaces() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let input = host.dir.path().join("conf");
    std::fs::write(&input, conf.to_string()).unwrap();
    // As rootlesskit does it: root of a user namespace, which owns the network.
    let script = "ip link set lo up; unshare --net sleep 100 & sleep 0.5; export CNI_NETNS=/proc/$!/ns/net; \
        for verb in STATUS ADD CHECK; do CNI_COMMAND=$verb \"$0\" <\"$1\" || exit 1; done; \
        nsenter --net=$CNI_NETNS ip -o addr show eth0; CNI_COMMAND=DEL \"$0\" <\"$1\"; code=$?; kill $!; exit $code";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", script, env!("CARGO_BIN_EXE_skep-cni")])
        .arg(&input)
        .envs([("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/nonexistent")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("inet 10.1.0.2/24"), "{said}");
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn a_container_is_meant_by_the_beginning_of_its_name() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/24", json!({}));
    let (_one, _two) = (host.add("abc1", &conf), host.add("abc2", &conf));
    let _whole = host.add("abc", &conf);
    let policy = |container: &str| {
        let data = host.data_dir();
        let args = ["--data-dir", data.to_str().unwrap(), "policy", "pods", container];
        let output =
            host.ns.command(env!("CARGO_BIN_EXE_skep-cni"), &args, "{\"egress\": {\"allow\": [\"any\"]}}");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(policy("abc1").0 && policy("abc").0);
    let files = host.files().join(" ");
    let (done, said) = policy("ab");
    assert!(!done && said.contains("more than one"), "{said}");
    let (done, said) = policy("x");
    assert!(!done && said.contains("no `eth0`"), "{said}");
    assert_eq!(host.files().join(" "), files);
    let _long = host.add("0123456789abcdef", &conf);
    assert!(policy("0123456789").0);
}

#[test]
fn a_network_that_does_not_fit_is_refused_before_anything_is_made() {
    needs_root!();
    let host = Host::new();
    let _outside = host.outside();
    let data = host.data_dir();
    let up = |conf: &Value| {
        let args = ["--data-dir", data.to_str().unwrap(), "up"];
        let output = host.ns.command(env!("CARGO_BIN_EXE_skep-cni"), &args, &conf.to_string());
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let stretched = |vni: u32| json!({"vxlan": {"vni": vni, "nodes": [{"name": "a", "address": "192.0.2.1"}, {"name": "b", "address": "192.0.2.2"}]}});
    // As it lies in the runtime's directory.
    let mut conf = host.conf("vpc", "10.11.0.0/16", stretched(100));
    conf.as_object_mut().unwrap().remove("name");
    let list = json!({"cniVersion": "1.0.0", "name": "vpc", "plugins": [{"type": "tuning"}, conf]});
    assert_eq!(up(&list), (true, String::new()));
    let (before, files) = (host.ns.census(), host.files());
    for (conf, want) in [
        (
            host.conf("nested", "10.11.5.0/24", stretched(101)),
            "10.11.5.0/24 overlaps 10.11.0.0/16, which is network vpc's",
        ),
        (
            host.conf("around", "10.0.0.0/8", json!({})),
            "10.0.0.0/8 overlaps 10.11.0.0/16, which is network vpc's",
        ),
        (
            host.conf("wire", "192.0.2.128/25", json!({})),
            "192.0.2.128/25 overlaps 192.0.2.1/24, which this host has",
        ),
        (
            host.conf("same", "10.12.0.0/16", stretched(100)),
            "identifier 100 on UDP port 4789 is network vpc's",
        ),
        (
            json!({"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "bridge"}]}),
            "no plugin of type skep-cni",
        ),
    ] {
        let (done, said) = up(&conf);
        assert!(!done && said.contains(want), "{said}");
        assert_eq!((host.ns.census(), host.files()), (before.clone(), files.clone()), "{want}");
    }
}

#[test]
fn a_configuration_that_somebody_spoilt_keeps_no_container() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    let leases = host.dir.path().join("leases");
    let foreign = json!({"type": "host-local", "dataDir": leases, "subnet": "10.1.0.0/24"});
    for (ipam, spoilt) in [
        (Value::Null, json!({"ipMask": true})),
        (Value::Null, json!({"policy": {"egress": {"alow": []}}})),
        (Value::Null, json!({"vxlan": {"file": "/nonexistent"}, "mtu": 3})),
        (Value::Null, json!({"ipam": {"subnet": "10.1.0.0/33"}, "bridge": "a/b"})),
        (foreign, json!({"ipMask": true})),
    ] {
        let mut conf = host.conf("pods", "10.1.0.0/24", json!({"cniVersion": "1.0.0"}));
        if ipam.is_object() {
            conf["ipam"] = ipam;
        }
        let container = host.add("a", &conf);
        merge(&mut conf, spoilt);
        conf["prevResult"] = container.result.clone();
        host.call("ADD", "b", "eth0", &Ns::new().path(), &conf).unwrap_err();
        host.del(&container, &conf);
        assert_eq!(host.ns.census(), before, "{conf}");
        assert_eq!(host.files(), Vec::<String>::new());
    }
    let left = std::fs::read_dir(leases.join("pods")).unwrap().flatten();
    assert!(left.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).count() == 0);
    // What names no network, or cannot be read at all, is still an error.
    let error =
        host.call("DEL", "a", "eth0", "", &json!({"cniVersion": "1.0.0", "type": "skep-cni"})).unwrap_err();
    assert_eq!(error["code"], 7, "{error}");
}

//! What the plugin makes a sandbox's interface of on FreeBSD: limits on what it carries, interfaces that others made, and
//! what is left when it fails. Takes root, pf and netgraph.
#![cfg(target_os = "freebsd")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod jails;

use std::net::UdpSocket;
use std::time::Duration;

use jails::{Container, Host, Jail, alone, merge, open_policy, sh};
use serde_json::{Value, json};

fn there(name: &str) -> bool {
    sh("ifconfig -l").split_whitespace().any(|one| one == name)
}

/// 200 kbit/s, so that what a slow machine takes minutes for has passed none but the first.
fn limited(conf: &Value) -> Value {
    let mut conf = conf.clone();
    conf["runtimeConfig"] = json!({"bandwidth": {"ingressRate": 200_000, "ingressBurst": 100_000,
        "egressRate": 200_000, "egressBurst": 100_000}});
    conf
}

/// How many of 2,000 packets of 1,000 bytes arrive.
fn arrive(from: &Container, to: &Container) -> usize {
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| {
            to.jail.tell(|| {
                let socket = UdpSocket::bind("0.0.0.0:5000").ok()?;
                socket.set_read_timeout(Some(jails::PATIENCE)).ok()?;
                let mut arrived = 0;
                // The first is waited for with patience; who sends none for a while has ended.
                while socket.recv(&mut [0; 1500]).is_ok() {
                    arrived += 1;
                    socket.set_read_timeout(Some(2 * jails::SILENCE)).ok()?;
                }
                Some(arrived.to_string())
            })
        });
        std::thread::sleep(Duration::from_secs(1));
        let sent = from.jail.ask(|| {
            UdpSocket::bind("0.0.0.0:0").is_ok_and(|socket| {
                (0..2000).all(|n| {
                    // In rounds, so that nothing else overflows.
                    if n % 10 == 0 {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    let _ = socket.send_to(&[0; 1000], format!("{}:5000", to.ip()));
                    true
                })
            })
        });
        assert!(sent);
        counting.join().unwrap().parse().unwrap()
    })
}

#[test]
fn bandwidth_is_limited_both_ways() {
    let _turn = alone();
    let host = Host::new(None);
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let before = host.census_after_first(&conf);
    let (free, other) = (host.add("free", &conf), host.add("other", &conf));
    let slow = limited(&conf);
    let limited = host.add("limited", &slow);
    host.check(&limited, &slow).unwrap_or_else(|error| panic!("{error}"));
    limited.jail.serve_tcp("0.0.0.0:80");
    assert!(free.jail.reaches(&format!("{}:80", limited.ip())), "what is below the limit passes");
    let (unlimited, towards, from) =
        (arrive(&free, &other), arrive(&free, &limited), arrive(&limited, &free));
    assert!(unlimited > 1500, "without a limit nearly all arrives: {unlimited}");
    assert!(towards < 1000, "towards the sandbox: {towards}");
    assert!(from < 1000, "from the sandbox: {from}");
    let name = limited.host_ifname().replacen("skv", "ski", 1);
    sh(&format!("ngctl shutdown {name}:lower"));
    let found = host.check(&limited, &slow).unwrap_err();
    assert!(found.to_string().contains("limits"), "{found}");
    host.del(&limited, &slow);
    for one in [&free, &other] {
        host.del(one, &conf);
    }
    host.settles_to(&before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn more_than_the_kernel_can_limit_is_refused_before_anything_is_made() {
    let _turn = alone();
    let host = Host::new(None);
    let mut conf = host.conf("pods", "10.1.0.0/24", open_policy());
    conf["runtimeConfig"] = json!({"bandwidth": {"ingressRate": 2_000_000_000_u64, "ingressBurst": 1}});
    let jail = Jail::new();
    let refused = host.call("ADD", "a", &jail.name, &conf).unwrap_err();
    assert_eq!(refused["code"], 105, "{refused}");
    assert!(refused.to_string().contains("ingressRate"), "{refused}");
    assert_eq!(host.files(), Vec::<String>::new());
    assert!(!there("skb-pods"));
}

#[test]
fn a_vm_gets_a_tap_on_the_host() {
    let _turn = alone();
    let host = Host::new(None);
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let result = host.call("ADD", "vm", "0", &conf).unwrap();
    let tap = result["interfaces"][1]["name"].as_str().unwrap();
    assert!(sh(&format!("ifconfig {tap}")).contains("groups: tap"));
    assert!(std::path::Path::new("/dev").join(tap).exists(), "bhyve opens it by this name");
    assert!(sh("ifconfig skb-pods").contains(&format!("member: {tap}")));
    host.call("CHECK", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    host.call("DEL", "vm", "0", &conf).unwrap();
    assert!(!sh("ifconfig -l").contains(tap));
}

#[test]
fn a_tap_that_is_given_has_its_rules_and_goes_with_its_sandbox() {
    let _turn = alone();
    let host = Host::new(None);
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let tap = sh("ifconfig tap create").trim().to_owned();
    let args = format!("SKEP_TAP={tap}");
    let result = host.call_with(&args, "ADD", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    let port = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    assert!(there(&port) && !there(&tap), "it is the port");
    assert!(sh(&format!("ifconfig {port}")).contains("skepport"));
    host.call_with(&args, "CHECK", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    // By a group its rules are found: without it nothing would pass.
    sh(&format!("ifconfig {port} -group skepport"));
    let found = host.call_with(&args, "CHECK", "vm", "0", &conf).unwrap_err();
    assert!(found.to_string().contains("skepport"), "{found}");
    host.call_with(&args, "DEL", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    assert!(!there(&port) && !there(&tap), "it went with its sandbox");
}

#[test]
fn a_limited_vm_has_its_tap_behind_the_port() {
    let _turn = alone();
    let host = Host::new(None);
    let conf = limited(&host.conf("pods", "10.1.0.0/24", open_policy()));
    let result = host.call("ADD", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    let name = |n: usize| result["interfaces"][n]["name"].as_str().unwrap().to_owned();
    let (port, tap) = (name(1), name(3));
    assert!(sh(&format!("ifconfig {tap}")).contains("groups: tap"));
    assert!(std::path::Path::new("/dev").join(&tap).exists(), "bhyve opens it by this name");
    assert!(sh("ifconfig skb-pods").contains(&format!("member: {port}")));
    host.call("CHECK", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    host.call("DEL", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    assert!(!there(&port) && !there(&tap));
}

#[test]
fn a_tap_that_was_given_is_given_back_when_add_fails() {
    let _turn = alone();
    let host = Host::new(None);
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let result = host.call("ADD", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    let port = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    host.call("DEL", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    for conf in [conf.clone(), limited(&conf)] {
        let tap = sh("ifconfig tap create").trim().to_owned();
        // Somebody else's node is where the filter, or what limits, is to be.
        sh(&format!("kldload -n ng_hole; ngctl mkpeer {tap}: hole lower hook"));
        let groups = sh(&format!("ifconfig {tap}"));
        let failed =
            host.call_with(&format!("SKEP_TAP={tap}"), "ADD", "vm", "0", &conf).unwrap_err().to_string();
        assert!(failed.contains("ilter") || failed.contains("limit"), "{failed}");
        assert!(
            there(&tap) && !there(&port) && !there(&port.replacen("skv", "ski", 1)),
            "{}",
            sh("ifconfig -l")
        );
        assert!(!sh(&format!("ifconfig {tap}")).contains("skep"), "before: {groups}");
        assert_eq!(host.files(), Vec::<String>::new());
        sh(&format!("ifconfig {tap} destroy"));
    }
}

/// What another plugin would make: a bridge, and a jail on it. Gone with the value.
struct Foreign {
    jail: Jail,
    port: String,
    address: &'static str,
}

impl Foreign {
    fn new(address: &'static str) -> Self {
        let jail = Jail::new();
        let port = sh("ifconfig epair create").trim().to_owned();
        let inner = port.strip_suffix('a').map(|stem| format!("{stem}b")).unwrap();
        sh(&format!(
            "ifconfig bridge77 >/dev/null 2>&1 || ifconfig bridge77 create inet 10.8.0.1/24 up\n\
             ifconfig bridge77 addm {port}; ifconfig {port} up; ifconfig {inner} vnet {}",
            jail.name
        ));
        jail.sh(&format!("ifconfig {inner} name eth0 >/dev/null; ifconfig eth0 inet {address}/24 up"));
        Self { jail, port, address }
    }

    fn result(&self) -> Value {
        json!({"cniVersion": "1.0.0", "interfaces": [{"name": "bridge77"}, {"name": self.port},
            {"name": "eth0", "sandbox": self.jail.name}],
            "ips": [{"address": format!("{}/24", self.address), "gateway": "10.8.0.1", "interface": 2}]})
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        sh(&format!("ifconfig {} destroy || true", self.port));
    }
}

#[test]
fn it_filters_what_another_plugin_of_the_chain_made() {
    let _turn = alone();
    let host = Host::new(None);
    let mut conf =
        json!({"cniVersion": "1.0.0", "name": "chain", "type": "skep-cni", "dataDir": host.data_dir()});
    merge(
        &mut conf,
        json!({"policy": {"egress": {"allow": [{"cidr": "10.8.0.0/24", "protocol": "tcp", "ports": [80]}]},
            "ingress": {"allow": ["any"]}}}),
    );
    let (a, b) = (Foreign::new("10.8.0.2"), Foreign::new("10.8.0.3"));
    for port in [80, 81] {
        b.jail.serve_tcp(&format!("0.0.0.0:{port}"));
    }
    assert!(a.jail.reaches("10.8.0.3:81"), "nothing is filtered yet");
    let with = |one: &Foreign| {
        let mut conf = conf.clone();
        conf["prevResult"] = one.result();
        conf
    };
    for (id, one) in [("a", &a), ("b", &b)] {
        let result =
            host.call("ADD", id, &one.jail.name, &with(one)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(result["ips"], one.result()["ips"]);
        host.call("CHECK", id, &one.jail.name, &with(one)).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(a.jail.reaches("10.8.0.3:80"));
    assert!(a.jail.blocked("10.8.0.3:81"));
    // Another address than the one it has in the result is nobody's.
    a.jail.sh("ifconfig eth0 inet 10.8.0.99/24 alias");
    let spoofed = a.jail.ask(|| {
        let socket = UdpSocket::bind("10.8.0.99:0").unwrap();
        let _ = socket.send_to(b"?", "10.8.0.3:80");
        true
    });
    assert!(spoofed && host.spoofed("a") > 0);
    for (id, one) in [("a", &a), ("b", &b)] {
        host.call("DEL", id, &one.jail.name, &with(one)).unwrap_or_else(|error| panic!("{error}"));
        assert!(there(&one.port), "the other plugin's interface is not ours to remove");
        assert!(!sh(&format!("ifconfig {}", one.port)).contains("skep"));
    }
    assert!(a.jail.reaches("10.8.0.3:81"), "it is as it was");
    assert!(sh("ifconfig bridge77").contains(&format!("member: {} flags=3<LEARNING,DISCOVER>", a.port)));
    assert_eq!(host.files(), Vec::<String>::new());
    drop((a, b));
    sh("ifconfig bridge77 destroy");
}

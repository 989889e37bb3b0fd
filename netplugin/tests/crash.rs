//! Calls killed at any instant leave nothing that a later call does not clear away.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Container, Host, Ns};

/// Starts a call and kills it after a while; whether it had ended by itself.
fn killed(host: &Host, verb: &str, id: &str, netns: &str, conf: &Value, after: Duration) -> bool {
    host.ns.run(|| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_skep-cni"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        std::thread::sleep(after);
        let ended = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        ended
    })
}

#[test]
fn an_add_or_del_killed_at_any_instant_is_undone_by_del() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    // Five addresses: one lost for good by each kill would soon be too many.
    let conf = host.conf(
        "pods",
        "10.1.0.0/29",
        json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}], "bandwidth": {"egressRate": 1_000_000}}}),
    );
    let (mut cut_short, mut rounds) = (0, 0_u32);
    // Steps of a tenth of a millisecond, through all of an ADD's few; more on a machine that is slower.
    while cut_short < 60 && rounds < 400 {
        let after = Duration::from_micros(u64::from(rounds % 100) * 100);
        let ns = Ns::new();
        if !killed(&host, "ADD", "a", &ns.path(), &conf, after) {
            cut_short += 1;
        }
        killed(&host, "DEL", "a", &ns.path(), &conf, after);
        host.call("DEL", "a", "eth0", &ns.path(), &conf).unwrap();
        assert!(!ns.ip("-br link").contains("eth0"));
        assert_eq!(host.ns.census(), before, "after {after:?}");
        rounds += 1;
    }
    assert!(cut_short > 0);
    // And everything can be had again.
    let all: Vec<Container> =
        (0..5).map(|n| host.add(&format!("c{n}"), &host.conf("pods", "10.1.0.0/29", json!({})))).collect();
    for container in &all {
        host.del(container, &conf);
    }
    assert_eq!(host.ns.census(), before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn what_a_kill_left_behind_goes_with_gc_too() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    let conf = host.pods(json!({}));
    for n in 0..40_u64 {
        let ns = Ns::new();
        killed(&host, "ADD", &format!("c{n}"), &ns.path(), &conf, Duration::from_micros(n * 200));
    }
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    host.call("GC", "", "", "", &gc).unwrap();
    assert_eq!(host.ns.census(), before);
    assert_eq!(host.files(), Vec::<String>::new());
}

/// The files of a data directory that end so.
fn ending(host: &Host, end: &str) -> usize {
    host.files().iter().filter(|name| name.ends_with(end)).count()
}

#[test]
fn a_change_of_policy_killed_at_any_instant_is_made_whole() {
    needs_root!();
    let host = Host::new();
    let conf = host.pods(json!({"policy": {"ingress": {"allow": ["any"]}}}));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.ns.serve_tcp("0.0.0.0:80");
    let target = format!("{}:80", b.ip());
    let dir = host.data_dir();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skep-cni"));
        command.args(["--data-dir", dir.to_str().unwrap()]).args(arguments);
        command
    };
    // As many addresses as take the kernel some milliseconds; with one more, everybody is allowed.
    let many: Vec<String> =
        (0..4000_u32).map(|n| std::net::Ipv4Addr::from(0x0b00_0000 + n * 2).to_string()).collect();
    let policies =
        [json!({"egress": {"allow": many}}), json!({"egress": {"allow": ["10.1.0.0/24"], "deny": many}})];
    // Kills a change after a while; without one, what a whole change takes.
    let change = |policy: &Value, kill: Option<Duration>| {
        host.ns.run(|| {
            let mut child = command(&["policy", "pods", "a"]).stdin(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(policy.to_string().as_bytes()).unwrap();
            let start = Instant::now();
            if let Some(after) = kill {
                std::thread::sleep(after);
                child.kill().unwrap();
            }
            child.wait().unwrap();
            start.elapsed()
        })
    };
    let whole = change(&policies[1], None);
    let (mut staged, mut rounds) = (0, 0_u32);
    while staged < 3 && rounds < 300 {
        change(&policies[rounds as usize % 2], Some(whole * (rounds % 50) / 50));
        rounds += 1;
        if ending(&host, ".next") == 0 {
            continue;
        }
        staged += 1;
        assert!(host.ns.run(|| command(&["restore"]).status().unwrap()).success());
        assert_eq!(ending(&host, ".next"), 0);
        // What is written down is what holds, whichever of the two it came to be.
        let store = skep_cni::network::Store::new(&dir);
        let record =
            store.attachments("pods").unwrap().into_iter().find(|one| one.container_id == "a").unwrap();
        let open = !record.policy.egress.deny.is_empty();
        assert_eq!(if open { a.ns.reaches(&target) } else { !a.ns.blocked(&target) }, open, "round {rounds}");
        host.check(&a, &conf).unwrap();
    }
    assert!(staged > 0, "no kill in {rounds} came in time");
    host.del(&a, &conf);
    host.del(&b, &conf);
    assert_eq!(host.files(), Vec::<String>::new());
}

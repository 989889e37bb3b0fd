//! Calls killed at any instant leave nothing that a later call does not clear away.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

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
    let conf = host.conf("pods", "10.1.0.0/24", json!({}));
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

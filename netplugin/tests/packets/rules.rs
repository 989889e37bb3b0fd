//! Rules that are changed, removed and put back while sandboxes live; what they count and limit.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::set_policy;
use crate::support::{AGAIN, Container, Daemon, Host, Ns, PATIENCE, SILENCE, comes, open_policy, policy};
use serde_json::{Value, json};
use skep_cni::network::Store;
use skep_cni::plugin;

#[test]
fn flushing_the_ruleset_loses_nothing_for_long() {
    needs_root!();
    let host = Host::new();
    let conf = host.pods(policy(
        json!({"allow": [{"cidr": "10.1.0.0/24", "protocol": "tcp", "ports": [80]}]}),
        json!({"allow": ["any"]}),
    ));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.ns.serve_tcp("0.0.0.0:80");
    b.ns.serve_tcp("0.0.0.0:81");
    host.ns.nft("flush ruleset");
    let store = Store::new(host.data_dir());
    let restore =
        || host.ns.run(|| plugin::restore(&skep_cni::datapath::Host::new().unwrap(), &store).unwrap());
    assert!(restore(), "there was something to restore");
    assert!(!restore(), "and then nothing");
    host.check(&a, &conf).unwrap();
    host.check(&b, &conf).unwrap();
    assert!(a.ns.reaches(&format!("{}:80", b.ip())));
    assert!(a.ns.blocked(&format!("{}:81", b.ip())));
    // An ADD restores as well.
    host.ns.nft("delete table inet skep");
    let c = host.add("c", &conf);
    assert!(c.ns.reaches(&format!("{}:80", b.ip())));
    host.check(&a, &conf).unwrap();
}

#[test]
fn what_was_carried_and_refused_is_counted() {
    needs_root!();
    let host = Host::new();
    let conf = host.pods(policy(
        json!({"allow": [{"cidr": "10.1.0.0/24", "protocol": "tcp", "ports": [80]}]}),
        json!({"allow": [{"protocol": "tcp", "ports": [80]}]}),
    ));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.ns.serve_tcp("0.0.0.0:80");
    assert!(a.ns.reaches(&format!("{}:80", b.ip())));
    assert!(a.ns.blocked(&format!("{}:81", b.ip())));
    let store = Store::new(host.data_dir());
    let status = host.ns.run(|| plugin::status(&skep_cni::datapath::Host::new().unwrap(), &store).unwrap());
    let of =
        |id: &str| status.networks[0].attachments.iter().find(|one| one.container_id == id).unwrap().clone();
    assert!(of("a").problems.is_empty(), "{:?}", of("a").problems);
    assert!(of("a").counters.denied_out_packets > 0);
    assert_eq!(of("b").counters.denied_out_packets, 0);
    assert!(of("b").counters.received_bytes > 0 && of("b").counters.sent_bytes > 0);
}

#[test]
fn bandwidth_is_limited_both_ways() {
    needs_root!();
    let host = Host::new();
    let before = host.ns.census();
    let mut conf = host.pods(open_policy());
    let free = host.add("free", &conf);
    conf["runtimeConfig"] = json!({"bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 100_000, "egressRate": 1_000_000, "egressBurst": 100_000}});
    let limited = host.add("limited", &conf);
    host.check(&limited, &conf).unwrap();
    assert!(free.ns.ask_udp(&format!("{}:1", limited.ip()), SILENCE).is_none());
    let pair = |from: &Container, to: &Container| {
        let target = to.ns.run(|| UdpSocket::bind("0.0.0.0:5000").unwrap());
        let source = from.ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        source.connect(format!("{}:5000", to.ip())).unwrap();
        (source, target)
    };
    // In rounds, so that nothing overflows.
    let round = |source: &UdpSocket| (0..50).for_each(|_| drop(source.send(&[0; 1000])));
    let other = host.add("other", &host.pods(open_policy()));
    let (source, target) = pair(&free, &other);
    target.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..40 {
        round(&source);
        assert!((0..50).all(|_| target.recv(&mut [0; 1500]).is_ok()), "without a limit all arrives");
    }
    // 125 KB/s: a hundred and some of these, and those of the burst. Far more are sent.
    for (from, to) in [(&free, &limited), (&limited, &free)] {
        let (source, target) = pair(from, to);
        target.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let (begun, mut arrived) = (Instant::now(), 0_u32);
        while arrived < 300 {
            assert!(begun.elapsed() < PATIENCE, "{} to {}: only {arrived} arrive", from.id, to.id);
            round(&source);
            while arrived < 300 && target.recv(&mut [0; 1500]).is_ok() {
                arrived += 1;
            }
        }
        let permitted = 50.0 + 125.0 * begun.elapsed().as_secs_f64();
        assert!(f64::from(arrived) < permitted, "{} to {}: {arrived} arrive", from.id, to.id);
    }
    for container in [&free, &limited, &other] {
        host.del(container, &conf);
    }
    assert_eq!(host.ns.census(), before);
}

#[test]
fn the_watcher_puts_rules_back_at_once() {
    needs_root!();
    let host = Host::new();
    let conf = host.pods(open_policy());
    let a = host.add("a", &conf);
    let _watcher = host.ns.run(|| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skep-cni"));
        command.args(["watch", "--data-dir"]).arg(host.data_dir());
        Daemon(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    });
    // By itself it looks when it starts and each ten seconds: as often as this only one that hears puts them back.
    let begun = Instant::now();
    for _ in 0..12 {
        host.ns.nft("flush ruleset");
        assert!(comes(|| host.check(&a, &conf).is_ok()), "not put back");
    }
    assert!(begun.elapsed() < PATIENCE, "it does not hear of it");
}

#[test]
fn a_policy_kept_open_follows_what_other_calls_do() {
    needs_root!();
    let host = Host::new();
    let conf = host.pods(policy(json!({}), json!({"allow": ["any"]})));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.ns.serve_tcp("0.0.0.0:80");
    let target = format!("{}:80", b.ip());
    let store = skep_cni::network::Store::new(host.data_dir());
    let lists = |text: Value| serde_json::from_value::<skep_cni::policy::Policy>(text).unwrap();
    let open = || lists(json!({"egress": {"allow": ["any"]}}));
    host.ns.run(|| {
        let datapath = skep_cni::datapath::Host::new().unwrap();
        let mut live = plugin::LivePolicy::open(&datapath, &store, "pods", "a", "eth0").unwrap();
        assert!(a.ns.blocked(&target));
        live.replace(open()).unwrap();
        assert!(a.ns.reaches(&target));
        live.replace(lists(json!({"egress": {"allow": ["any"], "deny": [b.ip()]}}))).unwrap();
        assert!(a.ns.blocked(&target));
        // Another process's change, then one of ours.
        set_policy(&host, "a", &json!({"egress": {"allow": ["any"]}}));
        assert!(a.ns.reaches(&target));
        live.replace(lists(json!({}))).unwrap();
        assert!(a.ns.blocked(&target));
        // The network's policy changes by an ADD, and the tables go: both are seen.
        let mut closed = conf.clone();
        closed["policy"]["ingress"] = json!({});
        let c = host.add("c", &closed);
        host.ns.nft("flush ruleset");
        live.replace(open()).unwrap();
        assert!(a.ns.blocked(&target));
        host.check(&a, &closed).unwrap();
        let d = host.add("d", &conf);
        assert!(a.ns.reaches(&target));
        // It ends with its sandbox, whoever has the name next.
        host.del(&a, &conf);
        let error = live.replace(open()).unwrap_err();
        assert!(matches!(error, skep_cni::cni::CniError::NotAttached { .. }), "{error}");
        let again = host.add("a", &conf);
        assert!(again.ns.blocked(&target), "the next of this name inherits no policy");
        live.replace(open()).unwrap_err();
        for container in [&again, &b, &c, &d] {
            host.del(container, &conf);
        }
    });
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn a_list_is_what_was_asked_for_however_it_came_about() {
    needs_root!();
    let host = Host::new();
    let conf = host.pods(policy(json!({}), json!({"allow": ["any"]})));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    let _other = host.add("c", &host.conf("other", "10.2.0.0/24", json!({})));
    b.ns.serve_tcp("0.0.0.0:80");
    let target = format!("{}:80", b.ip());
    let store = skep_cni::network::Store::new(host.data_dir());
    let many =
        |count: usize| (0..count).map(|n| format!("10.9.{}.{}", n / 200, n % 200 + 1)).collect::<Vec<_>>();
    let lists = |deny: &[String]| {
        serde_json::from_value::<skep_cni::policy::Policy>(
            json!({"egress": {"allow": ["any"], "deny": deny}}),
        )
        .unwrap()
    };
    let listed = || host.ns.ruleset().matches("10.9.").count();
    host.ns.run(|| {
        let datapath = skep_cni::datapath::Host::new().unwrap();
        let mut live = plugin::LivePolicy::open(&datapath, &store, "pods", "a", "eth0").unwrap();
        // More than there is room for from the start, and fewer again.
        for count in [100, 101, 101, 199, 390, 389, 100, 0, 1] {
            let mut deny = many(count);
            live.replace(lists(&deny)).unwrap();
            assert_eq!(listed(), count);
            assert!(a.ns.reaches(&target), "{count}");
            deny.push(b.ip());
            live.replace(lists(&deny)).unwrap();
            assert_eq!(listed(), count);
            assert!(a.ns.blocked(&target), "{count}");
            host.check(&a, &conf).unwrap();
        }
        // Others change it in between: by the same connection to the kernel, by another, with other rules than ours.
        let mut other = plugin::LivePolicy::open(&datapath, &store, "pods", "a", "eth0").unwrap();
        live.replace(lists(&many(50))).unwrap();
        other.replace(lists(&many(70))).unwrap();
        live.replace(lists(&many(51))).unwrap();
        assert_eq!(listed(), 51);
        set_policy(&host, "a", &json!({"egress": {"deny": many(60)}}));
        live.replace(lists(&many(52))).unwrap();
        assert_eq!(listed(), 52);
        host.ns.nft("flush ruleset");
        live.replace(lists(&many(52))).unwrap();
        assert_eq!(listed(), 52);
        host.check(&a, &conf).unwrap();
        live.replace(lists(&[])).unwrap();
    });
    host.check(&a, &conf).unwrap();
    set_policy(&host, "a", &json!({"egress": {"deny": many(3)}}));
    assert_eq!(listed(), 3);
    host.del(&a, &conf);
    assert_eq!(listed(), 0);
    assert!(!host.ns.ruleset().contains("set deny_"), "{}", host.ns.ruleset());
}

/// Sends a packet by UDP with `from` as its source, and says whether somebody at `to` gets it.
fn arrives(sender: &Ns, from: &str, receiver: &Ns, to: &str, patience: Duration) -> bool {
    let socket = receiver.run(|| UdpSocket::bind(to).unwrap());
    socket.set_read_timeout(Some(patience.min(AGAIN))).unwrap();
    let source = sender.run(|| UdpSocket::bind(from).unwrap());
    let begun = Instant::now();
    loop {
        source.send_to(b"!", to).unwrap();
        if socket.recv_from(&mut [0; 8]).is_ok() {
            return true;
        }
        if begun.elapsed() > patience {
            return false;
        }
    }
}

#[test]
fn nobody_outside_passes_for_a_neighbour() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    // The host itself takes packets from anywhere.
    for device in ["all", "out0"] {
        host.ns.set_sysctl(&format!("ipv4/conf/{device}/rp_filter"), "0");
    }
    let conf = host.pods(json!({"ipam": {"ranges": [[{"subnet": "fd01::/64"}]]},
            "policy": {"egress": {"allow": ["any"]},
                "ingress": {"allow": ["10.1.0.0/24", "192.0.2.2", "fd01::/64", "2001:db8::2"]}}}));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    for (n, prefix, route, friend) in [
        (0, 32, "10.1.0.0/24 via 192.0.2.1", "192.0.2.2"),
        (1, 128, "fd01::/64 via 2001:db8::1", "2001:db8::2"),
    ] {
        outside.ip(&format!("route add {route}"));
        outside.ip(&format!("addr add {}/{prefix} dev lo nodad", b.address(n)));
        let at = |ip: &str, port: u16| SocketAddr::new(ip.parse().unwrap(), port).to_string();
        let (to, forged) = (at(&a.address(n), 9000), at(&b.address(n), 0));
        assert!(arrives(&b.ns, &forged, &a.ns, &to, PATIENCE), "from the neighbour");
        assert!(arrives(&outside, &at(friend, 0), &a.ns, &to, PATIENCE), "from a friend outside");
        assert!(!arrives(&outside, &forged, &a.ns, &to, SILENCE), "from outside, under a neighbour's name");
    }
    host.del(&a, &conf);
    host.del(&b, &conf);
    assert!(!host.ns.ruleset().contains("skep"));
}

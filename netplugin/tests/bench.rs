//! Figures beside those of the reference plugins, on the same machine in the same minute. Nothing is asserted: run
//! with `cargo test --release -p skep-cni --test bench -- --ignored --nocapture`.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::similar_names, clippy::cast_precision_loss, reason = "a benchmark")]
#![allow(clippy::items_after_statements, clippy::semicolon_if_nothing_returned, reason = "a benchmark")]

mod support;

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_cni::datapath::Datapath as _;
use skep_cni::network::Store;
use skep_cni::plugin;
use support::{Container, Host, Ns, PATIENCE, open_policy};

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// ADD or DEL through the chain that gives what ours gives: bridge, portmap, firewall.
fn chain(host: &Host, verb: &str, id: &str, ns: &str, confs: &[Value]) {
    let mut previous = Value::Null;
    let order: Vec<&Value> =
        if verb == "ADD" { confs.iter().collect() } else { confs.iter().rev().collect() };
    for conf in order {
        let mut conf = conf.clone();
        if !previous.is_null() {
            conf["prevResult"] = previous.clone();
        }
        let binary = format!("/usr/lib/cni/{}", conf["type"].as_str().unwrap());
        let result = host
            .call_with(&binary, verb, id, "eth0", ns, &conf)
            .unwrap_or_else(|error| panic!("{binary} {verb}: {error}"));
        if !result.is_null() {
            previous = result;
        }
    }
}

fn reference(host: &Host, port: u16) -> Vec<Value> {
    let leases = host.dir.path().join("leases");
    let ports = json!({"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]});
    vec![
        json!({"cniVersion": "1.0.0", "name": "ref", "type": "bridge", "bridge": "ref0", "isGateway": true, "ipMasq": true,
            "isDefaultGateway": true, "ipam": {"type": "host-local", "dataDir": leases, "subnet": "10.50.0.0/16"}}),
        json!({"cniVersion": "1.0.0", "name": "ref", "type": "portmap", "snat": true, "capabilities": {"portMappings": true}, "runtimeConfig": ports}),
        json!({"cniVersion": "1.0.0", "name": "ref", "type": "firewall", "backend": "iptables"}),
    ]
}

fn ours(host: &Host, port: u16) -> Value {
    let mut conf = host.conf(
        "pods",
        "10.60.0.0/16",
        json!({"cniVersion": "1.0.0", "ipMasq": true,
        "runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 80}]}}),
    );
    support::merge(&mut conf, open_policy());
    conf
}

#[test]
#[ignore = "a benchmark"]
fn add_and_del() {
    needs_root!();
    const ROUNDS: u16 = 15;
    let host = Host::new();
    // One of each stays, so that neither pays for making and removing its bridge.
    let stay = Ns::new();
    chain(&host, "ADD", "stay", &stay.path(), &reference(&host, 1));
    let _ours = host.add("stay", &ours(&host, 2));
    let mut times: [Vec<Duration>; 4] = Default::default();
    for n in 0..ROUNDS {
        let ns = Ns::new();
        let id = format!("r{n}");
        let mut timed = |slot: usize, work: &dyn Fn()| {
            let start = Instant::now();
            work();
            times[slot].push(start.elapsed());
        };
        timed(0, &|| chain(&host, "ADD", &id, &ns.path(), &reference(&host, 1000 + n)));
        timed(1, &|| chain(&host, "DEL", &id, &ns.path(), &reference(&host, 1000 + n)));
        let conf = ours(&host, 3000 + n);
        timed(2, &|| drop(host.call("ADD", &id, "eth0", &ns.path(), &conf).unwrap()));
        timed(3, &|| drop(host.call("DEL", &id, "eth0", &ns.path(), &conf).unwrap()));
    }
    let [ref_add, ref_del, our_add, our_del] = times.map(median);
    println!(
        "ADD alone: bridge+portmap+firewall {ref_add:?}, skep-cni {our_add:?}, ratio {:.1}",
        ref_add.as_secs_f64() / our_add.as_secs_f64()
    );
    println!(
        "DEL alone: bridge+portmap+firewall {ref_del:?}, skep-cni {our_del:?}, ratio {:.1}",
        ref_del.as_secs_f64() / our_del.as_secs_f64()
    );
    const CROWD: u16 = 50;
    let namespaces: Vec<Ns> = (0..CROWD).map(|_| Ns::new()).collect();
    let crowd = |work: &(dyn Fn(u16, &Ns) + Sync)| {
        let start = Instant::now();
        thread::scope(|scope| {
            for (n, ns) in (0..CROWD).zip(&namespaces) {
                scope.spawn(move || work(n, ns));
            }
        });
        start.elapsed()
    };
    let ref_add =
        crowd(&|n, ns| chain(&host, "ADD", &format!("p{n}"), &ns.path(), &reference(&host, 5000 + n)));
    let ref_del =
        crowd(&|n, ns| chain(&host, "DEL", &format!("p{n}"), &ns.path(), &reference(&host, 5000 + n)));
    let our_add = crowd(&|n, ns| {
        drop(host.call("ADD", &format!("p{n}"), "eth0", &ns.path(), &ours(&host, 7000 + n)).unwrap())
    });
    let our_del = crowd(&|n, ns| {
        drop(host.call("DEL", &format!("p{n}"), "eth0", &ns.path(), &ours(&host, 7000 + n)).unwrap())
    });
    println!(
        "50 ADDs at once: reference {ref_add:?}, skep-cni {our_add:?}, ratio {:.1}",
        ref_add.as_secs_f64() / our_add.as_secs_f64()
    );
    println!(
        "50 DELs at once: reference {ref_del:?}, skep-cni {our_del:?}, ratio {:.1}",
        ref_del.as_secs_f64() / our_del.as_secs_f64()
    );
}

/// Rounds of a measurement, in each of which all ways take their turn, so that a busy machine is busy for all.
const ROUNDS: usize = 21;

fn addresses(size: u32, round: usize) -> Vec<String> {
    // Every second address, so that no two make one range; others in each round, so that nothing stays what it is.
    let first = 0x0b00_0000 + u32::try_from(round).unwrap() * 0x0010_0000;
    (0..size).map(|n| std::net::Ipv4Addr::from(first + n * 2).to_string()).collect()
}

fn deny(addresses: &[String]) -> skep_cni::policy::Policy {
    serde_json::from_value(json!({"egress": {"deny": addresses}})).unwrap()
}

#[test]
#[ignore = "a benchmark"]
fn replacing_a_table() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/16", open_policy());
    let _a = host.add("a", &conf);
    let store = Store::new(host.data_dir());
    host.ns.nft("table inet bench {\n set s { type ipv4_addr; flags interval; }\n}");
    for size in [1_u32, 1000, 10000] {
        // The way an administrator's script would do it.
        let forked = |round: usize| {
            let list = addresses(size, round).join(",");
            let script = format!("flush set inet bench s\nadd element inet bench s {{ {list} }}\n");
            let start = Instant::now();
            host.ns.nft(&script);
            start.elapsed()
        };
        let [mut nft, mut command, mut once, mut kept, mut bare, mut nearly, mut nft_nearly]: [Vec<Duration>;
            7] = Default::default();
        host.ns.run(|| {
            let datapath = skep_cni::datapath::Host::new().unwrap();
            let mut live = plugin::LivePolicy::open(&datapath, &store, "pods", "a", "eth0").unwrap();
            let network = store.network("pods").unwrap().unwrap();
            let mut record = store.attachments("pods").unwrap().remove(0);
            for round in 0..ROUNDS {
                nft.push(forked(round));
                let policy = deny(&addresses(size, round));
                let text = serde_json::to_string(&policy).unwrap();
                let start = Instant::now();
                skep(&host, &["policy", "pods", "a"], &text);
                command.push(start.elapsed());
                let start = Instant::now();
                plugin::set_policy(&datapath, &store, "pods", "a", "eth0", policy).unwrap();
                once.push(start.elapsed());
                let policy = deny(&addresses(size, round + 1));
                let start = Instant::now();
                live.replace(policy).unwrap();
                kept.push(start.elapsed());
                // Without the sandbox's files: back to the list before.
                record.policy = deny(&addresses(size, round));
                let start = Instant::now();
                datapath.update_policy(&network, &record, &|| store.load(), &|_, _| false).unwrap();
                bare.push(start.elapsed());
                // A hundredth of the list is other addresses. (The connection to the kernel is told of the list once more, and
                // so is nft's set: both know it.)
                let few = usize::try_from(size.div_ceil(100)).unwrap();
                let mut next = addresses(size, round + 1);
                let gone = next.split_off(next.len() - few);
                let come = addresses(u32::try_from(few).unwrap(), 40);
                next.extend(come.clone());
                live.replace(deny(&addresses(size, round + 1))).unwrap();
                let policy = deny(&next);
                let start = Instant::now();
                live.replace(policy).unwrap();
                nearly.push(start.elapsed());
                host.ns.nft(&format!(
                    "flush set inet bench s\nadd element inet bench s {{ {} }}\n",
                    addresses(size, round + 1).join(",")
                ));
                let script = format!(
                    "delete element inet bench s {{ {} }}\nadd element inet bench s {{ {} }}\n",
                    gone.join(","),
                    come.join(",")
                );
                let start = Instant::now();
                host.ns.nft(&script);
                nft_nearly.push(start.elapsed());
            }
        });
        let least_of = |times: &[Duration]| times.iter().min().copied().unwrap_or_default();
        let (nft_least, nft) = (least_of(&nft), median(nft));
        println!(
            "replace {size} addresses: nft exec {nft:?} (least {nft_least:?}); told the difference alone, a hundredth, {:?} (least \
             {:?})",
            median(nft_nearly.clone()),
            least_of(&nft_nearly)
        );
        for (name, times) in [
            ("skep-cni policy exec", command),
            ("set_policy", once),
            ("LivePolicy::replace", kept),
            ("the kernel's part of it", bare),
            ("LivePolicy::replace, where a hundredth differs", nearly),
        ] {
            let (least, time) = (least_of(&times), median(times));
            println!(
                "replace {size} addresses: {name} {time:?} (least {least:?}), ratio {:.1} (of the least {:.1}), {:.0} addresses/s, {:.0} updates/s",
                nft.as_secs_f64() / time.as_secs_f64(),
                nft_least.as_secs_f64() / least.as_secs_f64(),
                f64::from(size) / time.as_secs_f64(),
                1.0 / time.as_secs_f64()
            );
        }
    }
}

/// How often a list of `size` addresses can be replaced, one after the other, with nothing beside it.
#[test]
#[ignore = "a benchmark"]
fn rate_of_updates() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/16", open_policy());
    let _a = host.add("a", &conf);
    let store = Store::new(host.data_dir());
    for (size, times) in [(1_u32, 20_000_u32), (1000, 2000)] {
        let policies: Vec<_> = (0..8).map(|round| deny(&addresses(size, round))).collect();
        host.ns.run(|| {
            let datapath = skep_cni::datapath::Host::new().unwrap();
            let mut live = plugin::LivePolicy::open(&datapath, &store, "pods", "a", "eth0").unwrap();
            let start = Instant::now();
            for policy in policies.iter().cycle().take(times as usize) {
                live.replace(policy.clone()).unwrap();
            }
            let rate = f64::from(times) / start.elapsed().as_secs_f64();
            println!(
                "{size} addresses replaced again and again: {rate:.0} updates/s, {:.0} addresses/s",
                rate * f64::from(size)
            );
        });
    }
}

/// The program, as an administrator runs it.
fn skep(host: &Host, arguments: &[&str], input: &str) {
    let dir = host.data_dir();
    let mut all = vec!["--data-dir", dir.to_str().unwrap()];
    all.extend(arguments);
    let output = host.ns.command(env!("CARGO_BIN_EXE_skep-cni"), &all, input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Opens new flows; the times until their first answers, in order.
fn new_flows(from: &Ns, target: &str) -> Vec<Duration> {
    let mut times = from.run(|| {
        (0..3000)
            .map(|_| {
                // A new socket is a new port, a new flow.
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                let start = Instant::now();
                socket.send_to(b"?", target).unwrap();
                socket.recv(&mut [0; 64]).unwrap();
                start.elapsed()
            })
            .collect::<Vec<_>>()
    });
    times.sort();
    times
}

#[test]
#[ignore = "a benchmark"]
fn cost_with_many_sandboxes() {
    needs_root!();
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/16", open_policy());
    let publishing = |port: u16| {
        let mut conf = conf.clone();
        conf["runtimeConfig"] = json!({"portMappings": [{"hostPort": port, "containerPort": 80}]});
        conf
    };
    // A thousand ports are more than a bridge has by default room for (1024): a few remain.
    let mut containers: Vec<Container> = Vec::new();
    for count in [2, 10, 100, 1000] {
        while containers.len() < count {
            let from = containers.len();
            let batch = (count - from).min(20);
            thread::scope(|scope| {
                let (host, publishing) = (&host, &publishing);
                let adds: Vec<_> = (from..from + batch)
                    .map(|n| {
                        let conf = publishing(10_000 + u16::try_from(n).unwrap());
                        scope.spawn(move || host.add(&format!("c{n}"), &conf))
                    })
                    .collect();
                containers.extend(adds.into_iter().map(|add| add.join().unwrap()));
            });
        }
        let [mut adds, mut dels]: [Vec<Duration>; 2] = Default::default();
        for n in 0..15 {
            let conf = publishing(20_000 + n);
            let ns = Ns::new();
            let start = Instant::now();
            host.call("ADD", "extra", "eth0", &ns.path(), &conf).unwrap();
            adds.push(start.elapsed());
            let start = Instant::now();
            host.call("DEL", "extra", "eth0", &ns.path(), &conf).unwrap();
            dels.push(start.elapsed());
        }
        let least = |times: &[Duration]| times.iter().min().copied().unwrap_or_default();
        println!(
            "{count} sandboxes: one more ADD, least {:?}, median {:?}",
            least(&adds),
            median(adds.clone())
        );
        println!("{count} sandboxes: its DEL, least {:?}, median {:?}", least(&dels), median(dels.clone()));
        if count == 2 {
            containers[1].ns.serve_udp("0.0.0.0:53");
        }
        let times = new_flows(&containers[0].ns, &format!("{}:53", containers[1].ip()));
        println!(
            "{count} sandboxes: first packet and answer of a new flow, median {:?}, 10th percentile {:?}",
            times[times.len() / 2],
            times[times.len() / 10]
        );
    }
}

/// ADD and DEL on a host that tracks many flows of others.
#[test]
#[ignore = "a benchmark"]
fn add_and_del_among_many_flows() {
    needs_root!();
    let host = Host::new();
    let _outside = host.outside();
    let conf = host.conf("pods", "10.1.0.0/16", open_policy());
    let busy = host.add("many", &conf);
    for (flows, first) in [(0_u16, 0_u16), (10_000, 10_000), (40_000, 20_000)] {
        busy.ns.run(|| {
            for source in 0..flows.div_ceil(20_000) {
                let socket = std::net::UdpSocket::bind(format!("0.0.0.0:{}", 6000 + source)).unwrap();
                for port in first..first + flows.min(20_000) {
                    socket.send_to(b"?", format!("192.0.2.2:{port}")).unwrap();
                }
            }
        });
        let tracked = host.ns.sysctl("netfilter/nf_conntrack_count");
        let [mut adds, mut dels, mut changes, mut busy_dels, mut bare]: [Vec<Duration>; 5] =
            Default::default();
        let mut extra = conf.clone();
        extra["runtimeConfig"] = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
        // The kernel takes a while to remove a namespace, and what is measured would wait for it.
        let mut spent = Vec::new();
        for n in 0..11 {
            bare.push(deleting_a_veth(&host, &mut spent));
            let ns = Ns::new();
            host.call("ADD", "busy", "eth0", &ns.path(), &extra).unwrap();
            ns.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"?", "192.0.2.2:9").unwrap());
            let start = Instant::now();
            host.call("DEL", "busy", "eth0", &ns.path(), &extra).unwrap();
            busy_dels.push(start.elapsed());
            spent.push(ns);
            let ns = Ns::new();
            let start = Instant::now();
            host.call("ADD", "extra", "eth0", &ns.path(), &extra).unwrap();
            adds.push(start.elapsed());
            let policy = format!(r#"{{"egress":{{"deny":["198.51.100.{n}"]}}}}"#);
            let start = Instant::now();
            skep(&host, &["policy", "pods", "extra"], &policy);
            changes.push(start.elapsed());
            let start = Instant::now();
            host.call("DEL", "extra", "eth0", &ns.path(), &extra).unwrap();
            dels.push(start.elapsed());
            spent.push(ns);
        }
        println!(
            "{tracked} flows tracked: ADD {:?}, DEL {:?} ({:?} where the sandbox had a flow; the kernel alone deletes \
             such a veth pair in {:?}), skep net policy {:?}",
            median(adds),
            median(dels),
            median(busy_dels),
            median(bare),
            median(changes)
        );
    }
}

/// How long the kernel alone takes for what is most of a DEL: a veth pair that is up, on the bridge.
fn deleting_a_veth(host: &Host, spent: &mut Vec<Ns>) -> Duration {
    let ns = Ns::new();
    host.ns.wire("bare", &ns, "eth0");
    host.ns.ip("link set bare master skb-pods");
    let took = host.ns.run(|| {
        let mut route = skep_netlink::Route::open().unwrap();
        let mut message = netlink_packet_route::link::LinkMessage::default();
        message.attributes.push(netlink_packet_route::link::LinkAttribute::IfName("bare".to_owned()));
        let start = Instant::now();
        route.change(netlink_packet_route::RouteNetlinkMessage::DelLink(message), 0).unwrap();
        start.elapsed()
    });
    spent.push(ns);
    took
}

fn transfer(from: &Ns, to: &Ns, at: &str) -> (f64, Duration) {
    to.serve_tcp(&format!("{at}:90"));
    let mut stream =
        from.connect(&format!("{at}:90"), PATIENCE).unwrap_or_else(|| panic!("no connection to {at}"));
    stream.set_nodelay(true).unwrap();
    let mut times = Vec::new();
    for _ in 0..3000 {
        let start = Instant::now();
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        times.push(start.elapsed());
    }
    let listener = to.run(|| std::net::TcpListener::bind(format!("{at}:91")).unwrap());
    let sink = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut total, mut buffer) = (0_usize, vec![0; 1 << 17]);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            total += n;
        }
        total
    });
    let mut stream = from.connect(&format!("{at}:91"), PATIENCE).unwrap();
    let (start, chunk) = (Instant::now(), vec![0; 1 << 17]);
    while start.elapsed() < Duration::from_secs(2) {
        stream.write_all(&chunk).unwrap();
    }
    drop(stream);
    let total = sink.join().unwrap();
    (total as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9, median(times))
}

#[test]
#[ignore = "a benchmark"]
fn throughput_and_round_trip() {
    needs_root!();
    // Plain: two namespaces on a bridge without a filter.
    let plain = Ns::new();
    plain.ip("link add b0 type bridge");
    plain.ip("link set b0 up");
    plain.set_sysctl("bridge/bridge-nf-call-iptables", "0");
    let ends: Vec<Ns> = (0..2)
        .map(|n| {
            let end = Ns::new();
            plain.wire(&format!("p{n}"), &end, "eth0");
            plain.ip(&format!("link set p{n} master b0"));
            end.ip(&format!("addr add 10.9.0.{}/24 dev eth0", n + 1));
            end
        })
        .collect();
    let (rate, rtt) = transfer(&ends[0], &ends[1], "10.9.0.2");
    println!("plain bridge: {rate:.2} Gbit/s, round trip {rtt:?}");
    let host = Host::new();
    let conf = host.conf("pods", "10.1.0.0/16", open_policy());
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    let (rate, rtt) = transfer(&a.ns, &b.ns, &b.ip());
    println!("one bridge, filtered: {rate:.2} Gbit/s, round trip {rtt:?}");
    // Two hosts and a wire: plain, then the sandboxes across VXLAN on it.
    let hosts = [Host::new(), Host::new()];
    hosts[0].ns.wire("u0", &hosts[1].ns, "u0");
    for (n, host) in hosts.iter().enumerate() {
        host.ns.ip(&format!("addr add 198.51.100.{}/24 dev u0", n + 1));
    }
    let (rate, rtt) = transfer(&hosts[0].ns, &hosts[1].ns, "198.51.100.2");
    println!("the wire between two hosts: {rate:.2} Gbit/s, round trip {rtt:?}");
    let nodes = json!([{"name": "a", "address": "198.51.100.1"}, {"name": "b", "address": "198.51.100.2"}]);
    let ends: Vec<Container> = hosts.iter().enumerate().map(|(n, host)| {
        let mut conf = host.conf("vpc", "10.1.0.0/16", json!({"vxlan": {"vni": 5, "nodes": nodes}, "runtimeConfig": {"ips": [format!("10.1.0.{}", n + 5)]}}));
        support::merge(&mut conf, open_policy());
        host.add(&format!("c{n}"), &conf)
    }).collect();
    let (rate, rtt) = transfer(&ends[0].ns, &ends[1].ns, &ends[1].ip());
    println!("across VXLAN, filtered: {rate:.2} Gbit/s, round trip {rtt:?}");
}

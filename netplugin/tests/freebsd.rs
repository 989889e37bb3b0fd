//! The plugin on FreeBSD: vnet jails as hosts and sandboxes, packets between them. Takes root, pf and netgraph.
#![cfg(target_os = "freebsd")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod jails;

use std::net::UdpSocket;

use jails::frames::{arp_answer, ether, udp4};
use jails::{
    Host, Jail, PATIENCE, SILENCE, alone, blocked_from_here, evaluations, merge, open_policy, outside,
    policy, reaches_from_here, sh,
};
use serde_json::{Value, json};

#[test]
fn everything_is_denied_until_allowed() {
    let _turn = alone();
    let host = Host::new(None);
    let (outside, _wire) = outside();
    outside.serve_tcp("0.0.0.0:80");
    let conf = host.conf("pods", "10.1.0.0/24", json!({"ipMasq": true}));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    host.check(&a, &conf).unwrap_or_else(|error| panic!("{error}"));
    b.jail.serve_tcp("0.0.0.0:80");
    assert!(a.jail.blocked("192.0.2.2:80"), "to the outside");
    assert!(a.jail.blocked(&format!("{}:80", b.ip())), "to a neighbour");
    outside.sh("route -q add 10.1.0.0/24 192.0.2.1");
    assert!(outside.blocked(&format!("{}:80", b.ip())), "from the outside");
    for one in [&a, &b] {
        host.del(one, &conf);
    }
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn lists_decide_and_nothing_overrides_what_is_always_denied() {
    let _turn = alone();
    let host = Host::new(None);
    let (outside, _wire) = outside();
    for at in ["0.0.0.0:80", "0.0.0.0:81"] {
        outside.serve_tcp(at);
    }
    outside.serve_udp("0.0.0.0:53");
    let conf = host.conf(
        "pods",
        "10.1.0.0/24",
        json!({"ipMasq": true, "policy": {"alwaysDeny": ["203.0.113.5/32"], "annotations": true, "egress": {
            "allow": [{"cidr": "192.0.2.0/24", "protocol": "tcp", "ports": [80]}]},
            "hostServices": [{"protocol": "tcp", "port": 9999}]}}),
    );
    let machine = std::net::TcpListener::bind("0.0.0.0:9998").unwrap();
    let a = host.add("a", &conf);
    assert!(a.jail.reaches("192.0.2.2:80"));
    assert!(a.jail.blocked("192.0.2.2:81"), "another port");
    assert!(a.jail.silent("192.0.2.2:53"), "another protocol");
    assert!(a.jail.blocked("203.0.113.77:80"), "another address");
    let mut open = conf.clone();
    open["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations":
        {"network.skep.org/policy": json!({"egress": {"allow": ["any"]}}).to_string()}});
    let b = host.add("b", &open);
    assert!(b.jail.reaches("203.0.113.77:80"));
    assert!(b.jail.seen_as("192.0.2.2:53", "192.0.2.1"), "under the host's address");
    assert!(b.jail.blocked("203.0.113.5:80"), "a control network");
    assert!(b.jail.blocked("169.254.169.254:80"), "metadata");
    assert!(b.jail.blocked("192.0.2.1:9998"), "the host");
    assert!(b.jail.blocked("10.1.0.1:9998"), "the host as gateway");
    drop(machine);
    for one in [&a, &b] {
        host.del(one, &conf);
    }
}

#[test]
fn neighbours_groups_and_networks() {
    let _turn = alone();
    let host = Host::new(None);
    let two_stacks = json!({"ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}});
    let mut conf = host.conf("one", "10.1.0.0/24", two_stacks);
    merge(
        &mut conf,
        policy(json!({"allow": ["any"]}), json!({"allow": [{"group": "web", "protocol": "tcp"}]})),
    );
    let in_group = |group: &str| {
        let mut conf = conf.clone();
        conf["policy"]["group"] = json!(group);
        conf
    };
    let (web, other, db) = (
        host.add("web", &in_group("web")),
        host.add("other", &in_group("else")),
        host.add("db", &in_group("db")),
    );
    db.jail.serve_tcp("[::]:80");
    db.jail.serve_tcp("0.0.0.0:80");
    assert!(web.jail.reaches(&format!("{}:80", db.ip())));
    assert!(web.jail.reaches(&format!("[{}]:80", db.address(1))), "by IPv6");
    assert!(other.jail.blocked(&format!("{}:80", db.ip())));
    assert!(other.jail.blocked(&format!("[{}]:80", db.address(1))));
    let two = host.conf("two", "10.2.0.0/24", open_policy());
    let far = host.add("far", &two);
    far.jail.serve_tcp("0.0.0.0:80");
    assert!(web.jail.blocked(&format!("{}:80", far.ip())), "another network, whatever the lists say");
    let mut peered = in_group("web");
    peered["policy"]["peerNetworks"] = json!(["two"]);
    let near = host.add("near", &peered);
    assert!(near.jail.reaches(&format!("{}:80", far.ip())), "peers");
    host.del(&far, &two);
    for one in [&web, &other, &db, &near] {
        host.del(one, &conf);
    }
}

#[test]
fn published_ports_are_reached_and_go_with_the_sandbox() {
    let _turn = alone();
    let host = Host::new(None);
    let (outside, _wire) = outside();
    let mut conf = host.conf("pods", "10.1.0.0/24", policy(json!({"allow": ["10.1.0.0/24"]}), json!({})));
    merge(&mut conf, json!({"ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}}));
    let mut published = conf.clone();
    published["runtimeConfig"] = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]});
    let (a, b) = (host.add("a", &published), host.add("b", &conf));
    a.jail.serve_tcp("0.0.0.0:80");
    a.jail.serve_tcp("[::]:80");
    a.jail.serve_tcp("0.0.0.0:81");
    a.jail.serve_udp("0.0.0.0:53");
    for (at, whose) in [
        ("127.0.0.1:8080", "the loopback"),
        ("192.0.2.1:8080", "an own address"),
        ("10.1.0.1:8080", "the gateway's address"),
        ("[fd01::1]:8080", "an own address, by IPv6"),
    ] {
        assert!(reaches_from_here(at), "from the host itself: {whose}");
    }
    assert!(blocked_from_here("127.0.0.1:8081"), "published is the one port only, to the host, too");
    assert!(outside.reaches("192.0.2.1:8080"), "from outside");
    assert!(outside.seen_as("192.0.2.1:5353", "192.0.2.2"), "with the true source");
    assert!(b.jail.reaches("192.0.2.1:8080"), "from a neighbour");
    assert!(b.jail.reaches("10.1.0.1:8080"), "from a neighbour by the gateway");
    assert!(a.jail.reaches("192.0.2.1:8080"), "from itself");
    outside.sh("route -q add 10.1.0.0/24 192.0.2.1");
    assert!(outside.blocked(&format!("{}:81", a.ip())), "published is the one port only");
    assert!(outside.blocked(&format!("{}:80", a.ip())), "and only by the map");
    host.check(&a, &published).unwrap_or_else(|error| panic!("{error}"));
    sh(&format!("ifconfig {} -group skepport", a.host_ifname()));
    let told = host.check(&a, &published).unwrap_err().to_string();
    assert!(told.contains("group skepport"), "{told}");
    host.del(&a, &published);
    assert!(outside.blocked("192.0.2.1:8080"));
    assert!(blocked_from_here("127.0.0.1:8080"));
    host.del(&b, &conf);
    assert!(
        !sh("netstat -rn").contains("192.0.0.8"),
        "the route for the host's own flows goes with the last network"
    );
}

#[test]
fn a_new_flow_hardly_costs_more_among_many_sandboxes() {
    let _turn = alone();
    let host = Host::new(None);
    let (outside, _wire) = outside();
    outside.serve_tcp("0.0.0.0:80");
    let mut conf = host.conf("pods", "10.1.0.0/24", open_policy());
    merge(&mut conf, json!({"ipMasq": true, "policy": {"hostServices": []}}));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.jail.serve_tcp("0.0.0.0:80");
    outside.sh("route -q add 10.1.0.0/24 192.0.2.1");
    let ways: [(&str, &dyn Fn() -> bool); 3] = [
        ("bridged", &|| a.jail.reaches(&format!("{}:80", b.ip()))),
        ("routed to the outside", &|| a.jail.reaches("192.0.2.2:80")),
        ("routed to a sandbox", &|| outside.reaches(&format!("{}:80", b.ip()))),
    ];
    let measure = || {
        let mut before = evaluations(&[&a, &b]);
        ways.map(|(way, connects)| {
            assert!(connects(), "{way}");
            let after = evaluations(&[&a, &b]);
            after - std::mem::replace(&mut before, after)
        })
    };
    let few = measure();
    let crowd: Vec<String> = (0..24).map(|n| format!("vm{n}")).collect();
    for id in &crowd {
        host.call("ADD", id, "0", &conf).unwrap_or_else(|error| panic!("ADD {id}: {error}"));
    }
    let many = measure();
    for ((way, _), (few, many)) in ways.iter().zip(few.into_iter().zip(many)) {
        // One after the other they would cost a rule each, at the least.
        assert!(few > 10 && many < few + 12, "{way}: {few} rules with two sandboxes, {many} with 26");
    }
    for id in &crowd {
        host.call("DEL", id, "0", &conf).unwrap_or_else(|error| panic!("DEL {id}: {error}"));
    }
    for one in [&a, &b] {
        host.del(one, &conf);
    }
    // pf forgets an anchor when it has freed the last rule that a flow knew, and a flow that has ended it knows for another
    // 90 s (pf.conf(5), `tcp.closed`): these flows are over.
    sh("pfctl -q -F states");
    let left = || sh(&format!("{}; pfctl -qs Tables", jails::ANCHORS));
    jails::until(|| {
        let left = left();
        if left.contains("skepr_") || left.contains("skep/routed") { Err(left) } else { Ok(()) }
    });
}

#[test]
fn a_changed_policy_ends_live_flows_and_spares_the_others() {
    let _turn = alone();
    let host = Host::new(None);
    let (outside, _wire) = outside();
    outside.serve_tcp("0.0.0.0:80");
    let conf = host.conf(
        "pods",
        "10.1.0.0/24",
        json!({"ipMasq": true, "policy": {"egress": {"allow": ["any"]}, "ingress": {"allow": ["10.1.0.0/24"]}}}),
    );
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.jail.serve_tcp("0.0.0.0:80");
    let mut cut = a.jail.hold("203.0.113.77:80");
    let mut spared = a.jail.hold("192.0.2.2:80");
    let mut neighbour = a.jail.hold(&format!("{}:80", b.ip()));
    let mut others = b.jail.hold("203.0.113.77:80");
    for (what, one) in
        [("cut", &mut cut), ("spared", &mut spared), ("neighbour", &mut neighbour), ("others", &mut others)]
    {
        assert!(one.alive(), "{what}");
    }
    let set = |id: &str, policy: Value| {
        let (ok, told) = host.administer(&["policy", "pods", id], &policy.to_string());
        assert!(ok, "{told}");
    };
    set("a", json!({"egress": {"deny": ["203.0.113.77"]}}));
    assert!(cut.dead(), "the denied flow must end");
    for (what, one) in [("spared", &mut spared), ("neighbour", &mut neighbour), ("others", &mut others)] {
        assert!(one.alive(), "{what}");
    }
    assert!(a.jail.blocked("203.0.113.77:80"));
    // Only a table differs now.
    set("a", json!({"egress": {"deny": ["203.0.113.5"]}}));
    assert!(a.jail.reaches("203.0.113.77:80"));
    set("b", json!({"ingress": {"deny": [a.ip()]}}));
    assert!(neighbour.dead(), "bridged flows end too, by the receiver's list");
    host.check(&a, &conf).unwrap_or_else(|error| panic!("{error}"));
    for one in [&a, &b] {
        host.del(one, &conf);
    }
}

#[test]
fn flows_between_link_local_addresses_end_as_all_do() {
    let _turn = alone();
    let host = Host::new(None);
    let conf = host.conf(
        "pods",
        "10.1.0.0/24",
        json!({"ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}, "policy": {"ingress": {"allow": ["any"]}}}),
    );
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.jail.serve_tcp("[::]:80");
    let set = |id: &str, policy: Value| {
        let (ok, told) = host.administer(&["policy", "pods", id], &policy.to_string());
        assert!(ok, "{told}");
    };
    let allow = json!({"egress": {"allow": ["any"]}});
    set("a", allow.clone());
    let [of_a, of_b] = [&a, &b].map(|one| skep_cni::mac::Mac(one.mac()).link_local());
    // SAFETY: a string that ends with a zero.
    let index = a.jail.tell(|| Some(unsafe { libc::if_nametoindex(c"eth0".as_ptr()) }.to_string()));
    let at = format!("[{of_b}%{index}]:80");
    let mut flow = a.jail.hold(&at);
    assert!(flow.alive());
    // By the lists of who answers, and of who asks.
    set("b", json!({"ingress": {"deny": [of_a.to_string()]}}));
    assert!(flow.dead(), "the denied flow must end");
    set("b", json!({}));
    let mut flow = a.jail.hold(&at);
    assert!(flow.alive());
    set("a", json!({}));
    assert!(flow.dead(), "what nothing allows must end");
    // And with the sandbox: not a state is left.
    set("a", allow);
    let mut flow = a.jail.hold(&at);
    assert!(flow.alive());
    let states = || sh("pfctl -qs states");
    assert!(states().contains(&of_b.to_string()), "{}", states());
    host.del(&b, &conf);
    assert!(!states().contains(&of_b.to_string()), "{}", states());
    host.del(&a, &conf);
}

#[test]
fn false_frames_do_not_leave_a_sandbox() {
    let _turn = alone();
    let host = Host::new(None);
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let (a, b, c) = (host.add("a", &conf), host.add("b", &conf), host.add("c", &conf));
    // c asks b for its address: what b's neighbour table says of c is known then.
    b.jail.serve_tcp("0.0.0.0:80");
    assert!(c.jail.reaches(&format!("{}:80", b.ip())));
    let before = b.jail.sh("arp -an");
    let false_mac = [2, 9, 9, 9, 9, 9];
    a.jail.inject(
        "eth0",
        &[
            arp_answer(a.mac(), a.mac(), &c.ip(), b.mac(), &b.ip()),
            arp_answer(c.mac(), c.mac(), &c.ip(), b.mac(), &b.ip()),
            arp_answer(a.mac(), false_mac, &a.ip(), b.mac(), &b.ip()),
            ether([0xff; 6], false_mac, 0x0800, &[0x45; 40]),
        ],
    );
    let heard = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            b.jail.ask(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:7000").unwrap();
                socket.set_read_timeout(Some(jails::PATIENCE)).unwrap();
                let mut buffer = [0; 64];
                matches!(socket.recv_from(&mut buffer), Ok((_, from)) if from.ip().to_string() == a.ip())
            })
        });
        std::thread::sleep(std::time::Duration::from_secs(1));
        a.jail.inject(
            "eth0",
            &[
                udp4(a.mac(), b.mac(), &c.ip(), &b.ip(), 7000),
                udp4(a.mac(), b.mac(), "192.0.2.99", &b.ip(), 7000),
                udp4(c.mac(), b.mac(), &c.ip(), &b.ip(), 7000),
                // The true one comes last: it must be the first that is heard.
                udp4(a.mac(), b.mac(), &a.ip(), &b.ip(), 7000),
            ],
        );
        waiting.join().unwrap()
    });
    assert!(heard, "the true packet arrives, and before it no false one");
    let strip = |table: String| {
        let mut lines: Vec<String> =
            table.lines().filter_map(|line| line.split(" on ").next().map(str::to_owned)).collect();
        lines.sort();
        lines
    };
    let after: Vec<String> = strip(b.jail.sh("arp -an"));
    assert!(strip(before).iter().all(|line| after.contains(line)), "{after:?}");
    assert!(!after.iter().any(|line| line.contains("02:09:09")), "{after:?}");
    let spoofed = host.spoofed("a");
    assert!(spoofed >= 6, "{spoofed}");
    for one in [&a, &b, &c] {
        host.del(one, &conf);
    }
}

#[test]
fn calls_in_any_order_leave_nothing() {
    let _turn = alone();
    let host = Host::new(None);
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let before = host.census_after_first(&conf);
    host.call("DEL", "never", "nosuchjail", &conf).unwrap();
    host.call("DEL", "never", "", &conf).unwrap();
    let missing = host.call("ADD", "x", "nosuchjail", &conf).unwrap_err();
    assert_eq!(missing["code"], 3, "{missing}");
    let a = host.add("a", &conf);
    let again = host.call("ADD", "a", &a.jail.name, &conf).unwrap_err();
    assert!(matches!(again["code"].as_u64(), Some(100 | 104)), "{again}");
    host.check(&a, &conf).unwrap_or_else(|error| panic!("{error}"));
    sh(&format!("ifconfig skb-pods deletem {}", a.host_ifname()));
    let broken = host.check(&a, &conf).unwrap_err();
    assert_eq!(broken["code"], 101, "{broken}");
    host.del(&a, &conf);
    host.del(&a, &conf);
    let b = host.add("b", &conf);
    drop(b);
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    host.call("GC", "", "", &gc).unwrap();
    host.settles_to(&before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn a_reloaded_ruleset_loses_nothing_for_long() {
    let _turn = alone();
    let host = Host::new(None);
    let conf = host.conf(
        "pods",
        "10.1.0.0/24",
        policy(
            json!({"allow": [{"cidr": "10.1.0.0/24", "protocol": "tcp", "ports": [80]}]}),
            json!({"allow": ["any"]}),
        ),
    );
    let foreign = "table <theirs> { 198.51.100.1 }\nblock drop in quick from <theirs>\n";
    let file = host.dir.path().join("pf.conf");
    std::fs::write(&file, foreign).unwrap();
    sh("pfctl -qF rules; pfctl -qF nat; pfctl -q -e 2>/dev/null || true");
    sh(&format!("pfctl -qf {}", file.display()));
    let theirs = sh("pfctl -qs rules");
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    assert!(sh("pfctl -qs rules").ends_with(&theirs), "the administrator's rules stay as they are");
    b.jail.serve_tcp("0.0.0.0:80");
    b.jail.serve_tcp("0.0.0.0:81");
    assert!(a.jail.reaches(&format!("{}:80", b.ip())) && a.jail.blocked(&format!("{}:81", b.ip())));
    sh(&format!("pfctl -qf {}", file.display()));
    let (ok, told) = host.administer(&["restore"], "");
    assert!(ok && told.contains("restored"), "{told}");
    assert_eq!(host.administer(&["restore"], ""), (true, String::new()));
    assert!(a.jail.reaches(&format!("{}:80", b.ip())) && a.jail.blocked(&format!("{}:81", b.ip())));
    host.check(&a, &conf).unwrap_or_else(|error| panic!("{error}"));
    // An administrator who refers to the anchor himself loses nothing at all.
    std::fs::write(
        &file,
        "table <theirs> { 198.51.100.1 }\nnat-anchor \"skep\"\nrdr-anchor \"skep\"\nanchor \"skep\"\n\
         block drop in quick from <theirs>\n",
    )
    .unwrap();
    sh(&format!("pfctl -qf {}", file.display()));
    assert_eq!(host.administer(&["restore"], ""), (true, String::new()));
    assert!(a.jail.blocked(&format!("{}:81", b.ip())));
    for one in [&a, &b] {
        host.del(one, &conf);
    }
    sh("pfctl -qF rules; pfctl -qF nat");
}

#[test]
fn many_at_once_make_one_bridge_and_one_reference() {
    let _turn = alone();
    let host = Host::new(None);
    sh("pfctl -qF rules; pfctl -qF nat 2>/dev/null || true");
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let all: Vec<_> = std::thread::scope(|scope| {
        let adds: Vec<_> = (0..12)
            .map(|n| {
                scope.spawn({
                    let (host, conf) = (&host, &conf);
                    move || host.add(&format!("c{n}"), conf)
                })
            })
            .collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    let mut addresses: Vec<_> = all.iter().map(jails::Container::ip).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 12);
    assert_eq!(sh("ifconfig -g bridge").lines().count(), 1);
    assert_eq!(sh("pfctl -qs rules").matches("anchor \"skep\"").count(), 1);
    std::thread::scope(|scope| {
        for one in &all {
            scope.spawn(|| host.del(one, &conf));
        }
    });
    assert_eq!(host.files(), Vec::<String>::new());
    assert!(!sh("ifconfig -l").contains("sk"));
}

/// What the tests say to a sandbox, and where.
const SAID: &[u8] = b"said to a sandbox";

/// Whether `to` hears what is said from an address of a jail's.
fn heard(from: &Jail, ip: &str, to: &jails::Container, patience: std::time::Duration) -> bool {
    let (at, peer) = (format!("{ip}:0"), format!("{}:9000", to.ip()));
    to.jail.hears("eth0", SAID, patience, || {
        assert!(from.ask(|| UdpSocket::bind(&at).is_ok_and(|socket| socket.send_to(SAID, &peer).is_ok())));
    })
}

#[test]
fn nobody_outside_passes_for_a_neighbour() {
    let _turn = alone();
    let host = Host::new(None);
    let (outside, _wire) = outside();
    outside.sh("route -q add 10.1.0.0/24 192.0.2.1");
    let friends = ["10.1.0.0/24", "192.0.2.2", "198.51.100.2", "10.2.0.0/24"];
    let lists = policy(json!({"allow": ["any"]}), json!({"allow": friends}));
    let conf = host.conf("pods", "10.1.0.0/24", lists);
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    // Behind an interface that nobody has seen when the rules were made.
    let late = Jail::new();
    let (_, wire) = late.wire(None, "198.51.100.2/24", "198.51.100.1/24");
    late.sh("route -q add 10.1.0.0/24 198.51.100.1");
    for (one, own, when) in [(&outside, "192.0.2.2", "before"), (&late, "198.51.100.2", "after")] {
        one.sh(&format!("ifconfig lo0 inet {}/32 alias", b.ip()));
        assert!(heard(one, own, &a, PATIENCE), "a friend outside, whose interface came {when} ADD");
        assert!(
            !heard(one, &b.ip(), &a, SILENCE),
            "a neighbour's name, from an interface that came {when} ADD"
        );
    }
    assert!(heard(&b.jail, &b.ip(), &a, PATIENCE), "the neighbour itself");
    sh(&format!("ifconfig {wire} destroy"));
    host.del(&a, &conf);
    host.del(&b, &conf);
}

#[test]
fn a_station_on_a_bridge_is_of_that_network_and_of_no_other() {
    let _turn = alone();
    let host = Host::new(None);
    let lists = policy(json!({"allow": ["any"]}), json!({"allow": ["10.1.0.0/24", "10.2.0.0/24"]}));
    let (pods, other) =
        (host.conf("pods", "10.1.0.0/24", lists.clone()), host.conf("other", "10.2.0.0/24", lists));
    let (a, c) = (host.add("a", &pods), host.add("c", &other));
    let name = "10.1.0.200";
    for (bridge, own, gateway) in [("skb-pods", name, None), ("skb-other", "10.2.0.200", Some("10.2.0.1"))] {
        // Put there by the administrator, who need not tell us.
        let station = Jail::new();
        let made = sh("ifconfig epair create").trim().to_owned();
        let end = made.strip_suffix('a').map(|stem| format!("{stem}b")).unwrap();
        sh(&format!(
            "ifconfig {made} up; ifconfig {bridge} addm {made}; ifconfig {end} vnet {}",
            station.name
        ));
        station.sh(&format!("ifconfig {end} inet {own}/24 up"));
        if let Some(gateway) = gateway {
            station.sh(&format!("route -q add 10.1.0.0/24 {gateway}; ifconfig lo0 inet {name}/32 alias"));
        }
        assert!(heard(&station, own, &a, PATIENCE), "from a station on {bridge}");
        if gateway.is_some() {
            assert!(
                !heard(&station, name, &a, SILENCE),
                "from a station on {bridge} under the name of one on skb-pods"
            );
        }
        sh(&format!("ifconfig {made} destroy"));
    }
    host.del(&c, &other);
    host.del(&a, &pods);
}

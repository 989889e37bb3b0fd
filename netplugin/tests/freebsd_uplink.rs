//! The network outside behind a card on FreeBSD: addresses of its own DHCP server, routes of its own routers.
#![cfg(target_os = "freebsd")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod jails;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use jails::dhcp::Server;
use jails::frames::{advertisement, dhcp_question, udp};
use jails::{Container, Host, Jail, PATIENCE, SILENCE, alone, merge, open_policy, sh, until};
use serde_json::{Value, json};
use skep_cni::mac::Mac;

const BROADCAST: [u8; 6] = [0xff; 6];

/// The network outside, and the card of the machine's that it is behind.
struct Outside {
    jail: Jail,
    far: String,
    card: String,
}

impl Outside {
    fn new() -> Self {
        let jail = Jail::new();
        let far = sh("ifconfig epair create").trim().to_owned();
        let card = far.strip_suffix('a').map(|stem| format!("{stem}b")).unwrap();
        sh(&format!("ifconfig {card} up; ifconfig {far} vnet {}", jail.name));
        jail.sh(&format!(
            "ifconfig {far} inet 203.0.113.1/24 up; ifconfig {far} inet6 -ifdisabled no_dad 2001:db8:5::1/64 up; \
             ifconfig lo0 inet6 2001:db8:9::1/128; sysctl -q net.inet6.ip6.forwarding=1"
        ));
        Self { jail, far, card }
    }

    fn mac(&self) -> [u8; 6] {
        let text = self.jail.sh(&format!("ifconfig {} | awk '/ether/ {{print $2}}'", self.far));
        let mut octets = text.trim().split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap());
        std::array::from_fn(|_| octets.next().unwrap())
    }

    fn conf(&self, host: &Host<'_>, more: Value) -> Value {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "public", "type": "skep-cni", "dataDir": host.data_dir(),
            "uplink": self.card, "ipam": {"type": "dhcp"}});
        merge(&mut conf, more);
        conf
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        sh(&format!("ifconfig {} destroy || true", self.card));
    }
}

/// A VM that speaks and hears by its tap.
struct Vm {
    tap: File,
    mac: [u8; 6],
    ip: String,
}

impl Vm {
    fn start(result: &Value) -> Self {
        use std::os::unix::fs::OpenOptionsExt as _;
        let name = result["interfaces"][1]["name"].as_str().unwrap();
        let path = format!("/dev/{name}");
        let tap = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        let mac = result["interfaces"][2]["mac"].as_str().unwrap();
        let mut octets = mac.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap());
        let mac = std::array::from_fn(|_| octets.next().unwrap());
        let ip = result["ips"][0]["address"].as_str().unwrap_or_default();
        // The first that opens it raises it.
        sh(&format!("ifconfig {name} up"));
        Self { tap, mac, ip: ip.split('/').next().unwrap().to_owned() }
    }

    fn send(&mut self, frame: &[u8]) {
        self.tap.write_all(frame).unwrap();
    }

    fn hears(&mut self, needle: &[u8], patience: Duration) -> bool {
        let begin = Instant::now();
        let mut bytes = [0; 4096];
        while begin.elapsed() < patience {
            match self.tap.read(&mut bytes) {
                Ok(len) if bytes[..len].windows(needle.len()).any(|window| window == needle) => return true,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        false
    }
}

fn status(host: &Host<'_>) -> String {
    host.administer(&["status"], "").1
}

fn policy() -> Value {
    json!({"policy": {"multicast": true, "egress": {"allow": [{"cidr": "203.0.113.1", "protocol": "tcp", "ports": [80]},
        {"cidr": "203.0.113.1", "protocol": "udp"}]}}})
}

#[test]
fn jails_and_vms_have_addresses_of_the_networks_server_and_no_other() {
    let _turn = alone();
    let host = Host::new(None);
    let outside = Outside::new();
    let server = Server::start(&outside.jail, 3600);
    for port in [80, 81] {
        outside.jail.serve_tcp(&format!("0.0.0.0:{port}"));
    }
    outside.jail.serve_udp("0.0.0.0:9");
    let conf = outside.conf(&host, policy());
    let before = host.census_after_first(&conf);
    assert_eq!(server.log().matches("RELEASE").count(), 1);
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    let result = host.call("ADD", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    let mut vm = Vm::start(&result);
    let range = Ipv4Addr::new(203, 0, 113, 50)..=Ipv4Addr::new(203, 0, 113, 60);
    let mut all = [a.ip(), b.ip(), vm.ip.clone()];
    assert!(all.iter().all(|ip| range.contains(&ip.parse::<Ipv4Addr>().unwrap())), "{all:?}");
    all.sort();
    assert!(all[0] != all[1] && all[1] != all[2], "{all:?}");
    // What goes with the address.
    assert_eq!(result["ips"][0]["gateway"], "203.0.113.1");
    assert_eq!(result["dns"], json!({"nameservers": ["203.0.113.2"], "domain": "example.net"}));
    let routes = a.jail.sh("netstat -rnf inet");
    let by = |net: &str, router: &str| {
        routes.lines().any(|line| line.split_whitespace().take(2).eq([net, router]))
    };
    assert!(by("default", "203.0.113.1") && by("198.51.100.0/24", "203.0.113.9"), "{routes}");
    for (id, netns) in [("a", a.jail.name.as_str()), ("vm", "0")] {
        host.call("CHECK", id, netns, &conf).unwrap_or_else(|error| panic!("{id}: {error}"));
    }
    // The policy holds, and the host is no part of it.
    assert!(a.jail.reaches("203.0.113.1:80") && b.jail.reaches("203.0.113.1:80"));
    assert!(a.jail.blocked("203.0.113.1:81"));
    assert!(b.jail.blocked(&format!("{}:80", a.ip())));
    assert!(!sh("ifconfig -a").contains("203.0.113."));
    // With its address the VM gets an answer, with a neighbour's none.
    let to = outside.mac();
    let answered = |vm: &mut Vm, from: &str, mark: &[u8]| {
        let frame = udp(vm.mac, to, (from, 4000), ("203.0.113.1", 9), b"?");
        // A neighbour's answer for it, which the server asks for.
        vm.send(&jails::frames::arp_answer(vm.mac, vm.mac, &vm.ip.clone(), to, "203.0.113.1"));
        vm.send(&frame);
        vm.hears(mark, PATIENCE.min(Duration::from_secs(5)))
    };
    let (own, theirs) = (vm.ip.clone(), b.ip());
    assert!(answered(&mut vm, &own, own.as_bytes()), "its own address");
    assert!(!answered(&mut vm, &theirs, theirs.as_bytes()), "another's");

    // A sandbox is no client: its questions reach nobody, from whatever address.
    let xids = [[0xaa, 0xbb, 0, 1], [0xaa, 0xbb, 0, 2], [0xaa, 0xbb, 0, 3]];
    let question = |mac: [u8; 6], from: &str, to: &str, xid: [u8; 4]| {
        udp(mac, BROADCAST, (from, 68), (to, 67), &dhcp_question(1, xid, mac))
    };
    let heard = b.jail.hears("eth0", &xids[1], SILENCE, || {
        a.jail.inject(
            "eth0",
            &[
                question(a.mac(), "0.0.0.0", "255.255.255.255", xids[0]),
                question(a.mac(), &a.ip(), "255.255.255.255", xids[1]),
            ],
        );
        vm.send(&question(vm.mac, &own, "203.0.113.1", xids[2]));
    });
    assert!(!heard, "a question of a sandbox");
    assert!(!server.log().contains("aabb"), "{}", server.log());
    // And no server: neither in whole nor in pieces, to everybody or to one.
    let offer =
        |mac: [u8; 6], from: &str| udp(mac, BROADCAST, (from, 67), ("255.255.255.255", 68), b"<<offer>>");
    assert!(
        !b.jail.hears("eth0", b"<<offer>>", SILENCE, || a.jail.inject("eth0", &[offer(a.mac(), &a.ip())]))
    );
    assert!(!outside.jail.hears(&outside.far, b"<<offer>>", SILENCE, || vm.send(&offer(vm.mac, &own))));
    // Nobody hears what the host asks for another, or is answered.
    let mut third = None;
    let hardware = [&Mac::derive(&["public", "c", "eth0"]).0[..], &[0; 10]].concat();
    let heard = b.jail.hears("eth0", &hardware, Duration::from_secs(6), || {
        third = Some(host.add("c", &conf));
    });
    assert!(!heard, "another's lease");
    assert!(!vm.hears(&hardware, SILENCE), "another's lease");
    // Everything else that is to everybody comes by this network's policy: they were able to hear.
    let heard = b.jail.hears("eth0", b"<<all>>", PATIENCE, || {
        let all = udp(to, BROADCAST, ("203.0.113.1", 4000), ("255.255.255.255", 4000), b"<<all>>");
        outside.jail.inject(&outside.far, &[all]);
    });
    assert!(heard, "broadcasts of others");

    // Given back when they go.
    let third = third.unwrap();
    drop(vm);
    for one in [&a, &b, &third] {
        host.del(one, &conf);
        assert_eq!(
            server.asked("RELEASE", &one.ip()),
            1 + usize::from(one.ip() == a.ip()),
            "{}",
            server.log()
        );
    }
    host.del(&third, &conf);
    host.call("DEL", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(server.asked("RELEASE", &own), 1, "{}", server.log());
    host.settles_to(&before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn without_a_server_nothing_is_left() {
    let _turn = alone();
    let host = Host::new(None);
    let outside = Outside::new();
    let server = Server::start(&outside.jail, 3600);
    let conf = outside.conf(&host, json!({}));
    let before = host.census_after_first(&conf);
    server.answer("nothing");
    let jail = Jail::new();
    for netns in [jail.name.as_str(), "0"] {
        let error = host.call("ADD", "a", netns, &conf).unwrap_err();
        assert_eq!(error["code"], 102, "{error}");
        let told = error["msg"].as_str().unwrap();
        assert!(told.contains("no DHCP server answered") && told.contains(&outside.card), "{told}");
        host.settles_to(&before);
        assert_eq!(host.files(), Vec::<String>::new());
        assert!(!jail.sh("ifconfig -l").contains("eth0"));
    }
    // One that takes back what it offered.
    server.answer("yes");
    let mut wrong = conf.clone();
    wrong["uplink"] = json!("");
    let error = host.call("ADD", "a", &jail.name, &wrong).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("uplink"), "{error}");
    wrong = conf.clone();
    wrong["ipam"]["provide"] = json!([{"option": "server-identifier", "value": "x"}]);
    let error = host.call("ADD", "a", &jail.name, &wrong).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("ipam.provide"), "{error}");
    assert_eq!(host.files(), Vec::<String>::new());
    // In time somebody answers.
    let a = host.call("ADD", "a", &jail.name, &conf).unwrap_or_else(|error| panic!("{error}"));
    assert!(a["ips"][0]["address"].as_str().unwrap().starts_with("203.0.113."));
    host.call("DEL", "a", &jail.name, &conf).unwrap_or_else(|error| panic!("{error}"));
    host.settles_to(&before);
}

#[test]
fn a_lease_is_renewed_and_one_that_is_lost_lets_nothing_pass() {
    let _turn = alone();
    let host = Host::new(None);
    let outside = Outside::new();
    let server = Server::start(&outside.jail, 36);
    outside.jail.serve_udp("0.0.0.0:9");
    let mut conf = outside.conf(&host, json!({}));
    merge(&mut conf, open_policy());
    let passes = |one: &Container| {
        let ip = one.ip();
        one.jail.ask(|| {
            let Ok(socket) = UdpSocket::bind("0.0.0.0:0") else { return false };
            let _ = socket.set_read_timeout(Some(SILENCE));
            let mut bytes = [0; 64];
            socket.send_to(b"?", "203.0.113.1:9").is_ok()
                && socket.recv_from(&mut bytes).is_ok_and(|(len, _)| bytes[..len] == *ip.as_bytes())
        })
    };
    let lets = |one: &Container, wanted: bool, why: &str| {
        until(|| {
            if passes(one) == wanted {
                Ok(())
            } else {
                Err(format!("{why}: {}\n{}", status(&host), server.log()))
            }
        });
    };
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    let watch = host.start(&["watch"]);
    lets(&a, true, "a lease");
    // Its server is asked by the address itself, again and again.
    let renewals = || {
        let log = server.log();
        let own = format!(" {} {}", a.ip(), a.ip());
        log.lines().filter(|line| line.starts_with("REQUEST") && line.ends_with(&own)).count()
    };
    let searches = || server.log().matches("DISCOVER").count();
    let before = searches();
    until(|| if renewals() >= 4 { Ok(()) } else { Err(server.log()) });
    assert!(passes(&a) && passes(&b), "leases that were renewed: {}", status(&host));
    assert_eq!(searches(), before, "none was lost meanwhile: {}", server.log());
    // Without an answer it ends.
    server.answer("nothing");
    lets(&a, false, "a lease that ended");
    lets(&b, false, "another that ended");
    until(|| if status(&host).contains("lost its address") { Ok(()) } else { Err(status(&host)) });
    let found = host.check(&a, &conf).unwrap_err();
    assert!(found.to_string().contains("the lease ended"), "{found}");
    // A change of its policy does not give it back.
    let (content, told) =
        host.administer(&["policy", "public", "a"], &json!({"egress": {"allow": ["any"]}}).to_string());
    assert!(content, "{told}");
    assert!(!passes(&a), "after a change of policy");
    // A server that is there again gives the same address.
    server.answer("yes");
    lets(&a, true, "an address that is had again");
    lets(&b, true, "another");
    host.check(&a, &conf).unwrap_or_else(|error| panic!("{error}"));
    // One that says no takes it at once.
    server.answer("no");
    lets(&a, false, "a lease that was taken back");
    assert!(status(&host).contains("took it back: not any longer"), "{}\n{}", status(&host), server.log());
    server.answer("yes");
    lets(&a, true, "an address that is had again");
    drop(watch);
    // Nobody renews: people hear of it. Who comes late finds out.
    until(|| if status(&host).contains("should have been renewed") { Ok(()) } else { Err(status(&host)) });
    until(|| {
        if status(&host).contains("s ago: is `skep net watch` running?") {
            Ok(())
        } else {
            Err(status(&host))
        }
    });
    server.answer("nothing");
    let watch = host.start(&["watch"]);
    lets(&a, false, "a lease that ended while nobody watched");
    drop(watch);
    // What is lost is not given back.
    let before = server.log().matches("RELEASE").count();
    host.del(&a, &conf);
    host.del(&b, &conf);
    assert_eq!(server.log().matches("RELEASE").count(), before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn routers_are_heard_behind_the_card_and_nowhere_else() {
    let _turn = alone();
    for heard in [true, false] {
        let host = Host::new(None);
        let outside = Outside::new();
        outside.jail.serve_tcp("[::]:80");
        let mut conf = outside.conf(
            &host,
            json!({"isGateway": false, "isDefaultGateway": false, "acceptRA": heard, "policy": {"multicast": true},
                "ipam": {"type": "skep", "ranges": [[{"subnet": "2001:db8:5::/64", "rangeStart": "2001:db8:5::10"}]]}}),
        );
        merge(&mut conf, open_policy());
        let (a, b) = (host.add("a", &conf), host.add("b", &conf));
        let result = host.call("ADD", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
        let mut vm = Vm::start(&result);
        host.check(&a, &conf).unwrap_or_else(|error| panic!("{error}"));
        let mac = outside.mac();
        let router = Mac(mac).link_local().to_string();
        // Its own prefix and one more, to make addresses of.
        let frame = advertisement(mac, &router, &["2001:db8:5::", "2001:db8:6::"]);
        let message = &frame[54..];
        let patience = if heard { PATIENCE } else { SILENCE };
        let send = || outside.jail.inject(&outside.far, std::slice::from_ref(&frame));
        assert_eq!(b.jail.hears("eth0", message, patience, send), heard);
        assert_eq!(vm.hears(message, patience), heard);
        let learned = || b.jail.sh("netstat -rnf inet6 | grep default || true");
        if heard {
            until(|| if learned().contains(&router) { Ok(()) } else { Err(learned()) });
            assert!(b.jail.reaches("[2001:db8:9::1]:80"), "by the router: {}", b.jail.sh("ifconfig eth0"));
        } else {
            assert!(!learned().contains("fe80"), "{}", learned());
            assert!(b.jail.blocked("[2001:db8:9::1]:80"));
        }
        assert!(b.jail.reaches("[2001:db8:5::1]:80"), "on the link");
        let addresses = b.jail.sh("ifconfig eth0 inet6");
        assert_eq!(addresses.matches("2001:db8:").count(), 1, "an address that nobody gave: {addresses}");
        // A sandbox is no router.
        let own = Mac(a.mac()).link_local().to_string();
        let frame = advertisement(a.mac(), &own, &["2001:db8:7::"]);
        let send = || a.jail.inject("eth0", std::slice::from_ref(&frame));
        assert!(!b.jail.hears("eth0", &frame[54..], SILENCE, send));
        assert!(!outside.jail.hears(&outside.far, &frame[54..], SILENCE, send));
        assert!(!learned().contains(&own), "{}", learned());
        drop(vm);
        host.call("DEL", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
        for one in [&a, &b] {
            host.del(one, &conf);
        }
        assert_eq!(host.files(), Vec::<String>::new());
    }
}

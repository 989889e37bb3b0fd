//! Leases on FreeBSD while sandboxes come, live and go: renewed, lost, refused, given back, many at once.
#![cfg(target_os = "freebsd")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod jails;

use std::net::UdpSocket;

use jails::dhcp::Server;
use jails::uplink::Outside;
use jails::{Container, Host, Jail, SILENCE, alone, merge, open_policy, until};
use serde_json::json;

fn status(host: &Host<'_>) -> String {
    host.administer(&["status"], "").1
}

fn says(host: &Host<'_>, what: &str) {
    until(|| if status(host).contains(what) { Ok(()) } else { Err(format!("{what:?}: {}", status(host))) });
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
    says(&host, "should have been renewed");
    says(&host, "s ago: is `skep net watch` running?");
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
fn an_address_that_somebody_has_is_declined() {
    let _turn = alone();
    let host = Host::new(None);
    let outside = Outside::new();
    let server = Server::start(&outside.jail, 120);
    let conf = outside.conf(&host, open_policy());
    let before = host.census_after_first(&conf);
    let squat =
        |how: &str, ip: &str| outside.jail.sh(&format!("ifconfig {} inet {ip}/32 {how}", outside.far));
    squat("alias", "203.0.113.50");
    let a = host.add("a", &conf);
    assert_eq!(a.ip(), "203.0.113.51", "{}", server.log());
    assert_eq!((server.asked("DECLINE", "203.0.113.50"), server.asked("DECLINE", &a.ip())), (1, 0));
    // Somebody has all that a server gives.
    for ip in ["203.0.113.52", "203.0.113.53", "203.0.113.54"] {
        squat("alias", ip);
    }
    let jail = Jail::new();
    let error = host.call("ADD", "b", &jail.name, &conf).unwrap_err();
    let mac = skep_cni::mac::Mac(outside.mac()).to_string();
    let told = error["msg"].as_str().unwrap();
    assert!(told.contains("203.0.113.54") && told.contains(&mac), "{told}");
    assert_eq!(error["code"], 102, "{error}");
    assert_eq!(server.log().matches("DECLINE").count(), 4, "{}", server.log());
    assert!(!jail.sh("ifconfig -l").contains("eth0"));
    // What was lost may be somebody's by the time that it could be had again.
    let watch = host.start(&["watch"]);
    server.answer("no");
    says(&host, "took it back");
    squat("alias", &a.ip());
    server.answer("yes");
    says(&host, &format!("{mac} has it now"));
    assert_eq!(server.asked("DECLINE", &a.ip()), 1, "{}", server.log());
    assert!(a.jail.blocked("203.0.113.1:80"));
    drop(watch);
    host.del(&a, &conf);
    host.settles_to(&before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn what_a_server_says_of_routes_is_followed_in_a_jail_and_told_of_a_vm() {
    let _turn = alone();
    let host = Host::new(None);
    let outside = Outside::new();
    let server = Server::start(&outside.jail, 36);
    outside.jail.serve_tcp("0.0.0.0:80");
    let conf = outside.conf(&host, open_policy());
    let a = host.add("a", &conf);
    let vm = host.call("ADD", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    // There is nobody in the VM to say where it is: its lease is renewed all the same.
    let ip = vm["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap();
    // One of somebody's who is in the jail.
    a.jail.sh("route -q add 198.51.100.128/25 203.0.113.7");
    let routes = |wanted: &[(&str, &str)], gone: &str| {
        until(|| {
            let told = a.jail.sh("netstat -rnf inet");
            let by = |net: &str, router: &str| {
                told.lines().any(|line| line.split_whitespace().take(2).eq([net, router]))
            };
            let all = wanted.iter().all(|(net, router)| by(net, router)) && !by(gone, "203.0.113.9");
            if all { Ok(()) } else { Err(format!("{told}\n{}", status(&host))) }
        });
    };
    let watch = host.start(&["watch"]);
    let others = [("default", "203.0.113.1"), ("198.51.100.128/25", "203.0.113.7")];
    server.answer("other");
    routes(&[others[0], others[1], ("192.0.2.0/24", "203.0.113.9")], "198.51.100.0/24");
    assert!(a.jail.reaches("203.0.113.1:80"));
    // The VM's are inside, and so are everybody's resolvers.
    says(&host, "other routes (0.0.0.0/0 by 203.0.113.1, 192.0.2.0/24 by 203.0.113.9)");
    let told = status(&host);
    assert_eq!(told.matches("other routes").count(), 1, "{told}");
    assert_eq!(told.matches("other resolvers (203.0.113.3, example.net)").count(), 2, "{told}");
    for (id, netns) in [("a", a.jail.name.as_str()), ("vm", "0")] {
        host.call("CHECK", id, netns, &conf).unwrap_or_else(|error| panic!("{id}: {error}"));
    }
    assert!(server.renewed(ip) > 0 && !told.contains("lost its address"), "{told}\n{}", server.log());
    // As it was.
    server.answer("yes");
    routes(&[others[0], others[1], ("198.51.100.0/24", "203.0.113.9")], "192.0.2.0/24");
    until(|| {
        let (sound, told) = host.administer(&["status"], "");
        if sound { Ok(()) } else { Err(told) }
    });
    drop(watch);
    host.del(&a, &conf);
    host.call("DEL", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn leases_of_what_is_gone_are_given_back() {
    let _turn = alone();
    let host = Host::new(None);
    let outside = Outside::new();
    let server = Server::start(&outside.jail, 3600);
    let conf = outside.conf(&host, open_policy());
    let before = host.census_after_first(&conf);
    let [keep, gone, unlisted] = ["keep", "gone", "unlisted"].map(|id| host.add(id, &conf));
    let released = |ip: &str| server.asked("RELEASE", ip);
    let (first, second, third) = (keep.ip(), gone.ip(), unlisted.ip());
    let earlier = released(&first);
    // By the administrator's command: what has no jail any more.
    drop(gone);
    let (content, told) = host.administer(&["gc"], "");
    assert!(content && told.contains("removed gone/eth0"), "{told}");
    assert_eq!((released(&second), released(&third)), (1, 0), "{}", server.log());
    // By the runtime's: what it does not know.
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    host.call("GC", "", "", &gc).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((released(&third), released(&first)), (1, earlier), "{}", server.log());
    host.check(&keep, &conf).unwrap_or_else(|error| panic!("{error}"));
    // Both at once: no jail, and not on the list.
    drop(keep);
    gc["cni.dev/valid-attachments"] = json!([]);
    host.call("GC", "", "", &gc).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(released(&first), earlier + 1, "{}", server.log());
    host.settles_to(&before);
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn twenty_at_once_have_twenty_addresses() {
    let _turn = alone();
    let host = Host::new(None);
    let outside = Outside::new();
    let server = Server::start(&outside.jail, 3600);
    let conf = outside.conf(&host, open_policy());
    let before = host.census_after_first(&conf);
    let earlier = server.log().matches("RELEASE").count();
    let all: Vec<Container> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..20)
            .map(|n| {
                scope.spawn({
                    let (host, conf) = (&host, &conf);
                    move || host.add(&format!("c{n}"), conf)
                })
            })
            .collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let mut addresses: Vec<String> = all.iter().map(Container::ip).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 20, "{}", server.log());
    for one in &all {
        host.check(one, &conf).unwrap_or_else(|error| panic!("{}: {error}", one.id));
        let own = one.jail.sh("ifconfig eth0 inet");
        assert!(own.contains(&format!("inet {} ", one.ip())), "{own}");
    }
    assert_eq!(server.log().matches("DECLINE").count(), 0, "{}", server.log());
    std::thread::scope(|scope| {
        for one in &all {
            scope.spawn(|| host.del(one, &conf));
        }
    });
    assert_eq!(server.log().matches("RELEASE").count(), earlier + 20, "{}", server.log());
    drop(all);
    host.settles_to(&before);
    assert_eq!(host.files(), Vec::<String>::new());
}

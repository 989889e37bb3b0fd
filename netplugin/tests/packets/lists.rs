//! Who may open what: lists of networks and sandboxes, groups, the host.

use crate::own;
use crate::support;
use crate::support::{Host, PATIENCE, SILENCE, echoes, open_policy, policy};
use serde_json::json;

#[test]
fn everything_is_denied_until_allowed() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    outside.serve_tcp("0.0.0.0:80");
    outside.serve_udp("0.0.0.0:53");
    host.ns.serve_tcp("0.0.0.0:7000");
    let conf = host.pods(json!({"ipMasq": true}));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.ns.serve_tcp("0.0.0.0:80");
    b.ns.serve_udp("0.0.0.0:53");
    assert!(a.ns.blocked("192.0.2.2:80"), "to the outside");
    assert!(a.ns.ask_udp("192.0.2.2:53", SILENCE).is_none(), "to the outside by UDP");
    assert!(a.ns.blocked(&format!("{}:80", b.ip())), "to a neighbour");
    assert!(a.ns.ask_udp(&format!("{}:53", b.ip()), SILENCE).is_none(), "to a neighbour by UDP");
    assert!(a.ns.blocked("10.1.0.1:7000"), "to the host");
    assert!(a.ns.blocked("192.0.2.1:7000"), "to another address of the host");
    assert!(host.ns.blocked(&format!("{}:80", b.ip())), "from the host");
    outside.ip("route add 10.1.0.0/24 via 192.0.2.1");
    assert!(outside.blocked(&format!("{}:80", b.ip())), "from the outside");
}

#[test]
fn lists_decide_by_address_protocol_and_port() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    outside.ip("addr add 192.0.2.9/24 dev out1");
    for at in ["0.0.0.0:80", "0.0.0.0:81", "0.0.0.0:8005", "[::]:90"] {
        outside.serve_tcp(at);
    }
    outside.serve_udp("0.0.0.0:80");
    let conf = host.pods(json!({"ipMasq": true, "ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}, "policy": {"egress": {
            "allow": [{"cidr": "192.0.2.0/24", "protocol": "tcp", "ports": [80, "8000-8010"]}, {"cidr": "2001:db8::/32", "protocol": "tcp"}],
            "deny": ["192.0.2.9"]}}}),
    );
    let a = host.add("a", &conf);
    assert!(a.ns.reaches("192.0.2.2:80"));
    assert!(a.ns.reaches("192.0.2.2:8005"));
    assert!(a.ns.reaches("[2001:db8::2]:90"));
    assert!(a.ns.blocked("192.0.2.2:81"), "another port");
    assert!(a.ns.ask_udp("192.0.2.2:80", SILENCE).is_none(), "another protocol");
    assert!(a.ns.blocked("192.0.2.9:80"), "denied, though the range is allowed");
    // The outside sees the host's address, not the sandbox's.
    outside.serve_udp("0.0.0.0:53");
    let open = own(&host, "b", &conf, json!({"egress": {"allow": ["any"]}}));
    assert_eq!(open.ns.ask_udp("192.0.2.2:53", PATIENCE).unwrap().to_string(), "192.0.2.1");
    assert!(open.ns.blocked("192.0.2.9:80"), "a sandbox's list does not override the network's deny list");
}

#[test]
fn nothing_overrides_what_is_always_denied() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    for ip in ["169.254.169.254", "203.0.113.5", "203.0.113.77"] {
        outside.ip(&format!("addr add {ip}/32 dev lo"));
        host.ns.ip(&format!("route add {ip}/32 via 192.0.2.2"));
    }
    outside.serve_tcp("0.0.0.0:80");
    host.ns.serve_tcp("0.0.0.0:80");
    host.ns.serve_tcp("0.0.0.0:9999");
    let mut conf = host.pods(open_policy());
    support::merge(
        &mut conf,
        json!({"ipMasq": true, "policy": {"alwaysDeny": ["203.0.113.5/32"], "hostServices": [{"protocol": "tcp", "port": 9999}]}}),
    );
    let a = own(&host, "a", &conf, json!({"egress": {"allow": ["169.254.169.254", "203.0.113.5", "any"]}}));
    assert!(a.ns.reaches("203.0.113.77:80"));
    assert!(a.ns.blocked("169.254.169.254:80"), "metadata");
    assert!(a.ns.blocked("203.0.113.5:80"), "a control network");
    assert!(a.ns.blocked("192.0.2.1:80"), "the host");
    assert!(a.ns.blocked("10.1.0.1:80"), "the host as gateway");
    assert!(a.ns.reaches("10.1.0.1:9999"), "a service of the host that the network opens");
}

#[test]
fn sandboxes_and_networks_are_apart_unless_joined() {
    needs_root!();
    let host = Host::new();
    let ingress_any = json!({"allow": ["any"]});
    let one = host.conf("one", "10.1.0.0/24", policy(json!({"allow": ["any"]}), ingress_any.clone()));
    let two = host.conf("two", "10.2.0.0/24", policy(json!({"allow": ["any"]}), ingress_any));
    let (a, b, c) = (host.add("a", &one), host.add("b", &one), host.add("c", &two));
    b.ns.serve_tcp("0.0.0.0:80");
    c.ns.serve_tcp("0.0.0.0:80");
    assert!(a.ns.reaches(&format!("{}:80", b.ip())), "same network, both lists allow");
    assert!(a.ns.blocked(&format!("{}:80", c.ip())), "another network, whatever the lists say");
    let mut peered = one.clone();
    peered["policy"]["peerNetworks"] = json!(["two"]);
    let d = host.add("d", &peered);
    assert!(d.ns.reaches(&format!("{}:80", c.ip())), "peers");
    d.ns.serve_tcp("0.0.0.0:80");
    assert!(c.ns.blocked(&format!("{}:80", d.ip())), "the other did not name us");
}

#[test]
fn groups_are_their_members_and_nobody_else() {
    needs_root!();
    let host = Host::new();
    let conf = host.pods(policy(
        json!({"allow": ["any"]}),
        json!({"allow": [{"group": "web", "protocol": "tcp", "ports": [80]}]}),
    ));
    let in_group = |group: &str| {
        let mut conf = conf.clone();
        conf["policy"]["group"] = json!(group);
        conf
    };
    // The first one there: nobody is in the group of the rules yet.
    let db = host.add("db", &in_group("db"));
    let (web, other) = (host.add("web", &in_group("web")), host.add("other", &in_group("else")));
    db.ns.serve_tcp("0.0.0.0:80");
    db.ns.serve_tcp("0.0.0.0:81");
    let target = format!("{}:80", db.ip());
    assert!(web.ns.reaches(&target));
    assert!(web.ns.blocked(&format!("{}:81", db.ip())));
    assert!(other.ns.blocked(&target));
    // The next user of an address is not in its predecessor's group.
    let ip = web.ip();
    host.del(&web, &in_group("web"));
    let mut same_ip = in_group("else");
    same_ip["runtimeConfig"] = json!({"ips": [ip]});
    let heir = host.add("heir", &same_ip);
    assert_eq!(heir.ip(), ip);
    assert!(heir.ns.blocked(&target));
}

#[test]
fn members_of_a_group_are_that_by_their_link_local_addresses_too() {
    needs_root!();
    let host = Host::new();
    let more = json!({"ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}, "policy": {"group": "web"}});
    let mut conf = host.pods(open_policy());
    support::merge(&mut conf, more);
    let member = host.add("member", &conf);
    conf["policy"]["group"] = json!("db");
    let denies = own(&host, "denies", &conf, json!({"ingress": {"deny": [{"group": "web"}]}}));
    let other = own(&host, "other", &conf, json!({"ingress": {"deny": [{"group": "db"}]}}));
    let index = member.ns.run(|| nix::net::if_::if_nametoindex("eth0").unwrap());
    for (to, denied) in [(&denies, true), (&other, false)] {
        to.ns.serve_tcp("[::]:80");
        let at = format!("[{}%{index}]:80", skep_cni::mac::Mac(to.mac()).link_local());
        assert!(if denied { member.ns.blocked(&at) } else { member.ns.reaches(&at) }, "{}", to.id);
    }
    host.check(&member, &conf).unwrap();
}

#[test]
fn the_host_comes_in_where_the_network_says_so() {
    needs_root!();
    let host = Host::new();
    let conf = host.pods(json!({"policy": {"hostIngress": true}}));
    let a = host.add("a", &conf);
    a.ns.serve_tcp("0.0.0.0:80");
    assert!(host.ns.reaches(&format!("{}:80", a.ip())));
    let mut closed = conf.clone();
    closed["policy"]["hostIngress"] = json!(false);
    let mut live = host.ns.connect(&format!("{}:80", a.ip()), PATIENCE).unwrap();
    assert!(echoes(&mut live));
    // The network's policy is changed by the next ADD that has another: live sandboxes follow.
    let _b = host.add("b", &closed);
    assert!(host.ns.blocked(&format!("{}:80", a.ip())));
    live.set_read_timeout(Some(SILENCE)).unwrap();
    assert!(!echoes(&mut live));
}

//! Published ports.
use crate::support::{Host, Ns, PATIENCE, asked, policy};
use serde_json::json;

#[test]
fn published_ports_are_reached_from_everywhere() {
    needs_root!();
    let host = Host::new();
    let outside = host.outside();
    let conf = host.pods(json!({"ipam": {"ranges": [[{"subnet": "fd01::/64"}]]}, "policy": {"egress": {"allow": ["10.1.0.0/24", "fd01::/64"]}}}));
    let mut published = conf.clone();
    published["runtimeConfig"] = json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80}, {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 9090, "containerPort": 80, "hostIP": "192.0.2.1"}]});
    let a = host.add("a", &published);
    let b = host.add("b", &conf);
    let other_net = host.conf("other", "10.2.0.0/24", policy(json!({"allow": ["10.1.0.0/24"]}), json!({})));
    let c = host.add("c", &other_net);
    a.ns.serve_tcp("[::]:80");
    a.ns.serve_tcp("0.0.0.0:81");
    a.ns.serve_udp("0.0.0.0:53");
    assert!(outside.reaches("192.0.2.1:8080"), "from outside");
    assert!(outside.reaches("[2001:db8::1]:8080"), "from outside by IPv6");
    assert_eq!(
        outside.ask_udp("192.0.2.1:5353", PATIENCE).unwrap().to_string(),
        "192.0.2.2",
        "with the true source"
    );
    assert!(host.ns.reaches("192.0.2.1:8080"), "from the host");
    assert!(host.ns.reaches("127.0.0.1:8080"), "from the host by loopback");
    assert!(b.ns.reaches("192.0.2.1:8080"), "from a neighbour");
    assert!(b.ns.reaches("10.1.0.1:8080"), "from a neighbour by the gateway");
    assert!(a.ns.reaches("192.0.2.1:8080"), "from itself");
    assert!(c.ns.reaches("10.2.0.1:8080"), "from another network, which may not reach it otherwise");
    assert!(c.ns.blocked(&format!("{}:80", a.ip())));
    assert!(outside.reaches("192.0.2.1:9090"), "bound to one address");
    assert!(host.ns.blocked("127.0.0.1:9090"), "and to no other");
    outside.ip("route add 10.1.0.0/24 via 192.0.2.1");
    assert!(outside.blocked(&format!("{}:81", a.ip())), "published is the one port only");
    assert!(outside.blocked(&format!("{}:80", a.ip())), "and only by the map");
    let taken = host.call("ADD", "d", "eth0", &Ns::new().path(), &published).unwrap_err();
    assert!(taken["msg"].as_str().unwrap().contains("already mapped to container `a`"), "{taken}");
    let mut never = conf.clone();
    never["runtimeConfig"] =
        json!({"portMappings": [{"hostPort": 7070, "containerPort": 80, "hostIP": "::1"}]});
    let refused = host.call("ADD", "d", "eth0", &Ns::new().path(), &never).unwrap_err();
    assert_eq!(refused["code"], 105, "{refused}");
    host.del(&a, &published);
    assert!(outside.blocked("192.0.2.1:8080"));
    // The port is free for the next.
    let d = host.add("d", &published);
    d.ns.serve_tcp("0.0.0.0:80");
    assert!(outside.reaches("192.0.2.1:8080"));
}

#[test]
fn a_udp_flow_from_before_a_port_was_published_does_not_hide_it() {
    needs_root!();
    // Conntrack must be on for the host to remember the flow: by another network's rules, or by the same one's.
    for (first, subnet) in [("track", "10.3.0.0/24"), ("pods", "10.1.0.0/24")] {
        let host = Host::new();
        let outside = host.outside();
        let conf = host.pods(json!({}));
        let _first = host.add("x", &host.conf(first, subnet, json!({})));
        host.remember_flows();
        let socket = outside.run(|| std::net::UdpSocket::bind("192.0.2.2:4000").unwrap());
        socket.send_to(b"?", "192.0.2.1:5353").unwrap();
        let mut publishing = conf.clone();
        publishing["runtimeConfig"] =
            json!({"portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]});
        let a = host.add("a", &publishing);
        a.ns.serve_udp("0.0.0.0:53");
        let answer = asked(&socket, b"?", "192.0.2.1:5353", PATIENCE);
        assert_eq!(answer.as_deref(), Some(&b"192.0.2.2"[..]), "beside network {first}");
    }
}

//! `WireGuard` as underlay.

use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::IPV4;
use crate::cluster::{Cluster, everybody_reaches_everybody, mtu_of};
use crate::support::frames::{Tap, contains};
use crate::support::{Host, PATIENCE, comes};
use serde_json::json;

/// `wireguard-go` on a host: not every kernel has `WireGuard`, and what it sends is the same.
struct Tunnel {
    name: String,
    process: Child,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Tunnel {
    fn start(host: &Host, n: usize) -> Self {
        // Its control socket is a file called after the interface.
        let name = format!("wg{n}x{}", std::process::id());
        let process = host.ns.run(|| {
            Command::new("wireguard-go")
                .args(["-f", &name])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        });
        let tunnel = Self { name, process };
        let there = || host.ns.command("wg", &["show", &tunnel.name], "").status.success();
        assert!(comes(there), "wireguard-go does not start");
        tunnel
    }
}

#[test]
fn wireguard_carries_it_encrypted_and_unfragmented() {
    needs_root!();
    let cluster = Cluster::new(2, "flood", false, 1500);
    let tunnels: Vec<Tunnel> =
        cluster.hosts.iter().enumerate().map(|(n, host)| Tunnel::start(host, n)).collect();
    let keys: Vec<(String, String)> = (0..2)
        .map(|_| {
            let wg = |args: &[&str], input: &str| {
                let output = cluster.switch.command("wg", args, input);
                String::from_utf8(output.stdout).unwrap().trim().to_owned()
            };
            let private = wg(&["genkey"], "");
            let public = wg(&["pubkey"], &private);
            (private, public)
        })
        .collect();
    for (n, host) in cluster.hosts.iter().enumerate() {
        let (name, other) = (&tunnels[n].name, 1 - n);
        let peer = &keys[other].1;
        let set = host.ns.command(
            "wg",
            &[
                "set",
                name,
                "listen-port",
                "51820",
                "private-key",
                "/dev/stdin",
                "peer",
                peer,
                "allowed-ips",
                &format!("10.99.0.{}/32", other + 1),
                "endpoint",
                &format!("{}:51820", Cluster::v4(other)),
            ],
            &keys[n].0,
        );
        assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
        host.ns.ip(&format!("addr add 10.99.0.{}/24 dev {name}", n + 1));
        host.ns.ip(&format!("link set {name} mtu 1420 up"));
    }
    let nodes = json!([{"name": "a", "address": "10.99.0.1"}, {"name": "b", "address": "10.99.0.2"}]);
    let containers: Vec<_> = (0..2)
        .map(|n| {
            let mut conf = cluster.conf(n, &cluster.all());
            conf["vxlan"]["nodes"] = nodes.clone();
            cluster.hosts[n].add(&format!("c{n}"), &conf)
        })
        .collect();
    assert_eq!(mtu_of(&containers[0]), 1370);
    everybody_reaches_everybody(&containers);
    let wire = Tap::open(&cluster.hosts[1].ns, "u0");
    let target = containers[1].ns.run(|| UdpSocket::bind("0.0.0.0:5000").unwrap());
    target.set_read_timeout(Some(PATIENCE)).unwrap();
    let source = containers[0].ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let payload = vec![b'm'; 1370 - 28];
    source.send_to(&payload, format!("{}:5000", containers[1].ip())).unwrap();
    assert_eq!(target.recv(&mut vec![0; 9000]).unwrap(), payload.len());
    let mut seen = 0;
    while let Some(frame) = wire.receive(Duration::from_millis(50)) {
        assert!(!contains(&frame, b"mmmmmmmm"), "in the clear");
        assert!(frame.len() <= 1514, "{} bytes", frame.len());
        if u16::from_be_bytes([frame[12], frame[13]]) == IPV4 && frame[23] == 17 {
            assert_eq!(u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff, 0, "a fragment");
            assert_eq!(&frame[36..38], 51820_u16.to_be_bytes(), "nothing but WireGuard");
            seen += usize::from(frame.len() > 1400);
        }
    }
    assert_eq!(seen, 1, "one packet, one frame");
}

//! Addresses of the network outside, by its own DHCP server.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

mod support;

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use skep_cni::dhcp::{Client, Identity, Lease, Line, Offered, Outcome, exchange};
use skep_cni::mac::Mac;
use support::frames::{BROADCAST, Tap, ethernet, ipv4, udp};
use support::{Daemon, Host, Ns, PATIENCE, SILENCE, comes};

const IPV4: u16 = 0x0800;

/// Starts a program that goes on. What it says is in the file `log`.
fn daemon(ns: &Ns, program: &str, args: &[&str], log: &Path) -> Daemon {
    let log = File::create(log).unwrap();
    Daemon(ns.run(|| {
        Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"))
    }))
}

/// How long containernetworking's daemon goes on asking. It waits four seconds between two questions, whatever it is told, and
/// asks again as long as that is less than its limit.
#[derive(Clone, Copy)]
enum Asking {
    /// For a case in which nobody answers.
    Once,
    /// Four times: an answer on a busy machine may take longer than one question waits.
    On,
}

/// A host with a card on a network that has a DHCP server, and containernetworking's daemon.
struct Site {
    host: Host,
    outside: Ns,
    leases: PathBuf,
    socket: PathBuf,
    daemons: Vec<Daemon>,
}

impl Site {
    fn new() -> Self {
        let host = Host::new();
        let outside = Ns::new();
        host.ns.wire("nic0", &outside, "far0");
        outside.ip("addr add 203.0.113.1/24 dev far0");
        let (leases, socket) = (host.dir.path().join("leases"), host.dir.path().join("dhcp.sock"));
        Self { host, outside, leases, socket, daemons: Vec::new() }
    }

    /// Starts the server, and waits until it hears questions: a program that was not read from the disk before may take seconds.
    fn start_server(&mut self) {
        let leases = format!("--dhcp-leasefile={}", self.leases.display());
        // Or it is the machine's, for which servers of cases at the same time race: who loses ends.
        let pid = format!("--pid-file={}", self.log("dnsmasq").with_extension("pid").display());
        let log = self.log("dnsmasq");
        self.daemons.push(daemon(
            &self.outside,
            "dnsmasq",
            &[
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--port=0",
                "--interface=far0",
                "--bind-interfaces",
                "--dhcp-authoritative",
                "--no-ping",
                "--dhcp-range=203.0.113.50,203.0.113.60,600",
                "--log-facility=-",
                &leases,
                &pid,
            ],
            &log,
        ));
        let bound = || {
            let sockets = self.outside.run(|| std::fs::read_to_string("/proc/thread-self/net/udp").unwrap());
            sockets.lines().any(|line| line.split_whitespace().nth(1).is_some_and(|at| at.ends_with(":0043")))
        };
        assert!(comes(bound), "dnsmasq does not start: {}", std::fs::read_to_string(log).unwrap());
    }

    fn start_client(&mut self, asking: Asking) {
        let (wait, limit) = match asking {
            Asking::Once => ("2s", "2s"),
            Asking::On => ("10s", "32s"),
        };
        let socket = self.socket.display().to_string();
        let log = self.log("dhcp");
        self.daemons.push(daemon(
            &self.host.ns,
            "/usr/lib/cni/dhcp",
            &["daemon", "-socketpath", &socket, "-timeout", wait, "-resendmax", limit],
            &log,
        ));
        let there = comes(|| UnixStream::connect(&self.socket).is_ok());
        assert!(there, "the dhcp daemon does not start: {}", std::fs::read_to_string(log).unwrap());
    }

    fn log(&self, program: &str) -> PathBuf {
        self.host.dir.path().join(format!("{program}.log"))
    }

    fn conf(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "public", "type": "skep-cni", "dataDir": self.host.data_dir(),
            "uplink": "nic0", "ipam": {"type": "dhcp", "daemonSocketPath": self.socket},
            "policy": {"egress": {"allow": [{"cidr": "203.0.113.1", "protocol": "tcp", "ports": [80]}]}},
        })
    }

    /// What the host has. The kernel gives the card its own IPv6 address some time after the card came up, on a busy machine
    /// seconds: only what is settled can be compared.
    fn census(&self) -> String {
        self.host.ns.settle_link("nic0");
        self.host.ns.census()
    }

    /// How many addresses the server has given out. That one is given back it is told without an answer.
    fn leased(&self) -> usize {
        std::fs::read_to_string(&self.leases).unwrap_or_default().lines().count()
    }
}

#[test]
fn a_sandbox_has_an_address_of_the_networks_server_and_no_other() {
    needs_root!();
    let mut site = Site::new();
    let before = site.census();
    site.start_server();
    site.start_client(Asking::On);
    site.outside.serve_tcp("0.0.0.0:80");
    site.outside.serve_tcp("0.0.0.0:81");
    let conf = site.conf();
    let (a, b) = (site.host.add("a", &conf), site.host.add("b", &conf));
    let range = Ipv4Addr::new(203, 0, 113, 50)..=Ipv4Addr::new(203, 0, 113, 60);
    assert!([&a, &b].iter().all(|one| range.contains(&one.ip().parse::<Ipv4Addr>().unwrap())));
    assert_ne!(a.ip(), b.ip());
    assert_eq!(a.result["ips"][0]["gateway"], "203.0.113.1");
    assert!(a.ns.ip("route show default").contains("via 203.0.113.1"));
    assert_eq!(site.leased(), 2);
    site.host.check(&a, &conf).unwrap();
    // The policy holds.
    assert!(a.ns.reaches("203.0.113.1:80"));
    assert!(a.ns.blocked("203.0.113.1:81"));
    assert!(a.ns.blocked(&format!("{}:80", b.ip())));
    // The gateway is the network's, not the host's.
    assert!(!site.host.ns.ip("-br addr").contains("203.0.113."));

    // A lease can be renewed, which no list allows; by its owner only, and nothing else passes for it.
    let wire = Tap::open(&site.outside, "far0");
    let from = Tap::open(&a.ns, "eth0");
    let own: Ipv4Addr = a.ip().parse().unwrap();
    let other: Ipv4Addr = b.ip().parse().unwrap();
    let server = Ipv4Addr::new(203, 0, 113, 1);
    let send = |source: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), mark: &[u8]| {
        from.send(&ethernet(BROADCAST, a.mac(), IPV4, &ipv4(source, to, 17, &udp(ports.0, ports.1, mark))));
    };
    send(own, server, (68, 67), b"<<renew>>");
    assert!(wire.sees(b"<<renew>>", PATIENCE), "renewing");
    send(own, Ipv4Addr::BROADCAST, (68, 67), b"<<rebind>>");
    assert!(wire.sees(b"<<rebind>>", PATIENCE), "rebinding");
    send(other, server, (68, 67), b"<<stolen>>");
    assert!(!wire.sees(b"<<stolen>>", SILENCE), "with another's address");
    send(own, server, (68, 69), b"<<tftp>>");
    assert!(!wire.sees(b"<<tftp>>", SILENCE), "another port");
    // No sandbox is a server, and none hears others ask.
    let at = Tap::open(&b.ns, "eth0");
    send(own, other, (67, 68), b"<<offer>>");
    assert!(!at.sees(b"<<offer>>", SILENCE), "an answer of a sandbox");
    send(own, Ipv4Addr::BROADCAST, (68, 67), b"<<overheard>>");
    assert!(!at.sees(b"<<overheard>>", SILENCE), "a question of a sandbox");
    // An answer of the server arrives, though it is to everybody.
    let far = Tap::open(&site.outside, "far0");
    let answer = ipv4(server, Ipv4Addr::BROADCAST, 17, &udp(67, 68, b"<<answer>>"));
    far.send(&ethernet(BROADCAST, [2, 1, 1, 1, 1, 1], IPV4, &answer));
    assert!(at.sees(b"<<answer>>", PATIENCE));

    site.host.del(&a, &conf);
    assert!(comes(|| site.leased() == 1), "the lease is given back");
    site.host.del(&b, &conf);
    site.host.del(&b, &conf);
    assert_eq!(site.census(), before);
    assert_eq!(site.host.files(), Vec::<String>::new());
}

#[test]
fn without_an_answer_nothing_is_left() {
    needs_root!();
    let mut site = Site::new();
    let before = site.census();
    let ns = Ns::new();
    let conf = site.conf();
    // Nobody runs the daemon.
    let error = site.host.call("ADD", "a", "eth0", &ns.path(), &conf).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("dhcp.sock"), "{error}");
    assert_eq!(site.census(), before);
    assert_eq!(site.host.files(), Vec::<String>::new());
    assert!(!ns.ip("-br link").contains("eth0"));
    // Nobody answers it.
    site.start_client(Asking::Once);
    site.host.call("ADD", "a", "eth0", &ns.path(), &conf).unwrap_err();
    assert_eq!(site.census(), before);
    assert_eq!(site.host.files(), Vec::<String>::new());
    // In time somebody does.
    site.daemons.clear();
    std::fs::remove_file(&site.socket).unwrap();
    site.start_server();
    site.start_client(Asking::On);
    site.host.call("ADD", "a", "eth0", &ns.path(), &conf).unwrap();
    // A lease that cannot be given back is told; all else is undone.
    site.daemons.clear();
    let error = site.host.call("DEL", "a", "eth0", &ns.path(), &conf).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("dhcp.sock"), "{error}");
    assert_eq!(site.census(), before);
    assert_eq!(site.host.files(), Vec::<String>::new());
    assert!(!ns.ip("-br link").contains("eth0"));
}

/// The plugin's own client, which asks where there is no daemon, on an interface.
struct Wire(Tap);

impl Line for Wire {
    fn send(&mut self, frame: &[u8]) -> std::io::Result<()> {
        self.0.send(frame);
        Ok(())
    }

    fn receive(&mut self, until: Instant) -> std::io::Result<Option<Vec<u8>>> {
        Ok(self.0.receive(until.saturating_duration_since(Instant::now())))
    }
}

const CLIENT: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn identity() -> Identity {
    Identity {
        mac: CLIENT,
        client_id: Identity::client_id_of("public", "c", "eth0"),
        provide: [(12, b"web".to_vec())].into(),
        request: vec![1, 121, 3, 6, 15],
    }
}

fn bound(outcome: Outcome) -> (Lease, Offered) {
    match outcome {
        Outcome::Bound(lease, offered) => (*lease, offered),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_plugins_own_client_and_a_server_understand_each_other() {
    needs_root!();
    let mut site = Site::new();
    let mut wire = Wire(Tap::open(&site.host.ns, "nic0"));
    let mut talk = |client: Client| exchange(client, CLIENT, &mut wire).unwrap();
    site.start_server();
    let (lease, offered) = bound(talk(Client::acquire(identity(), None, 1)));
    let range = Ipv4Addr::new(203, 0, 113, 50)..=Ipv4Addr::new(203, 0, 113, 60);
    assert!(range.contains(&lease.address.addr()));
    assert_eq!((lease.address.prefix_len(), lease.server), (24, Ipv4Addr::new(203, 0, 113, 1)));
    assert_eq!(lease.times, Some((600, 300, 525)));
    assert_eq!(offered.routes, [("0.0.0.0/0".parse().unwrap(), Some(lease.server))]);
    let known = std::fs::read_to_string(&site.leases).unwrap();
    assert!(known.contains(&lease.address.addr().to_string()) && known.contains(" web ff:"), "{known}");
    // More time, of the server alone and of anyone. It is told where the address is.
    site.host.ns.ip(&format!("addr add {} dev nic0", lease.address));
    for anyone in [false, true] {
        // It asks once, for a few seconds.
        let mut outcomes = (0..10).map(|_| talk(Client::extend(&lease, anyone, 2)));
        let (again, _) = bound(outcomes.find(|outcome| *outcome != Outcome::Silent).expect("an answer"));
        assert_eq!((again.address, again.server_mac), (lease.address, lease.server_mac));
    }
    // The same one gets the same one.
    let (again, _) = bound(talk(Client::acquire(identity(), Some(lease.address.addr()), 3)));
    assert_eq!(again.address, lease.address);
    // Given back it is nobody's.
    wire.send(&Client::release(&lease, 4)).unwrap();
    assert!(comes(|| site.leased() == 0), "the lease is not given back");
    let mut talk = |client: Client| exchange(client, CLIENT, &mut wire).unwrap();
    // A server that is told of an address which cannot be takes it away.
    let mut wrong = lease.clone();
    wrong.address = "198.51.100.9/24".parse().unwrap();
    assert!(matches!(talk(Client::extend(&wrong, true, 5)), Outcome::Refused(..)));
    assert_eq!(talk(Client::acquire(identity(), Some(wrong.address.addr()), 6)), Outcome::Silent);
    site.daemons.clear();
    assert_eq!(talk(Client::extend(&lease, false, 7)), Outcome::Silent);
}

//! Figures on FreeBSD. Nothing is asserted: run by `cargo xtask freebsd test --only cni-bench`.
#![cfg(target_os = "freebsd")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a benchmark"
)]

mod jails;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use jails::{Host, Jail, alone, evaluations, merge, open_policy, sh};
use serde_json::{Value, json};
use skep_cni::datapath::{Datapath as _, Host as Kernel};
use skep_cni::network::Store;
use skep_cni::plugin;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn ratio(slow: Duration, fast: Duration) -> f64 {
    slow.as_secs_f64() / fast.as_secs_f64()
}

/// devd(8) is stopped: for each interface that comes it runs programs, which are none of what is measured. FreeBSD 15.1 does
/// not always survive a list of all neighbours (`lltable_sysctl_dumparp`) while interfaces come, and such a program may ask
/// for one.
struct Quiet;

impl Quiet {
    fn new() -> Self {
        sh("service devd onestop >/dev/null 2>&1 || true; killall -q dhclient || true");
        Self
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        sh("service devd onestart >/dev/null 2>&1 || true");
    }
}

/// How many rules pf looks at for a new flow, with 10, 100 and 1,000 sandboxes on the host: exact, whatever the machine.
#[test]
#[ignore = "a benchmark"]
fn cost_of_a_new_flow() {
    const FLOWS: u64 = 20;
    let _turn = alone();
    let _quiet = Quiet::new();
    let host = Host::new(None);
    let outside = Jail::new();
    let (_, wire) = outside.wire(None, "192.0.2.2/24", "192.0.2.1/24");
    outside.serve_tcp("0.0.0.0:80");
    outside.sh("route -q add 10.1.0.0/16 192.0.2.1");
    let mut conf = host.conf("pods", "10.1.0.0/16", open_policy());
    merge(&mut conf, json!({"ipMasq": true}));
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    b.jail.serve_tcp("0.0.0.0:80");
    let to_b = format!("{}:80", b.ip());
    let mut vms = Vec::new();
    println!("rules looked at for a new TCP flow, address translation included:");
    println!("{:>9} {:>12} {:>12} {:>12}", "sandboxes", "bridged", "to outside", "from outside");
    for sandboxes in [10, 100, 1000] {
        while vms.len() + 2 < sandboxes {
            let id = format!("vm{}", vms.len());
            host.call("ADD", &id, "0", &conf).unwrap_or_else(|error| panic!("ADD {id}: {error}"));
            vms.push(id);
        }
        let ways: [&dyn Fn() -> bool; 3] =
            [&|| a.jail.reaches(&to_b), &|| a.jail.reaches("192.0.2.2:80"), &|| outside.reaches(&to_b)];
        let mut before = evaluations(&[&a, &b]);
        let [bridged, out, inward] = ways.map(|connects| {
            for _ in 0..FLOWS {
                assert!(connects());
            }
            let after = evaluations(&[&a, &b]);
            (after - std::mem::replace(&mut before, after)) as f64 / FLOWS as f64
        });
        println!("{sandboxes:>9} {bridged:>12.1} {out:>12.1} {inward:>12.1}");
    }
    for id in &vms {
        host.call("DEL", id, "0", &conf).unwrap_or_else(|error| panic!("DEL {id}: {error}"));
    }
    for one in [&a, &b] {
        host.del(one, &conf);
    }
    sh(&format!("ifconfig {wire} destroy"));
}

/// The anchor of a sandbox's filter: another's may still be there, known to flows that have ended just now.
fn anchor_of(id: &str) -> String {
    sh(&format!("pfctl -q -v -a skep -s Anchors | awk '/port/ && /{id}$/ {{print $1}}'"))
}

/// The lists of a policy that denies a thousand addresses.
fn thousand(round: usize) -> Value {
    let net = |n: usize| format!("198.{}.{}.{}", 18 + round % 2, n / 250, n % 250 + 1);
    json!({"egress": {"deny": (0..1000).map(net).collect::<Vec<_>>(), "allow": ["any"]}})
}

/// pf(4)'s request to replace what is in a table, with all of it ready.
mod raw {
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsRawFd as _;

    /// `struct pfr_addr` of net/pfvar.h.
    #[repr(C)]
    #[derive(Clone)]
    pub(crate) struct Address {
        ip: [u8; 16],
        family: u8,
        prefix: u8,
        not: u8,
        feedback: u8,
    }

    /// `struct pfioc_table` of net/pfvar.h.
    #[repr(C)]
    struct Request {
        anchor: [u8; 1024],
        name: [u8; 32],
        kept: u32,
        feedback: u8,
        buffer: *mut Address,
        element: i32,
        size: i32,
        told: [i32; 4],
        flags: i32,
        ticket: u32,
    }

    /// A thousand addresses: list 1 has none of list 0, list 2 has all of it but one.
    pub(crate) fn list(kind: u8) -> Vec<Address> {
        let third = |n: usize| (n / 250) as u8;
        let mut list: Vec<Address> = (0..1000)
            .map(|n| {
                let mut ip = [0; 16];
                ip[..4].copy_from_slice(&[
                    198,
                    if kind == 1 { 19 } else { 18 },
                    third(n),
                    (n % 250) as u8 + 1,
                ]);
                Address { ip, family: 2, prefix: 32, not: 0, feedback: 0 }
            })
            .collect();
        if kind == 2 {
            list[500].ip[1] = 20;
        }
        list
    }

    pub(crate) struct Table {
        pf: File,
        lists: [Vec<Address>; 2],
        anchor: [u8; 1024],
        name: [u8; 32],
    }

    impl Table {
        pub(crate) fn new(anchor: &str, name: &str, lists: [Vec<Address>; 2]) -> Self {
            let pf = OpenOptions::new().read(true).write(true).open("/dev/pf").unwrap();
            let mut table = Self { pf, lists, anchor: [0; 1024], name: [0; 32] };
            table.anchor[..anchor.len()].copy_from_slice(anchor.as_bytes());
            table.name[..name.len()].copy_from_slice(name.as_bytes());
            table
        }

        pub(crate) fn set(&mut self, list: usize) {
            const DIOCRSETADDRS: libc::c_ulong = 0xc450_4445;
            const _: () = assert!(size_of::<Request>() == 0x450);
            let list = &mut self.lists[list];
            let mut request = Request {
                anchor: self.anchor,
                name: self.name,
                kept: 0,
                feedback: 0,
                buffer: list.as_mut_ptr(),
                element: 20,
                size: 1000,
                told: [0; 4],
                flags: 0,
                ticket: 0,
            };
            // SAFETY: the request is of the length that its number says, and the list lives through the call.
            let done = unsafe { libc::ioctl(self.pf.as_raw_fd(), DIOCRSETADDRS, &raw mut request) };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        }
    }
}

/// A deny list of 1,000 addresses is replaced: by us, and by a pfctl(8) that is run for it.
#[test]
#[ignore = "a benchmark"]
fn replacing_a_thousand_addresses() {
    const ROUNDS: usize = 40;
    let _turn = alone();
    let host = Host::new(None);
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    host.call("ADD", "vm", "0", &conf).unwrap_or_else(|error| panic!("{error}"));
    let kernel = Kernel::new().unwrap();
    let store = Store::new(host.data_dir());
    let mut live = plugin::LivePolicy::open(&kernel, &store, "pods", "vm", "eth0").unwrap();
    let mut set = |round| live.replace(serde_json::from_value(thousand(round)).unwrap()).unwrap();
    // The first makes the table.
    set(0);
    let whole = median((1..=ROUNDS).map(|round| timed(|| set(round))).collect());
    let state = store.load().unwrap();
    let (network, mut attachment) = (&state.networks[0], state.attachments[0].clone());
    let replace = (1..=ROUNDS).map(|round| {
        attachment.policy = serde_json::from_value(thousand(round)).unwrap();
        timed(|| kernel.update_policy(network, &attachment, &|| store.load(), &|_, _| false).unwrap())
    });
    let replace = median(replace.collect());
    let anchor = anchor_of(&attachment.id);
    let [mut other, mut nearly] = [(0, 1), (0, 2)].map(|(one, two)| {
        raw::Table::new(anchor.trim(), "out_deny_own_any_0_65535", [one, two].map(raw::list))
    });
    let other_list = median((1..=ROUNDS).map(|round| timed(|| other.set(round % 2))).collect());
    nearly.set(0);
    let one_differs = median((1..=ROUNDS).map(|round| timed(|| nearly.set(round % 2))).collect());
    let same = median((1..=ROUNDS).map(|_| timed(|| nearly.set(0))).collect());
    let files: Vec<_> = (0..2)
        .map(|round| {
            let file = host.dir.path().join(format!("list{round}"));
            let policy = thousand(round);
            let lines: Vec<&str> =
                policy["egress"]["deny"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            std::fs::write(&file, lines.join("\n")).unwrap();
            file.display().to_string()
        })
        .collect();
    let forked = (1..=ROUNDS).map(|round| {
        let table = ["-t", "out_deny_own_any_0_65535", "-T", "replace", "-f", &files[round % 2]];
        timed(|| drop(jails::run("/sbin/pfctl", &[&["-q", "-a", anchor.trim()], &table[..]].concat())))
    });
    let forked = median(forked.collect());
    println!("replacing 1,000 addresses: pfctl -T replace {forked:?}");
    println!(
        "  the kernel's part, flows looked through: {replace:?}, {:.0} times as fast",
        ratio(forked, replace)
    );
    println!(
        "  the ioctl (DIOCRSETADDRS) alone, with lists made before: {other_list:?}, {:.0} times as fast; where one address \
         differs {one_differs:?}, where none does {same:?}",
        ratio(forked, other_list)
    );
    println!("  with the record on disk: {whole:?}, {:.0} times as fast", ratio(forked, whole));
    let few = |round: usize| json!({"egress": {"deny": [format!("198.18.0.{}", round % 200 + 1)], "allow": ["any"]}});
    let start = Instant::now();
    for round in 0..ROUNDS * 10 {
        attachment.policy = serde_json::from_value(few(round)).unwrap();
        kernel.update_policy(network, &attachment, &|| store.load(), &|_, _| false).unwrap();
    }
    let each = start.elapsed() / u32::try_from(ROUNDS * 10).unwrap();
    println!("  one address: {each:?}, {:.0} updates/s", 1.0 / each.as_secs_f64());
    host.call("DEL", "vm", "0", &conf).unwrap();
}

/// What ADD makes, by the programs an administrator has: nobody else's plugin does it on FreeBSD.
struct Script<'a> {
    dir: &'a std::path::Path,
    /// The rules of a sandbox of ours, by the name of its port, its bridge and its address.
    rules: String,
}

impl Script<'_> {
    fn add(&self, n: usize, jail: &Jail) {
        // pf refuses one of two loads at a time.
        let rules = self.dir.join(format!("rules{n}"));
        let ip = format!("10.50.0.{}", n + 2);
        let mac = format!("02:50:00:00:00:{n:02x}");
        std::fs::write(&rules, self.rules.replace("PORT", &format!("ref{n}x")).replace("IP", &ip)).unwrap();
        sh(&format!(
            "a=$(ifconfig epair create); b=${{a%a}}b; ifconfig $a name ref{n}x >/dev/null; ifconfig ref{n}x mtu 1500 group refs up; \
             ifconfig refbr addm ref{n}x; ifconfig refbr -discover ref{n}x -learn ref{n}x; \
             ifconfig refbr static ref{n}x {mac}; ifconfig $b ether {mac}; ifconfig $b vnet {jail}; \
             jexec {jail} ifconfig $b name eth0 >/dev/null; jexec {jail} ifconfig eth0 inet {ip}/16 up; \
             jexec {jail} route -q add default 10.50.0.1; arp -S {ip} {mac} >/dev/null; \
             lockf -k /tmp/refs.lock pfctl -q -a refs/{n} -f {}",
            rules.display(),
            jail = jail.name,
        ));
    }

    fn del(n: usize) {
        sh(&format!(
            "ifconfig ref{n}x destroy; arp -d 10.50.0.{m} >/dev/null 2>&1 || true; pfctl -q -a refs/{n} -F rules; \
             pfctl -q -a refs/{n} -F Tables; pfctl -q -k 10.50.0.{m}; pfctl -q -k 0/0 -k 10.50.0.{m}",
            m = n + 2
        ));
    }
}

/// ADD and DEL of a sandbox in a jail, alone and fifty at once, beside a script of ifconfig(8) and pfctl(8).
#[test]
#[ignore = "a benchmark"]
fn add_and_del() {
    const ROUNDS: usize = 10;
    const CROWD: usize = 50;
    let _turn = alone();
    let host = Host::new(None);
    let conf = host.conf("pods", "10.60.0.0/16", open_policy());
    // One stays, so that nobody pays for making and removing the bridge.
    let stay = host.add("stay", &conf);
    let anchor = anchor_of(&Store::new(host.data_dir()).load().unwrap().attachments[0].id);
    let rules = sh(&format!("pfctl -q -a {} -s rules", anchor.trim()))
        .replace(&stay.host_ifname(), "PORT")
        .replace("skb-pods", "refbr")
        .replace("<skepa_", "<refa_");
    let never = sh(&format!("pfctl -q -a {} -t never -T show", anchor.trim()))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(", ");
    let script = Script {
        dir: host.dir.path(),
        rules: format!("table <never> {{ {never} }}\ntable <own> {{ IP }}\n{rules}"),
    };
    sh("b=$(ifconfig bridge create); ifconfig $b name refbr >/dev/null; ifconfig refbr inet 10.50.0.1/16 up");
    let mut times: [Vec<Duration>; 4] = Default::default();
    for n in 0..ROUNDS {
        let (theirs, ours) = (Jail::new(), Jail::new());
        let id = format!("c{n}");
        times[0].push(timed(|| script.add(n, &theirs)));
        times[1].push(timed(|| Script::del(n)));
        times[2].push(timed(|| drop(host.call("ADD", &id, &ours.name, &conf).unwrap())));
        times[3].push(timed(|| drop(host.call("DEL", &id, &ours.name, &conf).unwrap())));
    }
    let [script_add, script_del, our_add, our_del] = times.map(median);
    println!(
        "ADD alone: script {script_add:?}, skep-cni {our_add:?}, ratio {:.2}",
        ratio(script_add, our_add)
    );
    println!(
        "DEL alone: script {script_del:?}, skep-cni {our_del:?}, ratio {:.2}",
        ratio(script_del, our_del)
    );
    let jails: Vec<Jail> = (0..CROWD).map(|_| Jail::new()).collect();
    let crowd = |work: &(dyn Fn(usize, &Jail) + Sync)| {
        timed(|| {
            std::thread::scope(|scope| {
                for (n, jail) in jails.iter().enumerate() {
                    scope.spawn(move || work(n, jail));
                }
            });
        })
    };
    let script_add = crowd(&|n, jail| script.add(n, jail));
    let script_del = crowd(&|n, _| Script::del(n));
    let our_add = crowd(&|n, jail| drop(host.call("ADD", &format!("p{n}"), &jail.name, &conf).unwrap()));
    let our_del = crowd(&|n, jail| drop(host.call("DEL", &format!("p{n}"), &jail.name, &conf).unwrap()));
    println!(
        "ADD, {CROWD} at once: script {script_add:?}, skep-cni {our_add:?}, ratio {:.2}",
        ratio(script_add, our_add)
    );
    println!(
        "DEL, {CROWD} at once: script {script_del:?}, skep-cni {our_del:?}, ratio {:.2}",
        ratio(script_del, our_del)
    );
    sh("ifconfig refbr destroy");
    host.del(&stay, &conf);
}

/// TCP from one stack to another: Mbit/s, and the median round trip of four bytes.
fn transfer(from: &Jail, to: &Jail, at: &str) -> String {
    to.serve_tcp(&format!("{at}:90"));
    let (address, sink) = (format!("{at}:90"), format!("{at}:91"));
    to.serve(move || {
        let Ok(listener) = TcpListener::bind(&sink) else { return };
        let Ok((mut stream, _)) = listener.accept() else { return };
        let (mut total, mut buffer) = (0_u64, vec![0; 1 << 17]);
        let mut start = None;
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            start.get_or_insert_with(Instant::now);
            total += n as u64;
        }
        let seconds = start.map_or(1.0, |start| start.elapsed().as_secs_f64());
        let _ = write!(stream, "{:.0}", total as f64 * 8.0 / seconds / 1e6);
    });
    let sink = format!("{at}:91");
    from.tell(move || {
        let mut stream = TcpStream::connect(&address).ok()?;
        stream.set_nodelay(true).ok()?;
        let mut times = Vec::new();
        for _ in 0..400 {
            let start = Instant::now();
            stream.write_all(b"ping").ok()?;
            stream.read_exact(&mut [0; 4]).ok()?;
            times.push(start.elapsed());
        }
        let mut stream = TcpStream::connect(&sink).ok()?;
        let (start, chunk) = (Instant::now(), vec![0; 1 << 17]);
        while start.elapsed() < Duration::from_secs(5) {
            stream.write_all(&chunk).ok()?;
        }
        stream.shutdown(std::net::Shutdown::Write).ok()?;
        let mut rate = String::new();
        stream.read_to_string(&mut rate).ok()?;
        Some(format!("{rate} Mbit/s, round trip {:?}", median(times)))
    })
}

/// Throughput and round trip between two jails: on a plain epair, on a plain bridge, as sandboxes on one bridge, and across
/// VXLAN with a kernel's plain link at the other end.
#[test]
#[ignore = "a benchmark"]
fn throughput_and_round_trip() {
    let _turn = alone();
    let host = Host::new(None);
    let (one, two) = (Jail::new(), Jail::new());
    one.wire(Some(&two), "10.9.0.1/24", "10.9.0.2/24");
    println!("a plain epair: {}", transfer(&one, &two, "10.9.0.2"));
    let ends = [Jail::new(), Jail::new()];
    sh("b=$(ifconfig bridge create); ifconfig $b name plainbr up >/dev/null");
    for (n, end) in ends.iter().enumerate() {
        sh(&format!(
            "a=$(ifconfig epair create); ifconfig $a up; ifconfig plainbr addm $a; ifconfig ${{a%a}}b vnet {jail}; \
             jexec {jail} ifconfig ${{a%a}}b inet 10.8.0.{}/24 up",
            n + 1,
            jail = end.name
        ));
    }
    println!("a plain bridge: {}", transfer(&ends[0], &ends[1], "10.8.0.2"));
    sh(
        "for i in $(ifconfig plainbr | awk '/member:/ {print $2}'); do ifconfig $i destroy; done; ifconfig plainbr destroy",
    );
    let conf = host.conf("pods", "10.1.0.0/24", open_policy());
    let (a, b) = (host.add("a", &conf), host.add("b", &conf));
    println!("two sandboxes on one bridge: {}", transfer(&a.jail, &b.jail, &b.ip()));
    let far = jails::Node::new("192.0.2.1", "192.0.2.2");
    far.jail.sh("route -q add 10.1.0.0/24 192.0.2.1");
    println!(
        "the wire between two hosts, to a jail behind it: {}",
        transfer(&a.jail, &far.jail, "192.0.2.2")
    );
    let mut vpc = host.conf("vpc", "10.5.0.0/24", open_policy());
    merge(
        &mut vpc,
        json!({"vxlan": {"vni": 100, "nodes": [
        {"name": "here", "address": "192.0.2.1"}, {"name": "there", "address": "192.0.2.2"}]}}),
    );
    let c = host.add("c", &vpc);
    far.link(100, "10.5.0.77/24");
    println!("across VXLAN: {}", transfer(&c.jail, &far.jail, "10.5.0.77"));
    host.del(&c, &vpc);
    drop(far);
    for one in [&a, &b] {
        host.del(one, &conf);
    }
}

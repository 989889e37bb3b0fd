//! ADD and DEL of a sandbox in a jail, alone and fifty at once, beside other ways to the same.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use skep_cni::network::Store;

use crate::jails::{Host, Jail, alone, merge, open_policy, sh};
use crate::{Quiet, anchor_of, median, ratio, timed};

const ROUNDS: usize = 10;
const CROWD: usize = 50;
/// Those that stay while others come and go, so that nobody pays for making and removing the bridge.
const STAYS: usize = 99;

/// A way to attach jails to a network.
trait Attach: Sync {
    /// Attaches the jail with this number.
    fn add(&self, n: usize, jail: &Jail);
    /// Undoes it.
    fn del(&self, n: usize, jail: &Jail);
}

/// Ours.
struct Ours<'a> {
    host: &'a Host<'a>,
    /// Whether a port is published and the host's address is lent.
    published: bool,
}

impl Ours<'_> {
    fn call(&self, verb: &str, n: usize, jail: &Jail) {
        let mut conf = self.host.conf("pods", "10.60.0.0/16", open_policy());
        if self.published {
            merge(&mut conf, json!({"ipMasq": true, "runtimeConfig": published(21_000, n)}));
        }
        self.host.call(verb, &id(n), &jail.name, &conf).unwrap_or_else(|error| panic!("{verb}: {error}"));
    }
}

impl Attach for Ours<'_> {
    fn add(&self, n: usize, jail: &Jail) {
        self.call("ADD", n, jail);
    }

    fn del(&self, n: usize, jail: &Jail) {
        self.call("DEL", n, jail);
    }
}

/// A container's id; portmap of FreeBSD's package wants 32 letters.
fn id(n: usize) -> String {
    format!("{n:032x}")
}

fn published(first: u16, n: usize) -> Value {
    json!({"portMappings": [{"hostPort": first + n as u16, "containerPort": 80, "protocol": "tcp"}]})
}

/// What ADD makes, by the programs an administrator has.
struct Script<'a> {
    dir: &'a Path,
    /// The rules of a sandbox of ours, by the name of its port, its bridge and its address.
    rules: String,
}

impl Attach for Script<'_> {
    fn add(&self, n: usize, jail: &Jail) {
        // pf refuses one of two loads at a time, and pfctl gives up when an interface goes while it looks at all of them.
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
             t=0; until lockf -k /tmp/refs.lock pfctl -q -a refs/{n} -f {}; do t=$((t + 1)); [ $t -lt 20 ]; done",
            rules.display(),
            jail = jail.name,
        ));
    }

    fn del(&self, n: usize, _: &Jail) {
        sh(&format!(
            "ifconfig ref{n}x destroy; arp -d 10.50.0.{m} >/dev/null 2>&1 || true; pfctl -q -a refs/{n} -F rules; \
             pfctl -q -a refs/{n} -F Tables; pfctl -q -k 10.50.0.{m}; pfctl -q -k 0/0 -k 10.50.0.{m}",
            m = n + 2
        ));
    }
}

/// The plugins of FreeBSD's package (`pkg install containernetworking-plugins`).
struct Package<'a> {
    host: &'a Host<'a>,
    /// What ADD told, which DEL wants to know.
    made: Mutex<HashMap<usize, Value>>,
    /// How often a plugin failed because others used pf at that moment; it was called again.
    failed: AtomicUsize,
}

impl Package<'_> {
    const DIR: &'static str = "/usr/local/libexec/cni";

    /// Bridge, portmap, firewall.
    fn confs(&self, n: usize) -> [Value; 3] {
        let leases = self.host.dir.path().join("leases");
        let mut all = ["bridge", "portmap", "firewall"]
            .map(|plugin| json!({"cniVersion": "1.0.0", "name": "ref", "type": plugin}));
        merge(
            &mut all[0],
            json!({"bridge": "refbr", "isGateway": true, "isDefaultGateway": true, "ipMasq": true,
                "ipam": {"type": "host-local", "dataDir": leases, "subnet": "10.50.0.0/16"}}),
        );
        merge(&mut all[1], json!({"runtimeConfig": published(20_000, n)}));
        all
    }

    fn call(&self, verb: &str, n: usize, jail: &Jail, conf: &Value) -> Value {
        loop {
            match Self::try_call(verb, n, jail, conf) {
                Ok(told) => return told,
                Err(told) if ["busy", "not configured"].iter().any(|why| told.contains(why)) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                }
                Err(told) => panic!("{verb} {conf}: {told}"),
            }
        }
    }

    fn try_call(verb: &str, n: usize, jail: &Jail, conf: &Value) -> Result<Value, String> {
        let program = format!("{}/{}", Self::DIR, conf["type"].as_str().unwrap());
        let mut child = Command::new(&program)
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", &id(n)), ("CNI_NETNS", &jail.name)])
            .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", Self::DIR)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(told.into_owned());
        }
        Ok(serde_json::from_str(&told).unwrap_or_default())
    }
}

impl Attach for Package<'_> {
    fn add(&self, n: usize, jail: &Jail) {
        let mut made = Value::Null;
        for mut conf in self.confs(n) {
            if !made.is_null() {
                conf["prevResult"] = made;
            }
            made = self.call("ADD", n, jail, &conf);
        }
        self.made.lock().unwrap().insert(n, made);
    }

    fn del(&self, n: usize, jail: &Jail) {
        let made = self.made.lock().unwrap().remove(&n).unwrap();
        for mut conf in self.confs(n).into_iter().rev() {
            conf["prevResult"] = made.clone();
            self.call("DEL", n, jail, &conf);
        }
    }
}

/// Tells how long both take, in turns.
fn beside(name: &str, theirs: &dyn Attach, ours: &dyn Attach) {
    let tell = |what: &str, [theirs, ours]: [Duration; 2]| {
        println!("{what}: {name} {theirs:?}, skep-cni {ours:?}, ratio {:.2}", ratio(theirs, ours));
    };
    let ways = [theirs, ours];
    // All of them first: FreeBSD takes a second to end one, in which others wait.
    let jails: Vec<Jail> = (0..CROWD).map(|_| Jail::new()).collect();
    let (mut add, mut del): ([Vec<Duration>; 2], [Vec<Duration>; 2]) = Default::default();
    // A jail for each way; all are attached before the first is detached, since what that leaves to be done is waited for, too.
    let alone = || jails.chunks(2).take(ROUNDS).enumerate();
    for (n, pair) in alone() {
        for ((way, times), jail) in ways.iter().zip(&mut add).zip(pair) {
            times.push(timed(|| way.add(n, jail)));
        }
    }
    for (n, pair) in alone() {
        for ((way, times), jail) in ways.iter().zip(&mut del).zip(pair) {
            times.push(timed(|| way.del(n, jail)));
        }
    }
    tell("ADD alone", add.map(median));
    tell("DEL alone", del.map(median));
    let crowd = |work: &(dyn Fn(usize, &Jail) + Sync)| {
        timed(|| {
            thread::scope(|scope| {
                for (n, jail) in jails.iter().enumerate() {
                    scope.spawn(move || work(n, jail));
                }
            });
        })
    };
    let both = ways.map(|way| [crowd(&|n, jail| way.add(n, jail)), crowd(&|n, jail| way.del(n, jail))]);
    tell(&format!("ADD, {CROWD} at once"), both.map(|[add, _]| add));
    tell(&format!("DEL, {CROWD} at once"), both.map(|[_, del]| del));
}

/// Beside a script of ifconfig(8), arp(8) and pfctl(8) that makes the same.
#[test]
#[ignore = "a benchmark"]
fn add_and_del_beside_a_script() {
    let _turn = alone();
    let _quiet = Quiet::new();
    let host = Host::new(None);
    let ours = Ours { host: &host, published: false };
    let stays = Jail::new();
    ours.add(STAYS, &stays);
    let ours_of = &Store::new(host.data_dir()).load().unwrap().attachments[0];
    let anchor = anchor_of(&ours_of.id);
    let rules = sh(&format!("pfctl -q -a {} -s rules", anchor.trim()))
        .replace(&ours_of.host_ifname, "PORT")
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
    beside("script", &script, &ours);
    sh("ifconfig refbr destroy");
    ours.del(STAYS, &stays);
}

/// Beside bridge, portmap and firewall of FreeBSD's package, whose sandboxes have no filter; with a published port.
#[test]
#[ignore = "a benchmark"]
fn add_and_del_beside_the_package() {
    let _turn = alone();
    let _quiet = Quiet::new();
    if !Path::new(Package::DIR).join("portmap").exists() {
        println!("there is no {}/portmap: pkg install containernetworking-plugins", Package::DIR);
        return;
    }
    let host = Host::new(None);
    let ours = Ours { host: &host, published: true };
    let theirs = Package { host: &host, made: Mutex::default(), failed: AtomicUsize::new(0) };
    let stays = [Jail::new(), Jail::new()];
    theirs.add(STAYS, &stays[0]);
    ours.add(STAYS, &stays[1]);
    beside("bridge, portmap, firewall", &theirs, &ours);
    println!("calls of theirs that failed and were made again: {}", theirs.failed.load(Ordering::Relaxed));
    theirs.del(STAYS, &stays[0]);
    ours.del(STAYS, &stays[1]);
    sh("ifconfig refbr destroy; pfctl -q -t cni-nat -T kill || true");
}

//! Networks of microVMs under bhyve: by `skep-cni`, which Skep calls itself, and by a vnet jail that the caller names.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use skep_containerd_api::metrics::NetworkStat;
use skep_tests::census;
use skep_tests::ctr::Subject;
use skep_tests::process::{Input, Output, Running, run, wait_for};
use skep_tests::suite::Lease;
use skep_tests::task_api::Shim;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::skep("bhyve_net_cni", cni).on_freebsd(),
    Case::skep("bhyve_net_vxlan", vxlan).on_freebsd(),
    Case::skep("bhyve_net_killed_shim", killed_shim).on_freebsd(),
    Case::skep("bhyve_net_gc", gc).on_freebsd(),
    Case::skep("bhyve_net_vnet_jail", vnet_jail).on_freebsd(),
];

const FOREVER: &str = "while :; do sleep 1; done";
/// Answers HTTP on ports 80 and 81.
pub(super) const SERVE: &str =
    "mkdir /www; echo from-the-vm >/www/index.html; httpd -p 81 -h /www; exec httpd -f -p 80 -h /www";
/// The usual directory of configurations, which nobody names here.
const CONFIGURATIONS: &str = "/usr/local/etc/cni/net.d";
/// A port of the host that sandboxes may use.
const SERVICE: u16 = 9990;
/// How long an answer may take that should come, and how long is waited for one that should not; seconds.
pub(super) const ENOUGH: u32 = 20;
pub(super) const SILENCE: u32 = 4;
/// How long what undoes a sandbox may take, and pf to forget the rules of flows that have ended.
pub(super) const SETTLE: Duration = Duration::from_secs(180);

fn sh(script: &str) -> Result<Output> {
    let mut command = Command::new("/bin/sh");
    command.args(["-ec", script]);
    run(command)
}

pub(super) fn said(script: &str) -> Result<String> {
    sh(script)?.text()
}

/// A vnet jail; gone with the value.
pub(super) struct Jail(pub(super) String);

impl Jail {
    pub(super) fn create(name: &str) -> Result<Self> {
        said(&format!("jail -c name={name} vnet persist path=/ allow.raw_sockets"))?;
        let jail = Self(name.to_owned());
        jail.said("ifconfig lo0 127.0.0.1/8 up")?;
        Ok(jail)
    }

    pub(super) fn command(&self, script: &str) -> Command {
        let mut command = Command::new("jexec");
        command.args([&self.0, "/bin/sh", "-ec", script]);
        command
    }

    pub(super) fn said(&self, script: &str) -> Result<String> {
        run(self.command(script))?.text()
    }

    /// Answers HTTP on a port until the value is dropped.
    pub(super) fn serve(&self, port: u16) -> Result<Running> {
        let answer = "printf 'HTTP/1.0 200 OK\\r\\n\\r\\nfrom-the-jail\\n'";
        Running::spawn(
            self.command(&format!("while :; do {answer} | nc -N -l {port} >/dev/null; done")),
            Input::Empty,
        )
    }

    /// What a server says; nothing where no answer comes.
    pub(super) fn fetch(&self, url: &str, seconds: u32) -> Result<String> {
        Ok(run(self.command(&format!("timeout {seconds} fetch -T {seconds} -qo - {url}")))?
            .out()
            .trim()
            .to_owned())
    }

    /// A wire to the host: the host's end, which goes with the jail's.
    fn wire(&self, own: &str, hosts: &str) -> Result<Wire> {
        let host = said("ifconfig epair create")?;
        let wire = Wire(host.clone());
        let far = format!("{}b", host.trim_end_matches('a'));
        said(&format!("ifconfig {far} vnet {}; ifconfig {host} inet {hosts} up", self.0))?;
        self.said(&format!("ifconfig {far} inet {own} up"))?;
        Ok(wire)
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        let _ = sh(&format!("jail -r {}", self.0));
    }
}

struct Wire(String);

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = sh(&format!("ifconfig {} destroy", self.0));
    }
}

/// A network of ours in the usual directory, and Skep told where the plugin is.
pub(super) struct Lan {
    file: PathBuf,
    plugin: PathBuf,
    conf: Value,
    /// What pf had before.
    rules: String,
}

impl Lan {
    fn create(lease: &Lease) -> Result<Self> {
        Self::create_with(lease, |_| {})
    }

    pub(super) fn create_with(lease: &Lease, change: impl FnOnce(&mut Value)) -> Result<Self> {
        let bin = lease.build()?.bin.clone();
        let mut conf = json!({
            "type": "skep-cni", "mtu": 1400,
            "ipam": { "type": "skep",
                "ranges": [[{ "subnet": "10.83.0.0/24" }], [{ "subnet": "fd83::/64" }]] },
            "dns": { "nameservers": ["10.83.0.1"], "search": ["lan.example"] },
            "policy": { "annotations": true, "hostServices": [{ "protocol": "tcp", "port": SERVICE }] },
            "capabilities": { "portMappings": true, "ips": true, "mac": true, "io.kubernetes.cri.pod-annotations": true },
        });
        change(&mut conf);
        lease.configure(|configuration| {
            configuration.more = format!("[network]\nbin_dirs = [{:?}]\n", bin.to_string_lossy());
        })?;
        fs::create_dir_all(CONFIGURATIONS).context("making the usual directory")?;
        let file = Path::new(CONFIGURATIONS).join("10-lan.conflist");
        let list = json!({ "cniVersion": "1.1.0", "name": "lan", "plugins": [conf] });
        fs::write(&file, list.to_string()).context("writing a network")?;
        Ok(Self { file, plugin: bin.join("skep-cni"), conf, rules: rules()? })
    }

    /// Attaches a jail, and what the plugin says of it.
    fn attach<'a>(&'a self, jail: &'a Jail, policy: Value) -> Result<(Attached<'a>, Value)> {
        let attached = Attached { lan: self, jail, policy };
        let result = self.call("ADD", jail, &attached.policy)?;
        Ok((attached, result))
    }

    /// Calls the plugin for a jail.
    fn call(&self, verb: &str, jail: &Jail, policy: &Value) -> Result<Value> {
        let mut conf = self.conf.clone();
        conf["cniVersion"] = "1.1.0".into();
        conf["name"] = "lan".into();
        conf["runtimeConfig"] =
            json!({ "io.kubernetes.cri.pod-annotations": { "network.skep.org/policy": policy.to_string() } });
        let mut child = Command::new(&self.plugin)
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", &jail.0), ("CNI_NETNS", &jail.0)])
            .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", "/nonexistent")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the plugin")?;
        child.stdin.take().context("a pipe")?.write_all(conf.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{verb} for jail {}: {text}", jail.0);
        if verb == "ADD" {
            serde_json::from_str(&text).context("the plugin's result")
        } else {
            Ok(Value::Null)
        }
    }

    /// Starts what renews leases and puts rules back; it ends with the value.
    pub(super) fn watch(&self) -> Result<Running> {
        let mut command = Command::new(&self.plugin);
        command.arg("watch");
        Running::spawn(command, Input::Empty)
    }

    fn status(&self) -> Result<Value> {
        let mut command = Command::new(&self.plugin);
        command.args(["status", "--json"]);
        let output = run(command)?;
        serde_json::from_str(&output.out()).with_context(|| output.describe())
    }

    /// The plugin's record of a container.
    pub(super) fn attachment(&self, id: &str) -> Result<Value> {
        let status = self.status()?;
        let all = status["networks"].as_array().into_iter().flatten();
        let mut all = all.flat_map(|network| network["attachments"].as_array().into_iter().flatten());
        let found = all.find(|one| one["containerId"].as_str().is_some_and(|known| known.ends_with(id)));
        found.cloned().with_context(|| format!("{id} is not in {status:#}"))
    }

    /// Nothing of any sandbox is left: interfaces, rules, tables, flows, neighbours, records.
    pub(super) fn ends_empty(&self) -> Result<()> {
        let left = || -> Result<String> {
            let mut left = String::new();
            for interface in said("ifconfig -l")?.split_whitespace().filter(|name| name.starts_with("sk")) {
                let _ = writeln!(left, "interface {interface}");
            }
            let now = rules()?;
            for line in now.lines().filter(|line| !self.rules.lines().any(|old| old == *line)) {
                let _ = writeln!(left, "{line}");
            }
            left.push_str(&sh("pfctl -qs states | grep -F -e 10.83.0. -e fd83: -e 203.0.113.")?.out());
            left.push_str(&sh("arp -an | grep -F -e 10.83.0. -e 203.0.113.; ndp -an | grep -F fd83:")?.out());
            let status = self.status()?;
            if !status["networks"].as_array().is_some_and(Vec::is_empty) {
                left.push_str(&status.to_string());
            }
            Ok(left)
        };
        let mut last = String::new();
        wait_for("everything of the network to be gone", SETTLE, || {
            last = left()?;
            Ok(last.is_empty().then_some(()))
        })
        .with_context(|| last.clone())
        .with_context(|| sh("pfctl -vvss").map(|output| output.out()).unwrap_or_default())
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // What a case that failed has left is not for the next one.
        let _ = fs::remove_file(&self.file);
    }
}

/// A jail on the network, until the value is gone: what is left of it would be in the next case's way.
struct Attached<'a> {
    lan: &'a Lan,
    jail: &'a Jail,
    policy: Value,
}

impl Attached<'_> {
    fn detach(self) -> Result<()> {
        self.lan.call("DEL", self.jail, &self.policy).map(drop)
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        // Once more after a detachment, which is no error.
        if let Err(error) = self.lan.call("DEL", self.jail, &self.policy) {
            eprintln!("detaching jail {}: {error:#}", self.jail.0);
        }
    }
}

/// Anchors, tables and references of the packet filter. pfctl gives up when an anchor goes while it lists them.
fn rules() -> Result<String> {
    said(
        "n=0; until list=$(pfctl -qvs Anchors); do n=$((n + 1)); [ $n -lt 10 ]; sleep 1; done; echo \"$list\"; \
          pfctl -qs Tables; pfctl -qs rules; pfctl -qs nat",
    )
}

pub(super) fn annotations(policy: &Value, more: &[&str]) -> Vec<String> {
    let mut all = vec!["--annotation".to_owned(), format!("network.skep.org/policy={policy}")];
    for one in more {
        all.extend(["--annotation".to_owned(), (*one).to_owned()]);
    }
    all
}

/// A container's view from inside.
pub(super) struct Guest<'a> {
    subject: Subject<'a>,
    id: &'static str,
    calls: std::cell::Cell<u32>,
}

impl<'a> Guest<'a> {
    pub(super) fn start(
        subject: Subject<'a>,
        id: &'static str,
        script: &str,
        flags: Vec<String>,
    ) -> Result<Self> {
        subject
            .run(id)
            .flags(["--null-io", "--cap-add", "CAP_NET_ADMIN", "--cap-add", "CAP_NET_RAW"])
            .flags(flags)
            .sh(script)
            .detached()?;
        Ok(Self { subject, id, calls: 0.into() })
    }

    pub(super) fn sh(&self, script: &str) -> Result<Output> {
        self.calls.set(self.calls.get() + 1);
        self.subject.exec(self.id, &format!("call{}", self.calls.get())).sh(script).output()
    }

    /// An error unless the task's figures count what is sent to an address by an interface, and what is answered.
    fn has_counted(&self, lease: &Lease, interface: &str, to: &str, answers: bool) -> Result<()> {
        const SENT: u64 = 3 * 1000;
        let shim = Shim::of(&lease.containerd, self.id)?;
        let counted = || -> Result<NetworkStat> {
            let all = shim.metrics(self.id)?.network;
            let one = all.iter().find(|stat| stat.name == interface);
            one.cloned().with_context(|| format!("{interface} is not in {all:?}"))
        };
        let before = counted()?;
        self.sh(&format!("ping -c 3 -s 1000 -W {SILENCE} {to}"))?;
        let after = counted()?;
        let (sent, received) = (after.tx_bytes - before.tx_bytes, after.rx_bytes - before.rx_bytes);
        ensure!(sent >= SENT && (received >= SENT) == answers, "{before}, then {after}");
        Ok(())
    }

    /// An error unless a server says this.
    pub(super) fn hears(&self, url: &str, wanted: &str) -> Result<()> {
        let output = self.sh(&format!("timeout {ENOUGH} wget -O- {url}"))?;
        ensure!(output.out().trim() == wanted, "{} should say {wanted}: {}", url, output.describe());
        Ok(())
    }

    /// An error if a server says anything.
    pub(super) fn hears_nothing(&self, url: &str) -> Result<()> {
        let output = self.sh(&format!("timeout {SILENCE} wget -O- {url}"))?;
        ensure!(
            output.code() != 0 && output.out().is_empty(),
            "{url} should be out of reach: {}",
            output.describe()
        );
        Ok(())
    }
}

/// The first address of a result or record, without its prefix.
pub(super) fn address(of: &Value) -> Result<String> {
    let text = of.as_str().with_context(|| format!("no address: {of}"))?;
    Ok(text.split('/').next().unwrap_or_default().to_owned())
}

fn cni(lease: &mut Lease) -> Result<()> {
    let lan = Lan::create(lease)?;
    let service = TcpListener::bind(("0.0.0.0", SERVICE)).context("serving on the host")?;
    thread::spawn(move || {
        for mut client in service.incoming().flatten() {
            let _ = client.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom-the-host\n");
        }
    });
    let jail = Jail::create("skept-lan")?;
    let allow = |what: Value| json!({ "egress": { "allow": what }, "ingress": { "allow": [] } });
    let open =
        json!({ "ingress": { "allow": [{ "cidr": "10.83.0.0/24", "protocol": "tcp", "ports": [80] }] } });
    let (attached, result) = lan.attach(&jail, open.clone())?;
    let jails = address(&result["ips"][0]["address"])?;
    let _servers = [jail.serve(80)?, jail.serve(81)?];

    // The first may ask one port of the neighbours, and serves one to the world outside.
    let subject = lease.subject();
    let one = allow(json!([{ "cidr": "10.83.0.0/24", "protocol": "tcp", "ports": [80] }]));
    let first = Guest::start(subject, "first", SERVE, annotations(&one, &["org.skep.ports=18080:80"]))?;
    let text = first
        .sh("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ls /sys/class/net; ip -o address; ip route; \
             ip -6 route; cat /etc/resolv.conf")?
        .text()?;
    let record = lan.attachment("first")?;
    let firsts = address(&record["addresses"][0])?;
    for part in [
        "\n1400\n",
        "\neth0\nlo\n",
        &format!("inet {firsts}/24 brd 10.83.0.255 scope global eth0"),
        "inet6 fd83::",
        "default via 10.83.0.1 dev eth0",
        "default via fd83::1 dev eth0",
        "nameserver 10.83.0.1\nsearch lan.example",
    ] {
        ensure!(text.contains(part), "{part:?} is not in\n{text}");
    }
    first.hears(&format!("http://10.83.0.1:{SERVICE}/"), "from-the-host")?;
    first.hears(&format!("http://{jails}/"), "from-the-jail")?;
    // That it is denied the host learns from it all the same.
    first.has_counted(lease, "eth0", "10.83.0.1", false)?;
    first.hears_nothing(&format!("http://{jails}:81/"))?;
    first.hears_nothing("http://10.83.0.1:22/")?;

    // A neighbour without lists reaches nobody, and is reached by nobody but where its own list says so.
    let second = Guest::start(subject, "second", SERVE, annotations(&open, &[]))?;
    let seconds = address(&lan.attachment("second")?["addresses"][0])?;
    first.hears(&format!("http://{seconds}/"), "from-the-vm")?;
    second.hears_nothing(&format!("http://{jails}/"))?;
    second.hears_nothing(&format!("http://{firsts}/"))?;
    ensure!(jail.fetch(&format!("http://{seconds}/"), SILENCE)?.is_empty(), "denied by default, from a jail");

    // False names: what is sent with them does not come to the bridge.
    let spoofed =
        |id: &str| Ok::<_, anyhow::Error>(lan.attachment(id)?["counters"]["spoofedPackets"].as_u64());
    let jails6 = address(&result["ips"][1]["address"])?;
    let own = result["interfaces"][2]["mac"].as_str().context("a MAC")?.to_owned();
    for (what, script) in [
        (
            "IPv4",
            format!(
                "ip address add 10.83.0.250/24 dev eth0; ip route add {jails}/32 dev eth0 src 10.83.0.250; \
                 timeout {SILENCE} wget -qO- http://{jails}/; ip route del {jails}/32; \
                 ip address del 10.83.0.250/24 dev eth0; true"
            ),
        ),
        (
            "IPv6",
            // Until it has asked in vain whether somebody has it, the address is not one to speak from.
            format!(
                "ip address add fd83::250/64 dev eth0; sleep 3; \
                 timeout {SILENCE} ping -6 -I fd83::250 -c 1 {jails6} >/dev/null; \
                 ip address del fd83::250/64 dev eth0; true"
            ),
        ),
        (
            "ARP",
            format!(
                "ip address add 10.83.0.250/24 dev eth0; arping -A -c 2 -I eth0 -s 10.83.0.250 {jails} >/dev/null; \
                 ip address del 10.83.0.250/24 dev eth0; true"
            ),
        ),
        (
            "Ethernet",
            format!(
                "own=$(cat /sys/class/net/eth0/address); ip link set eth0 address {own}; \
                 timeout {SILENCE} ping -c 1 {jails} >/dev/null; ip link set eth0 address $own; true"
            ),
        ),
    ] {
        let before = spoofed("first")?.context("a counter")?;
        let output = first.sh(&script)?;
        ensure!(output.text()?.is_empty(), "heard under a false name ({what}): {}", output.describe());
        ensure!(
            spoofed("first")?.is_some_and(|after| after > before),
            "{what}: nothing was counted as false: {}",
            output.describe()
        );
    }
    let neighbours = jail.said("arp -an; ndp -an")?;
    ensure!(
        !neighbours.contains("10.83.0.250") && !neighbours.contains("fd83::250"),
        "false answers were believed:\n{neighbours}"
    );
    first.hears(&format!("http://{jails}/"), "from-the-jail")?;

    // The published port, from outside.
    let outside = Jail::create("skept-out")?;
    let wire = outside.wire("192.0.2.2/24", "192.0.2.1/24")?;
    ensure!(outside.fetch("http://192.0.2.1:18080/", ENOUGH)? == "from-the-vm", "the published port");
    outside.said("route -q add 10.83.0.0/24 192.0.2.1")?;
    ensure!(
        outside.fetch(&format!("http://{firsts}:81/"), SILENCE)?.is_empty(),
        "published is the one port only"
    );

    subject.remove("first")?;
    ensure!(outside.fetch("http://192.0.2.1:18080/", SILENCE)?.is_empty(), "the port goes with its sandbox");
    subject.remove("second")?;
    attached.detach()?;
    drop((wire, outside, jail));
    lan.ends_empty()
}

/// A link of the kernel's at another node, moved into its jail: it comes back when the jail ends.
struct FarLink(&'static str);

impl Drop for FarLink {
    fn drop(&mut self) {
        let _ = sh(&format!("ifconfig {} destroy", self.0));
    }
}

/// A VM whose neighbours are behind VXLAN, and which has limits on what it carries.
fn vxlan(lease: &mut Lease) -> Result<()> {
    // Dropped last: while its jail is there it cannot be removed.
    let link = FarLink("skeptfar");
    let node = Jail::create("skept-node")?;
    let wire = node.wire("192.0.2.2/24", "192.0.2.1/24")?;
    let lan = Lan::create_with(lease, |conf| {
        conf["vxlan"] = json!({"vni": 83, "nodes": [{"name": "here", "address": "192.0.2.1"},
            {"name": "there", "address": "192.0.2.2"}]});
        conf["capabilities"]["bandwidth"] = true.into();
    })?;
    let policy = json!({ "egress": { "allow": ["10.83.0.0/24"] },
        "ingress": { "allow": [{ "cidr": "10.83.0.0/24", "protocol": "tcp", "ports": [80] }] } });
    let limits = ["kubernetes.io/ingress-bandwidth=50M", "kubernetes.io/egress-bandwidth=50M"];
    let subject = lease.subject();
    let guest = Guest::start(subject, "stretched", SERVE, annotations(&policy, &limits))?;
    let record = lan.attachment("stretched")?;
    let own = address(&record["addresses"][0])?;
    said(&format!(
        "x=$(ifconfig vxlan create vxlanid 83 vxlanlocal 192.0.2.2 vxlanremote 192.0.2.1); ifconfig $x name {far} >/dev/null; \
         ifconfig {far} vnet {jail}; jexec {jail} ifconfig {far} inet 10.83.0.77/24 up",
        far = link.0,
        jail = node.0
    ))?;
    let _servers = [node.serve(80)?, node.serve(81)?];
    guest.hears("http://10.83.0.77/", "from-the-jail")?;
    ensure!(node.fetch(&format!("http://{own}/"), ENOUGH)? == "from-the-vm", "from the other node");
    ensure!(node.fetch(&format!("http://{own}:81/"), SILENCE)?.is_empty(), "what its list does not have");
    // Whole packets, and none longer.
    let output = guest.sh("ping -c 2 -W 20 -s 1372 10.83.0.77")?;
    ensure!(output.out().contains("2 packets received"), "the longest packets: {}", output.describe());
    let tap = said("ifconfig -g tap")?;
    ensure!(tap.lines().any(|name| name.starts_with("ski")), "the limits are before the tap: {tap}");
    subject.remove("stretched")?;
    drop(node);
    drop((link, wire));
    lan.ends_empty()
}

fn kill_shim(lease: &Lease) -> Result<()> {
    let shim = census::processes(&lease.containerd.scope())?
        .into_iter()
        .find(|member| member.program().starts_with("containerd-shim-skep"))
        .context("no shim runs")?;
    kill(Pid::from_raw(shim.pid), Signal::SIGKILL).context("killing the shim")
}

/// Whoever undoes the sandbox from its journal asks the plugin to.
fn killed_shim(lease: &mut Lease) -> Result<()> {
    let lan = Lan::create(lease)?;
    let subject = lease.subject();
    subject.run("killed").flags(["--null-io"]).sh(FOREVER).detached()?;
    lan.attachment("killed")?;
    kill_shim(lease)?;
    wait_for("the task to be gone or stopped", SETTLE, || {
        Ok(subject.task("killed")?.is_none_or(|task| task.status != "RUNNING").then_some(()))
    })?;
    subject.remove("killed")?;
    lan.ends_empty()
}

/// The same where neither shim nor containerd is left to do it.
fn gc(lease: &mut Lease) -> Result<()> {
    let lan = Lan::create(lease)?;
    lease.subject().run("left").flags(["--null-io"]).sh(FOREVER).detached()?;
    lan.attachment("left")?;
    lease.containerd.stop(Signal::SIGKILL)?;
    kill_shim(lease)?;
    let output = lease.skep(&["gc"])?;
    output.succeeded()?;
    lan.ends_empty().with_context(|| output.describe())?;
    lease.containerd.resume()?;
    lease.subject().remove("left")
}

/// The interface in a vnet jail that the caller names is the guest's, until the guest is gone.
fn vnet_jail(lease: &mut Lease) -> Result<()> {
    let jail = Jail::create("skept-own")?;
    let wire = jail.wire("10.84.0.2/24", "10.84.0.1/24")?;
    let far = format!("{}b", wire.0.trim_end_matches('a'));
    jail.said(&format!("ifconfig {far} mtu 1400; route -q add default 10.84.0.1"))?;
    let mac = jail.said(&format!("ifconfig {far} | awk '/ether/ {{ print $2 }}'"))?;
    let flags = vec!["--annotation".to_owned(), format!("org.freebsd.parentJail={}", jail.0)];
    let subject = lease.subject();
    let guest = Guest::start(subject, "taken", SERVE, flags)?;
    let text = guest
        .sh(&format!("cat /sys/class/net/{far}/address /sys/class/net/{far}/mtu; ip -o address; ip route; ping -c 2 -W 20 10.84.0.1"))?
        .text()?;
    for part in [mac.as_str(), "\n1400\n", "inet 10.84.0.2/24", "default via 10.84.0.1", "2 packets received"]
    {
        ensure!(text.contains(part), "{part:?} is not in\n{text}");
    }
    ensure!(said("fetch -T 20 -qo - http://10.84.0.2/")? == "from-the-vm", "from the host");
    guest.has_counted(lease, &far, "10.84.0.1", true)?;
    let output = subject
        .run("another")
        .flags(["--annotation", &format!("org.freebsd.parentJail={}", jail.0)])
        .args(["true"])
        .output()?;
    ensure!(output.code() != 0 && output.err().contains("another microVM has it"), "{}", output.describe());
    subject.remove("taken")?;
    let left = jail.said("ifconfig -l")?;
    ensure!(left.split_whitespace().all(|name| !name.starts_with("skt")), "a tap is left: {left}");
    jail.said("ping -c 2 -t 20 10.84.0.1")?;
    Ok(())
}

//! Networks that Skep has made by CNI plugins itself, where the caller made none: the plugins are
//! containernetworking-plugins'.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_tests::netns;
use skep_tests::process::{LIMIT, Output, run, wait_for};
use skep_tests::suite::Lease;

use crate::Case;
use crate::failures::lose_shim;

pub(crate) const CASES: &[Case] = &[
    Case::skep("cni_chain", chain),
    Case::skep("cni_killed_shim", killed_shim),
    Case::skep("cni_failure", failure),
];

const FOREVER: &str = "while :; do sleep 1; done";
const PLUGINS: &str = "/usr/lib/cni";
const MAC: &str = "02:5e:10:00:00:77";

/// A network of the bridge plugin, and Skep told to make it.
struct Lan {
    bridge: &'static str,
    leases: PathBuf,
    containerd: u32,
}

impl Lan {
    fn create(lease: &Lease, bridge: &'static str, subnet: &str, more: Value) -> Result<Self> {
        let (conf, leases) = (lease.scratch("cni-conf")?, lease.scratch("cni-leases")?);
        let mut plugins = vec![json!({
            "type": "bridge", "bridge": bridge, "isGateway": true, "isDefaultGateway": true,
            "capabilities": { "ips": true },
            "ipam": { "type": "host-local", "subnet": subnet, "dataDir": leases },
            "dns": { "nameservers": ["10.83.0.1"], "search": ["lan.example"] },
        })];
        plugins.push(more);
        let list = json!({ "cniVersion": "1.0.0", "name": "lan", "plugins": plugins });
        fs::write(conf.join("10-lan.conflist"), list.to_string()).context("writing a network")?;
        lease.attach_to_networks(&conf, Path::new(PLUGINS))?;
        Ok(Self { bridge, leases, containerd: lease.containerd.pid() })
    }

    /// The addresses that somebody has.
    fn leased(&self) -> Result<Vec<String>> {
        let dir = self.leases.join("lan");
        let mut all: Vec<String> = fs::read_dir(&dir)
            .with_context(|| format!("reading {}", dir.display()))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        all.retain(|name| name.starts_with(|c: char| c.is_ascii_digit()));
        Ok(all)
    }

    /// `ip` where containerd is, in a network namespace of its own.
    fn ip(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = netns::inside(self.containerd, "ip");
        command.args(arguments);
        run(command)
    }

    /// Nothing of any sandbox is left. The bridge plugin leaves its bridge.
    fn ends_empty(self) -> Result<()> {
        // After a kill it is another process that undoes, and nobody hears of its end.
        wait_for("all addresses to be given back", LIMIT, || Ok(self.leased()?.is_empty().then_some(())))?;
        let ports = self.ip(&["-o", "link", "show", "master", self.bridge])?.succeeded()?.text()?;
        ensure!(ports.is_empty(), "ports are left: {ports}");
        Ok(())
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = self.ip(&["link", "delete", self.bridge]);
    }
}

fn tuning() -> Value {
    json!({ "type": "tuning", "mtu": 1350, "capabilities": { "mac": true } })
}

/// Two plugins, of which each has its say; and what a pod asks for by annotations.
fn chain(lease: &mut Lease) -> Result<()> {
    let lan = Lan::create(lease, "skep-e2e-a", "10.83.0.0/24", tuning())?;
    let script = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ip -o -4 address show eth0; ip route; \
                  cat /etc/resolv.conf; ping -c 1 -W 60 10.83.0.1 >/dev/null && echo answered";
    let asked = ["--annotation", "org.skep.ips=10.83.0.77", "--annotation", "org.skep.mac=02:5e:10:00:00:77"];
    let text = lease.subject().run("asks").flags(asked).sh(script).output()?.text()?;
    for part in [
        MAC,
        "\n1350\n",
        "inet 10.83.0.77/24",
        "default via 10.83.0.1 dev eth0",
        "nameserver 10.83.0.1\nsearch lan.example\n",
        "\nanswered",
    ] {
        ensure!(text.contains(part), "{part:?} is not in\n{text}");
    }
    // What nobody can do is not passed over, and who wants none has none.
    let ports = ["--annotation", "org.skep.ports=8080:80"];
    let output = lease.subject().run("ports").flags(ports).args(["true"]).output()?;
    ensure!(
        output.code() != 0
            && output.err().contains("no plugin of network lan has the capability portMappings"),
        "{}",
        output.describe()
    );
    let none = ["--annotation", "org.skep.networks=none"];
    let output = lease.subject().run("none").flags(none).sh("ls /sys/class/net").output()?;
    ensure!(output.text()? == "lo", "{}", output.describe());
    let other = ["--annotation", "org.skep.networks=wan"];
    let output = lease.subject().run("wan").flags(other).args(["true"]).output()?;
    ensure!(output.err().contains("there is no CNI network wan in "), "{}", output.describe());
    lan.ends_empty()
}

/// Whoever undoes the sandbox from its journal asks the plugins to.
fn killed_shim(lease: &mut Lease) -> Result<()> {
    let lan = Lan::create(lease, "skep-e2e-b", "10.84.0.0/24", tuning())?;
    let subject = lease.subject();
    subject.run("killed").flags(["--null-io"]).sh(FOREVER).detached()?;
    ensure!(lan.leased()?.len() == 1, "no address was given");
    lose_shim(lease, "killed")?;
    subject.remove("killed")?;
    lan.ends_empty()
}

/// What the first plugin has made is undone when the second fails.
fn failure(lease: &mut Lease) -> Result<()> {
    let lan = Lan::create(lease, "skep-e2e-c", "10.85.0.0/24", json!({ "type": "tuning", "mtu": 10 }))?;
    let output = lease.subject().run("fails").args(["true"]).output()?;
    ensure!(
        output.code() != 0 && output.err().contains("CNI network lan: ADD of plugin tuning: "),
        "{}",
        output.describe()
    );
    lan.ends_empty()
}

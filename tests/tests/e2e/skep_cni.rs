//! Sandboxes on a network of skep-cni: what its policy lets through arrives, and nothing else.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_tests::ctr::Subject;
use skep_tests::image::installed_busybox;
use skep_tests::netns::{self, Namespace};
use skep_tests::process::{Input, LIMIT, Output, Running, run, wait_for};
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] = &[Case::skep("skep_cni_policy", policy)];

const SERVER: &str = "10.87.0.10";
const CLIENT: &str = "10.87.0.11";
const GATEWAY: &str = "10.87.0.1";
/// Every port serves: what does not answer has been filtered.
const SERVE: &str = "mkdir /www; echo served >/www/index.html; for port in 80 81 82; do httpd -p $port -h /www; done; \
                     while :; do sleep 1; done";

/// A network of skep-cni's where containerd is, in a network namespace of its own.
struct Net {
    plugin: PathBuf,
    bin: PathBuf,
    config: Value,
    containerd: u32,
}

impl Net {
    /// The network's configuration, and Skep told to attach its sandboxes to it.
    fn create(lease: &Lease) -> Result<Self> {
        let (conf, data) = (lease.scratch("cni-conf")?, lease.scratch("cni-data")?);
        let bin = lease.build()?.bin.clone();
        let plugin = json!({
            "type": "skep-cni", "dataDir": data,
            "ipam": { "type": "skep", "subnet": "10.87.0.0/24" },
            "policy": {
                "annotations": true,
                "egress": { "allow": ["10.87.0.0/24"] },
                "ingress": { "allow": [
                    { "group": "clients", "protocol": "tcp", "ports": [80] },
                    { "group": "clients", "protocol": "icmp" },
                ] },
            },
            "capabilities": { "portMappings": true, "ips": true, "io.kubernetes.cri.pod-annotations": true },
        });
        let list = json!({ "cniVersion": "1.0.0", "name": "filtered", "plugins": [plugin] });
        fs::write(conf.join("10-filtered.conflist"), list.to_string()).context("writing a network")?;
        lease.attach_to_networks(&conf, &bin)?;
        let mut config = plugin;
        config["cniVersion"] = "1.0.0".into();
        config["name"] = "filtered".into();
        Ok(Self { plugin: bin.join("skep-cni"), bin, config, containerd: lease.containerd.pid() })
    }

    /// `program` in containerd's network namespace.
    fn inside(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
        let mut command = netns::inside(self.containerd, program);
        command.args(arguments);
        command
    }

    /// Calls the plugin for `namespace`, as the caller of a plain container does.
    fn call(&self, verb: &str, namespace: &Namespace) -> Result<Output> {
        let mut config = self.config.clone();
        config["runtimeConfig"] = json!({
            "ips": ["10.87.0.13/24"],
            "io.kubernetes.cri.pod-annotations": { "network.skep.org/group": "clients" },
        });
        let input = tempfile::NamedTempFile::new().context("creating a file")?;
        fs::write(input.path(), config.to_string()).context("writing a configuration")?;
        let mut command = self.inside("sh", &["-c", "exec \"$0\" <\"$1\""]);
        command
            .args([self.plugin.as_path(), input.path()])
            .stdin(Stdio::null())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", namespace.name())
            .env("CNI_NETNS", namespace.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.bin);
        run(command)
    }

    /// No link and no rule of ours is left.
    fn ends_empty(self) -> Result<()> {
        wait_for("links and rules to be gone", LIMIT, || {
            let links = run(self.inside("ip", &["-o", "link"]))?.succeeded()?.text()?;
            let rules = run(self.inside("nft", &["list", "ruleset"]))?.succeeded()?.text()?;
            Ok((!links.contains(": sk") && !rules.contains("skep")).then_some(()))
        })
    }
}

/// Starts a sandbox with an address and, maybe, a group.
fn start(subject: &Subject<'_>, id: &str, address: &str, flags: &[&str], script: &str) -> Result<()> {
    subject
        .run(id)
        .flags(["--null-io", "--privileged", "--annotation", &format!("org.skep.ips={address}")])
        .flags(flags.iter().copied())
        .sh(script)
        .detached()
}

fn policy(lease: &mut Lease) -> Result<()> {
    const WAIT: &str = "while :; do sleep 1; done";
    const GROUP: &str = "network.skep.org/group=clients";
    let net = Net::create(lease)?;
    let subject = lease.subject();
    start(&subject, "server", SERVER, &["--annotation", "org.skep.ports=18087:82"], SERVE)?;
    start(&subject, "client", CLIENT, &["--annotation", GROUP], WAIT)?;
    start(&subject, "stranger", "10.87.0.12", &[], WAIT)?;
    let inside = |id: &str, script: &str| subject.exec(id, "x").sh(script).output();
    // nc is done when either side is: its own input stays open.
    let fetch = |port: u16| {
        format!("(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 2) | nc -w 3 {SERVER} {port} | grep served")
    };
    // An answer may take longer than that.
    let until = |port: u16| format!("until {}; do sleep 0.2; done", fetch(port));
    let succeeds = |output: Output, text: &str| -> Result<()> {
        ensure!(output.code() == 0 && output.out().trim_end() == text, "{}", output.describe());
        Ok(())
    };
    let fails = |output: Output| -> Result<()> {
        ensure!(output.code() != 0 && output.out().is_empty(), "let through: {}", output.describe());
        Ok(())
    };

    // All ports serve, and one is for clients.
    for port in [80, 81, 82] {
        succeeds(inside("server", &until(port))?, "served")?;
    }
    succeeds(inside("client", &until(80))?, "served")?;
    fails(inside("client", &fetch(81))?)?;
    fails(inside("stranger", &fetch(80))?)?;
    // Egress allows it: the host is never to be reached.
    fails(inside("client", &format!("ping -q -c 1 -W 2 {GATEWAY} >/dev/null"))?)?;

    // A false source is not even heard.
    let echoes = || -> Result<u64> {
        let script = "awk '/^Icmp:/ { if (column) print $column; \
                      for (i = 1; i <= NF; i++) if ($i == \"InEchos\") column = i }' /proc/net/snmp";
        inside("server", script)?.text()?.parse().context("the server's count of ICMP echo requests")
    };
    let before = echoes()?;
    let spoof = format!(
        "ip address add {CLIENT}/32 dev eth0 && ! ping -q -c 2 -W 1 -I {CLIENT} {SERVER} >/dev/null && \
         ip address delete {CLIENT}/32 dev eth0"
    );
    inside("stranger", &spoof)?.succeeded()?;
    ensure!(echoes()? == before, "a packet with a false source has arrived");
    inside("client", &format!("ping -q -c 1 -W 60 -I {CLIENT} {SERVER}"))?.succeeded()?;
    ensure!(echoes()? == before + 1, "the client's own packet is not counted");

    // A published port, from the host.
    run(net.inside("ip", &["link", "set", "lo", "up"]))?.succeeded()?;
    let published = net.inside(installed_busybox()?, &["wget", "-qO-", "http://127.0.0.1:18087/"]);
    succeeds(Running::spawn(published, Input::Empty)?.wait(LIMIT)?, "served")?;

    // A plain namespace on the same bridge, as any other runtime makes one.
    let plain = Namespace::create()?;
    net.call("ADD", &plain)?.succeeded()?;
    let address = format!("http://{SERVER}:80/");
    succeeds(plain.busybox(&["wget", "-qO-", &address])?, "served")?;
    let refused = format!("http://{SERVER}:81/");
    fails(plain.busybox(&["timeout", "5", "wget", "-qO-", &refused])?)?;
    net.call("DEL", &plain)?.succeeded()?;

    for id in ["server", "client", "stranger"] {
        subject.remove(id)?;
    }
    net.ends_empty()
}

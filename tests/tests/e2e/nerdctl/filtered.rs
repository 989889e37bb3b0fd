//! nerdctl's containers, Skep's and runc's, on one network of skep-cni.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skep_tests::ctr::{BUSYBOX, Runtime};
use skep_tests::image::installed_busybox;
use skep_tests::nerdctl::Nerdctl;
use skep_tests::netns::{Namespace, ip};
use skep_tests::process::{Input, Output, Running, run, wait_for};
use skep_tests::suite::Lease;

use super::{FOREVER, Removed};

const PATIENCE: Duration = Duration::from_secs(300);
/// Serves on two ports; the policy opens one of them.
const SERVE: &str =
    "mkdir /www; echo served >/www/index.html; httpd -p 81 -h /www; exec httpd -f -p 80 -h /www";
const GATEWAY: &str = "10.89.0.1";

/// A network of skep-cni as an administrator writes one for nerdctl.
struct Net {
    plugin: PathBuf,
    data: PathBuf,
}

impl Net {
    fn of(lease: &Lease) -> Result<Self> {
        Ok(Self { plugin: lease.build()?.bin.join("skep-cni"), data: lease.scratch("cni-data")? })
    }

    fn write(&self, nerdctl: &Nerdctl<'_>) -> Result<()> {
        let list = json!({ "cniVersion": "1.0.0", "name": "filtered", "plugins": [{
            "type": "skep-cni", "dataDir": self.data, "ipMasq": true,
            "ipam": { "type": "skep", "subnet": "10.89.0.0/24" },
            "policy": {
                "egress": { "allow": ["10.89.0.0/24", "198.51.100.0/24"] },
                "ingress": { "allow": [{ "cidr": "10.89.0.0/24", "protocol": "tcp", "ports": [80] }] },
            },
            "capabilities": { "portMappings": true, "ips": true, "mac": true },
        }]});
        fs::write(nerdctl.networks()?.join("filtered.conflist"), list.to_string())
            .context("writing a network")
    }

    /// Another policy for a live container.
    fn policy(&self, nerdctl: &Nerdctl<'_>, container: &str, policy: &Value) -> Result<()> {
        let mut command = nerdctl.inside(&self.plugin);
        command.arg("--data-dir").arg(&self.data).args(["policy", "filtered", container]);
        Running::spawn(command, Input::Piped(policy.to_string().into_bytes()))?
            .wait(PATIENCE)?
            .succeeded()?;
        Ok(())
    }
}

/// No link and no rule of skep-cni's is left.
fn ends_empty(nerdctl: &Nerdctl<'_>) -> Result<()> {
    wait_for("links and rules to be gone", PATIENCE, || {
        let said = |program: &str, arguments: &[&str]| -> Result<String> {
            let mut command = nerdctl.inside(program);
            command.args(arguments);
            run(command)?.text()
        };
        let (links, rules) = (said("ip", &["-o", "link"])?, said("nft", &["list", "ruleset"])?);
        Ok((!links.contains(": sk") && !rules.contains("skep")).then_some(()))
    })
}

/// One page, asked for inside a container. nc is done when either side is: its own input stays open.
fn fetch(nerdctl: &Nerdctl<'_>, container: &str, to: &str, port: u16) -> Result<Output> {
    let script =
        format!("(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 2) | nc -w 3 {to} {port} | grep served");
    nerdctl.nerdctl(["exec", container, "sh", "-c", &script])
}

/// The same where it must be let through: an answer may take longer than one such question waits.
fn fetched(nerdctl: &Nerdctl<'_>, container: &str, to: &str, port: u16) -> Result<()> {
    let what = format!("port {port} of {to} to serve {container}");
    let output = wait_for(&what, PATIENCE, || {
        let output = fetch(nerdctl, container, to, port)?;
        Ok((output.code() == 0).then_some(output))
    })?;
    served(&output)
}

fn served(output: &Output) -> Result<()> {
    ensure!(output.code() == 0 && output.out() == "served\n", "{}", output.describe());
    Ok(())
}

fn refused(output: &Output) -> Result<()> {
    ensure!(output.code() != 0 && !output.out().contains("served"), "let through: {}", output.describe());
    Ok(())
}

pub(super) fn filtered(lease: &mut Lease) -> Result<()> {
    let net = Net::of(lease)?;
    let nerdctl = Nerdctl::with_plugin(lease.subject(), Some(&net.plugin))?;
    let runc = Nerdctl::with_plugin(lease.with(Runtime::Runc), Some(&net.plugin))?;
    net.write(&nerdctl)?;
    let _removed = Removed(&nerdctl, &["server", "client", "plain"]);

    // nerdctl finds the network, though it did not make it.
    ensure!(nerdctl.said("network ls")?.contains("filtered"));
    let inspected: Value = serde_json::from_str(&nerdctl.said("network inspect filtered")?)?;
    ensure!(inspected[0]["Name"] == "filtered", "{inspected}");

    let sh = |script| ["sh", "-c", script];
    nerdctl.run("-d --name server --net filtered -p 18089:80", &sh(SERVE))?.succeeded()?;
    nerdctl.run("-d --name client --net filtered", FOREVER)?.succeeded()?;
    runc.run("-d --name plain --net filtered", FOREVER)?.succeeded()?;
    let server = nerdctl.said("inspect -f {{.NetworkSettings.IPAddress}} server")?;
    ensure!(server.starts_with("10.89.0."), "{server}");
    for port in [80, 81] {
        fetched(&nerdctl, "server", "127.0.0.1", port).context("the server itself")?;
    }

    // The policy is the same for both kinds, and by address as by name.
    for client in ["client", "plain"] {
        fetched(&nerdctl, client, &server, 80).context(client)?;
        fetched(&nerdctl, client, "server", 80).context(client)?;
        refused(&fetch(&nerdctl, client, &server, 81)?).context(client)?;
    }

    // The published port: from the host, from outside, from neighbours and from the server itself.
    for host in ["127.0.0.1", GATEWAY] {
        let url = format!("http://{host}:18089/");
        served(&nerdctl.outside(&["wget", "-q", "-O", "-", &url])?).context(host)?;
    }
    let outside = Namespace::create()?;
    let pid = lease.containerd.pid().to_string();
    ip(&[
        "link",
        "add",
        "out0",
        "netns",
        &pid,
        "type",
        "veth",
        "peer",
        "name",
        "out1",
        "netns",
        outside.name(),
    ])?;
    for arguments in
        [&["address", "add", "198.51.100.1/24", "dev", "out0"][..], &["link", "set", "out0", "up"]]
    {
        let mut command = nerdctl.inside("ip");
        command.args(arguments);
        run(command)?.succeeded()?;
    }
    outside.ip("address add 198.51.100.2/24 dev out1")?;
    outside.ip("link set out1 up")?;
    served(&outside.busybox(&["wget", "-q", "-O", "-", "http://198.51.100.1:18089/"])?).context("outside")?;
    for client in ["client", "plain", "server"] {
        fetched(&nerdctl, client, "198.51.100.1", 18089).context(client)?;
    }
    // And the other way, under the host's address.
    let mut listener = Command::new("ip");
    listener.args(["netns", "exec", outside.name()]).arg(installed_busybox()?);
    listener.args(["nc", "-ll", "-p", "7070", "-e", "/bin/echo", "served"]);
    let listener = Running::spawn(listener, Input::Empty)?;
    fetched(&nerdctl, "client", "198.51.100.2", 7070).context("to the outside")?;
    listener.stop(Signal::SIGKILL)?;

    // Another policy at run time, by the name the plugin knows the container by.
    let id = nerdctl.said("inspect -f {{.Id}} server")?;
    let container = format!("{}-{id}", lease.containerd.namespace());
    net.policy(&nerdctl, &container, &json!({"ingress": {"deny": ["10.89.0.0/24"]}}))?;
    refused(&fetch(&nerdctl, "client", &server, 80)?)?;
    refused(&fetch(&nerdctl, "plain", &server, 80)?)?;
    net.policy(
        &nerdctl,
        &container,
        &json!({"ingress": {"allow": [{"cidr": "10.89.0.0/24", "protocol": "tcp", "ports": [81]}]}}),
    )?;
    fetched(&nerdctl, "plain", &server, 81)?;

    // A restarted container is attached anew: what it was given at run time is gone.
    nerdctl.said("restart server")?;
    let server = nerdctl.said("inspect -f {{.NetworkSettings.IPAddress}} server")?;
    fetched(&nerdctl, "plain", &server, 80).context("once more")?;
    refused(&fetch(&nerdctl, "plain", &server, 81)?)?;

    nerdctl.said("rm -f server client plain")?;
    let gone = nerdctl.outside(&["wget", "-q", "-O", "-", "http://198.51.100.1:18089/"])?;
    ensure!(gone.code() != 0, "{}", gone.describe());
    ends_empty(&nerdctl)
}

/// A project on a network that it did not make.
pub(super) fn compose(lease: &mut Lease) -> Result<()> {
    let net = Net::of(lease)?;
    let nerdctl = Nerdctl::with_plugin(lease.subject(), Some(&net.plugin))?;
    net.write(&nerdctl)?;
    let file = lease.scratch("project")?.join("compose.yaml");
    let service = |name: &str, runtime: Runtime, more: &str| {
        format!(
            "  {name}:\n    image: {BUSYBOX}\n    pull_policy: never\n    runtime: {}\n    networks: [lan]\n{more}",
            runtime.name()
        )
    };
    let serve = format!("    ports: [\"18090:80\"]\n    command: [sh, -c, {SERVE:?}]\n");
    let text = format!(
        "services:\n{}{}networks:\n  lan:\n    external: true\n    name: filtered\n",
        service("web", Runtime::Skep, &serve),
        service("client", Runtime::Runc, "    depends_on: [web]\n    command: [sleep, \"1000\"]\n"),
    );
    fs::write(&file, text).context("writing the compose file")?;
    let compose = |words: &[&str]| {
        let mut all = vec!["compose", "-f", file.to_str().unwrap_or_default(), "-p", "skep"];
        all.extend(words);
        nerdctl.nerdctl(all)
    };
    let up = compose(&["up", "-d"])?;
    let outcome = up.succeeded().map(|_| ()).and_then(|()| {
        let url = "http://127.0.0.1:18090/";
        let page = wait_for("the published port", PATIENCE, || {
            let output = nerdctl.outside(&["wget", "-q", "-O", "-", url])?;
            Ok((output.code() == 0).then_some(output))
        })?;
        served(&page)?;
        let script = "(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 2) | nc -w 3 web PORT | grep served";
        let ask = |port: &str| compose(&["exec", "-T", "client", "sh", "-c", &script.replace("PORT", port)]);
        wait_for("the neighbour", PATIENCE, || Ok((ask("80")?.code() == 0).then_some(())))?;
        refused(&ask("81")?)
    });
    compose(&["down"])?.succeeded()?;
    outcome?;
    ends_empty(&nerdctl)
}

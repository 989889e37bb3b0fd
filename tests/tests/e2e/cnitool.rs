//! skep-cni called by CNI's own library, alone and in chains with the project's plugins, in every version there is.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_tests::cnitool::Host;
use skep_tests::image::installed_busybox;
use skep_tests::netns::Namespace;
use skep_tests::process::{LIMIT, Running, run, wait_for};
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] =
    &[Case::skep("cnitool_main", first_of_a_chain), Case::skep("cnitool_chained", behind_the_bridge_plugin)];

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const PORT: u16 = 18081;

/// The network under test: its name is the host's, so that no two cases meet.
const NETWORK: &str = "chain";

fn ingress_of_port_80() -> Value {
    json!({ "egress": { "allow": ["any"] }, "ingress": { "allow": [{ "protocol": "tcp", "ports": [80] }] } })
}

fn first_of_a_chain(lease: &mut Lease) -> Result<()> {
    let data = lease.scratch("data")?;
    let host = Host::new(&lease.build()?.bin, &lease.scratch("host")?)?;
    let plugins = [
        json!({
            "type": "skep-cni", "dataDir": data, "ipam": { "type": "skep", "subnet": "10.88.0.0/24" },
            "policy": ingress_of_port_80(),
        }),
        json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } }),
        json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } }),
        json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
    ];
    let arguments = json!({
        "portMappings": [{ "hostPort": PORT, "containerPort": 80, "protocol": "tcp" }],
        "bandwidth": {
            "ingressRate": 80_000_000, "ingressBurst": 80_000_000,
            "egressRate": 80_000_000, "egressBurst": 80_000_000,
        },
    });
    every_version(&host, &plugins, &arguments, &|container| {
        let tuned = "/proc/sys/net/ipv4/conf/eth0/arp_filter";
        ensure!(container.busybox(&["cat", tuned])?.text()?.trim() == "1", "tuning has tuned nothing");
        let links = host.ns.ip("-o link")?;
        ensure!(links.contains(": bwp"), "bandwidth made no device of its own: {links}");
        Ok(())
    })
}

fn behind_the_bridge_plugin(lease: &mut Lease) -> Result<()> {
    let (data, leases) = (lease.scratch("data")?, lease.scratch("leases")?);
    let host = Host::new(&lease.build()?.bin, &lease.scratch("host")?)?;
    let plugins = [
        json!({
            "type": "bridge", "bridge": "br0", "isGateway": true, "isDefaultGateway": true,
            "ipam": { "type": "host-local", "subnet": "10.89.0.0/24", "dataDir": leases },
        }),
        json!({
            "type": "skep-cni", "dataDir": data, "policy": ingress_of_port_80(),
            "capabilities": { "portMappings": true },
        }),
    ];
    let arguments = json!({ "portMappings": [{ "hostPort": PORT, "containerPort": 80, "protocol": "tcp" }] });
    every_version(&host, &plugins, &arguments, &|_| Ok(()))
}

/// The life of a container on a network of these plugins, in each version of CNI.
fn every_version(
    host: &Host,
    plugins: &[Value],
    arguments: &Value,
    look: &dyn Fn(&Namespace) -> Result<()>,
) -> Result<()> {
    for version in VERSIONS {
        host.declare(version, NETWORK, plugins)?;
        life(host, version, arguments, look).with_context(|| format!("with CNI {version}"))?;
    }
    Ok(())
}

fn life(
    host: &Host,
    version: &str,
    arguments: &Value,
    look: &dyn Fn(&Namespace) -> Result<()>,
) -> Result<()> {
    let container = Namespace::create()?;
    let call = |verb: &str, netns: &Path| host.call(verb, NETWORK, netns, arguments);
    let netns = container.path();
    if version >= "1.1.0" {
        call("status", &netns)?.succeeded()?;
    }
    let result: Value = serde_json::from_str(&call("add", &netns)?.text()?).context("the result of ADD")?;
    ensure!(result["cniVersion"] == version, "the result is of version {}", result["cniVersion"]);
    let address = result["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
    let address = address.with_context(|| format!("no address in {result}"))?;
    ensure!(call("add", &netns)?.code() != 0, "ADD twice");
    look(&container)?;
    // Both ports serve, and one may be reached: also by the host's published port.
    let _servers = [80, 81].map(|port| serve(&container, port)).into_iter().collect::<Result<Vec<_>>>()?;
    let at_port = |port: u16| format!("{address}:{port}");
    wait_for("port 80", LIMIT, || Ok(answers(&host.ns, &at_port(80))?.then_some(())))?;
    ensure!(!answers(&host.ns, &at_port(81))?, "port 81 is let through");
    let published = format!("127.0.0.1:{PORT}");
    wait_for("the published port", LIMIT, || Ok(answers(&host.ns, &published)?.then_some(())))?;

    let check = call("check", &netns)?;
    if version == "0.3.1" {
        ensure!(check.err().contains("does not support the CHECK command"), "{}", check.describe());
    } else {
        check.succeeded()?;
        container.ip("address flush dev eth0")?;
        let check = call("check", &netns)?;
        ensure!(check.code() != 0 && check.err().contains(address), "{}", check.describe());
    }
    call("del", &netns)?.succeeded()?;
    call("del", &netns)?.succeeded()?;
    empty(host)?;

    // cnitool has no list of what lives: its GC removes everything, through DEL or, since 1.1.0, the plugin's own GC.
    let lost = Namespace::create()?;
    let netns = lost.path();
    call("add", &netns)?.succeeded()?;
    drop(lost);
    call("gc", &netns)?.succeeded()?;
    empty(host)
}

/// A server on a port of a container, there when this returns.
fn serve(container: &Namespace, port: u16) -> Result<Running> {
    let busybox = installed_busybox()?;
    let server = container.start_script(&format!("exec {} httpd -f -p {port} -h /", busybox.display()))?;
    wait_for("a web server", LIMIT, || Ok(answers(container, &format!("127.0.0.1:{port}"))?.then_some(())))?;
    Ok(server)
}

/// Whether a web server answers a namespace, with whatever.
fn answers(from: &Namespace, at: &str) -> Result<bool> {
    let output = from.busybox(&["timeout", "3", "wget", "-qO-", &format!("http://{at}/none")])?;
    Ok(output.err().contains("404"))
}

/// No link and no rule of a sandbox is left on the host. The bridge plugin leaves its bridge.
fn empty(host: &Host) -> Result<()> {
    let links = host.ns.ip("-o link")?;
    let left: Vec<&str> = links
        .lines()
        .filter(|line| ["skv", "skb", "veth", "bwp"].iter().any(|name| line.contains(&format!(": {name}"))))
        .collect();
    ensure!(left.is_empty(), "links are left: {left:?}");
    let mut list = host.ns.program("nft");
    list.args(["list", "tables"]);
    let tables = run(list)?.text()?;
    ensure!(!tables.contains("skep"), "rules are left: {tables}");
    Ok(())
}

//! The network that a caller made in a namespace is the container's: addresses, routes and packets.

use anyhow::{Result, bail, ensure};
use skep_containerd_api::metrics::NetworkStat;
use skep_tests::ctr::Runtime;
use skep_tests::netns::Namespace;
use skep_tests::process::{LIMIT, wait_for};
use skep_tests::suite::Lease;
use skep_tests::task_api::Shim;

use crate::Case;
use crate::failures::lose_shim;

pub(crate) const CASES: &[Case] = &[
    Case::both("interface", interface).everywhere(),
    Case::both("packets", packets),
    Case::skep("counters", counters),
    Case::both("several_interfaces", several_interfaces),
    Case::both("empty_namespace", empty_namespace),
    Case::both("own_namespace", own_namespace),
    Case::skep("namespace_of_another_vm", namespace_of_another_vm),
    Case::skep("taken_interface_and_killed_shim", taken_interface_and_killed_shim),
];

const FOREVER: &str = "while :; do sleep 1; done";
const MAC: &str = "02:5e:10:00:00:07";

/// Two namespaces with a cable between them.
struct Pair {
    inside: Namespace,
    outside: Namespace,
}

impl Pair {
    fn create() -> Result<Self> {
        let pair = Self { inside: Namespace::create()?, outside: Namespace::create()? };
        pair.cable("eth0", MAC, "peer0")?;
        for command in [
            "address add 10.77.0.2/24 brd + dev eth0",
            "address add fd77::2/64 nodad dev eth0",
            "route add default via 10.77.0.1 metric 50",
            "route add 192.0.2.0/24 dev eth0 scope link mtu 1300",
            "route add 198.51.100.0/24 via 10.77.0.1 src 10.77.0.2",
            "route add default via fd77::1",
            "neighbour add 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
        ] {
            pair.inside.ip(command)?;
        }
        for command in [
            "address add 10.77.0.1/24 dev peer0",
            "address add fd77::1/64 nodad dev peer0",
            "address add 203.0.113.1/32 dev lo",
        ] {
            pair.outside.ip(command)?;
        }
        Ok(pair)
    }

    fn cable(&self, inside: &str, mac: &str, outside: &str) -> Result<()> {
        self.inside.ip(&format!(
            "link add {inside} address {mac} mtu 1400 type veth peer name {outside} mtu 1400 netns {}",
            self.outside.name()
        ))?;
        self.inside.ip(&format!("link set {inside} up"))?;
        self.outside.ip(&format!("link set {outside} up"))?;
        Ok(())
    }

    /// Nothing of ours is left, and the namespace has its interface back.
    fn is_as_before(&self) -> Result<()> {
        let links = self.inside.ip("-o link show")?;
        ensure!(!links.contains(": skep"), "a tap is left: {links}");
        let queues = self.inside.queues()?;
        ensure!(!queues.contains("ingress"), "a queue is left: {queues}");
        let ping = self.inside.busybox(&["ping", "-c", "1", "-W", "60", "10.77.0.1"])?;
        ensure!(ping.code() == 0, "{}", ping.describe());
        Ok(())
    }
}

fn contains_all(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in\n{text}");
    }
    Ok(())
}

fn interface(lease: &mut Lease) -> Result<()> {
    let pair = Pair::create()?;
    let script = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ls /sys/class/net; ip -o address; \
                  ip route; ip -6 route; ip neigh";
    let output = lease.subject().run("interface").flags(pair.inside.flag()).sh(script).output()?;
    let text = output.text()?;
    contains_all(
        &text,
        &[
            MAC,
            "\n1400\n",
            "\neth0\nlo\n",
            "inet 10.77.0.2/24 brd 10.77.0.255 scope global eth0",
            "inet6 fd77::2/64 scope global",
            "inet6 fe80::5e:10ff:fe00:7/64 scope link",
            "default via 10.77.0.1 dev eth0  metric 50",
            "10.77.0.0/24 dev eth0 scope link  src 10.77.0.2",
            "192.0.2.0/24 dev eth0 scope link",
            "198.51.100.0/24 via 10.77.0.1 dev eth0  src 10.77.0.2",
            "default via fd77::1 dev eth0",
            "10.77.0.99 dev eth0 lladdr 02:00:00:00:00:99",
        ],
    )?;
    ensure!(text.matches("inet ").count() == 2 && text.matches("fe80::").count() >= 1, "{text}");
    pair.is_as_before()
}

fn packets(lease: &mut Lease) -> Result<()> {
    let pair = Pair::create()?;
    let subject = lease.subject();
    // nc is done when either side is: its own input stays open.
    let serve = "sleep 300 | nc -l -p 7000 | md5sum >/tmp/sum & while :; do sleep 1; done";
    subject.run("packets").flags(["--null-io"]).flags(pair.inside.flag()).sh(serve).detached()?;
    let inside = |script: &str, name: &str| -> Result<String> {
        subject.exec("packets", name).sh(script).output()?.text()
    };
    // Out of the container, over both families, also beyond the link, and as large as fits.
    inside("ping -c 2 -W 60 10.77.0.1", "out4")?;
    inside("ping -c 2 -W 60 -s 1372 10.77.0.1", "large")?;
    inside("ping6 -c 2 -W 60 fd77::1", "out6")?;
    inside("ping -c 1 -W 60 203.0.113.1", "routed")?;
    // Into it.
    for address in ["10.77.0.2", "fd77::2"] {
        let ping = pair.outside.busybox(&["ping", "-c", "2", "-W", "60", address])?;
        ensure!(ping.code() == 0, "{}", ping.describe());
    }
    // A connection from outside, and one of the container's own.
    let sent = pair
        .outside
        .script("head -c 300000 /dev/urandom | tee $TMP | nc -w 60 10.77.0.2 7000; md5sum <$TMP")?;
    let got = inside("until test -s /tmp/sum; do sleep 0.1; done; cat /tmp/sum", "sum")?;
    ensure!(got == sent, "sent {sent}, got {got}");
    let server = pair.outside.start_script("echo greetings | nc -l -p 7001")?;
    let heard = wait_for("the server to be heard", LIMIT, || {
        let output = subject.exec("packets", "client").sh("sleep 1 | nc 10.77.0.1 7001").output()?;
        Ok((output.code() == 0 && !output.stdout.is_empty()).then(|| output.out()))
    })?;
    drop(server);
    ensure!(heard == "greetings\n", "{heard}");
    // The neighbour knows it by the address that the caller gave.
    let neighbours = pair.outside.ip("neighbour show 10.77.0.2")?;
    ensure!(neighbours.contains(MAC), "{neighbours}");
    subject.remove("packets")?;
    pair.is_as_before()
}

/// The host's count of what the interface carried is in the task's figures, with directions as the container sees them.
fn counters(lease: &mut Lease) -> Result<()> {
    const MUCH: u64 = 300_000;
    let pair = Pair::create()?;
    let subject = lease.subject();
    let serve = "sleep 300 | nc -l -p 7000 >/dev/null & while :; do sleep 1; done";
    subject.run("counted").flags(["--null-io"]).flags(pair.inside.flag()).sh(serve).detached()?;
    // Port 7000.
    let listens = "until grep -q :1B58 /proc/net/tcp*; do sleep 0.1; done";
    subject.exec("counted", "listens").sh(listens).output()?.succeeded()?;
    let shim = Shim::of(&lease.containerd, "counted")?;
    let counted = || -> Result<NetworkStat> {
        let metrics = shim.metrics("counted")?;
        ensure!(metrics.cpu.usage_usec > 0, "{metrics}");
        match metrics.network.as_slice() {
            [eth0] if eth0.name == "eth0" => Ok(eth0.clone()),
            other => bail!("{other:?}"),
        }
    };
    let before = counted()?;
    pair.outside.script(&format!("head -c {MUCH} /dev/zero | nc -w 60 10.77.0.2 7000"))?;
    let after = wait_for("what came in to be counted", LIMIT, || {
        let after = counted()?;
        Ok((after.rx_bytes >= before.rx_bytes + MUCH).then_some(after))
    })?;
    // The way back has acknowledgements alone.
    let back = after.tx_bytes - before.tx_bytes;
    ensure!(back > 0 && back < MUCH / 3, "{back} bytes back; {after:?}");
    ensure!(after.rx_packets > before.rx_packets && after.tx_packets > before.tx_packets, "{after:?}");
    subject.remove("counted")?;
    pair.is_as_before()
}

fn several_interfaces(lease: &mut Lease) -> Result<()> {
    let pair = Pair::create()?;
    pair.cable("net1", "02:5e:10:00:00:08", "peer1")?;
    pair.cable("eth1", "02:5e:10:00:00:09", "peer2")?;
    for (device, network) in [("net1", "10.78.0"), ("eth1", "10.79.0")] {
        pair.inside.ip(&format!("address add {network}.2/24 dev {device}"))?;
    }
    pair.outside.ip("address add 10.78.0.1/24 dev peer1")?;
    pair.outside.ip("address add 10.79.0.1/24 dev peer2")?;
    let script = "for n in eth0 eth1 net1; do echo $n $(cat /sys/class/net/$n/address); done; \
                  for n in 77 78 79; do ping -c 1 -W 60 10.$n.0.1 >/dev/null && echo reached $n; done";
    let output = lease.subject().run("several").flags(pair.inside.flag()).sh(script).output()?;
    let expected = "eth0 02:5e:10:00:00:07\neth1 02:5e:10:00:00:09\nnet1 02:5e:10:00:00:08\n\
                    reached 77\nreached 78\nreached 79";
    ensure!(output.text()? == expected, "{}", output.describe());
    pair.is_as_before()
}

/// Only the loopback interface, which works.
fn empty_namespace(lease: &mut Lease) -> Result<()> {
    let namespace = Namespace::create()?;
    let script = "ls /sys/class/net; ping -c 1 -W 60 127.0.0.1 >/dev/null && ping6 -c 1 -W 60 ::1 >/dev/null && echo ok";
    let output = lease.subject().run("empty").flags(namespace.flag()).sh(script).output()?;
    ensure!(output.text()? == "lo\nok", "{}", output.describe());
    Ok(())
}

/// The same without a namespace of the caller's.
fn own_namespace(lease: &mut Lease) -> Result<()> {
    let output = lease.subject().sh("alone", "ls /sys/class/net; ip route; cat /proc/net/route | wc -l")?;
    ensure!(output.text()? == "lo\n1", "{}", output.describe());
    Ok(())
}

fn namespace_of_another_vm(lease: &mut Lease) -> Result<()> {
    let pair = Pair::create()?;
    let subject = lease.subject();
    subject.run("first").flags(["--null-io"]).flags(pair.inside.flag()).sh(FOREVER).detached()?;
    let output = subject.run("second").flags(pair.inside.flag()).args(["true"]).output()?;
    ensure!(output.code() != 0 && output.err().contains("another microVM has it"), "{}", output.describe());
    // The first is none the worse for it.
    let ping = pair.outside.busybox(&["ping", "-c", "1", "-W", "60", "10.77.0.2"])?;
    ensure!(ping.code() == 0, "{}", ping.describe());
    subject.remove("first")?;
    pair.is_as_before()
}

/// Whoever undoes the sandbox from its journal gives the interface back.
fn taken_interface_and_killed_shim(lease: &mut Lease) -> Result<()> {
    ensure!(lease.runtime == Runtime::Skep);
    let pair = Pair::create()?;
    let subject = lease.subject();
    subject.run("killed").flags(["--null-io"]).flags(pair.inside.flag()).sh(FOREVER).detached()?;
    ensure!(pair.inside.queues()?.contains("ingress"), "nothing was taken over");
    lose_shim(lease, "killed")?;
    subject.remove("killed")?;
    pair.is_as_before()
}

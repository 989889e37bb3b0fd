//! A microVM under bhyve with an address of the network outside, leased by its DHCP server.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use skep_tests::process::{Input, Running, wait_for};
use skep_tests::suite::Lease;

use crate::Case;
use crate::freebsd_network::{Guest, Jail, Lan, SERVE, SETTLE, address, annotations, said};

#[path = "../../../netplugin/tests/jails/dhcp_server.rs"]
#[allow(unreachable_pub, clippy::unwrap_used, reason = "of other tests, too")]
mod server;

use server::Files;

pub(crate) const CASES: &[Case] = &[Case::skep("bhyve_net_dhcp", dhcp).on_freebsd()];

/// By which this program is told to be a DHCP server, and no test: with a directory, and the seconds of its leases.
const SERVER: &str = "--dhcp-server";
/// Seconds: longer than a guest takes to boot and answer, which a renewal needs.
const LEASE: u32 = 120;
/// How long half of a lease may take to be renewed, or all of one to end, with all that is slow.
const PATIENCE: Duration = Duration::from_secs(600);

/// Whether this process is to be a server; it ends with whoever kills it.
pub(crate) fn serves() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, flag, dir, seconds] = arguments.as_slice() else { return None };
    let seconds = seconds.parse().ok().filter(|_| flag == SERVER)?;
    server::serve(&Files::new(Path::new(dir)), seconds);
    Some(ExitCode::SUCCESS)
}

/// The network outside, with a server, and the card of the host's that it is behind.
struct Outside {
    jail: Jail,
    card: String,
    files: Files,
    _server: Running,
}

impl Outside {
    fn create(lease: &Lease) -> Result<Self> {
        let jail = Jail::create("skept-dhcp")?;
        let far = said("ifconfig epair create")?;
        let card = format!("{}b", far.trim_end_matches('a'));
        said(&format!("ifconfig {card} up; ifconfig {far} vnet {}", jail.0))?;
        jail.said(&format!("ifconfig {far} inet 203.0.113.1/24 up"))?;
        let dir = lease.scratch("dhcp")?;
        let files = Files::new(&dir);
        files.begin();
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = std::process::Command::new("jexec");
        command.arg(&jail.0).arg(program).arg(SERVER).arg(&dir).arg(LEASE.to_string());
        let server = Running::spawn(command, Input::Empty)?;
        wait_for("the DHCP server", SETTLE, || {
            Ok(jail.said("sockstat -4l")?.contains(":67 ").then_some(()))
        })?;
        Ok(Self { jail, card, files, _server: server })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = said(&format!("ifconfig {} destroy", self.card));
    }
}

/// The address in the guest is the server's, is renewed for it while it runs, can be taken from it, and is given back.
fn dhcp(lease: &mut Lease) -> Result<()> {
    let outside = Outside::create(lease)?;
    let lan = Lan::create_with(lease, |conf| {
        conf["uplink"] = outside.card.clone().into();
        conf["ipam"] = json!({ "type": "dhcp" });
        conf["policy"]["hostServices"] = json!([]);
        // What the server says of resolvers is what the container shall have.
        drop(conf.as_object_mut().and_then(|conf| conf.remove("dns")));
    })?;
    let files = &outside.files;
    let watch = lan.watch()?;
    let _servers = [outside.jail.serve(80)?, outside.jail.serve(81)?];
    let policy = json!({ "egress": { "allow": [{ "cidr": "203.0.113.1", "protocol": "tcp", "ports": [80] }] },
        "ingress": { "allow": [{ "cidr": "203.0.113.0/24", "protocol": "tcp", "ports": [80] }] } });
    let subject = lease.subject();
    let guest = Guest::start(subject, "leased", SERVE, annotations(&policy, &[]))?;
    let own = address(&lan.attachment("leased")?["addresses"][0])?;
    ensure!(files.asked("REQUEST", &own) > 0, "{own} is not the server's: {}", files.log());
    let text = guest.sh("ip -o address; ip route; cat /etc/resolv.conf")?.text()?;
    for part in [
        &format!("inet {own}/24 brd 203.0.113.255 scope global eth0"),
        "default via 203.0.113.1 dev eth0",
        "198.51.100.0/24 via 203.0.113.9 dev eth0",
        "nameserver 203.0.113.2\nsearch example.net",
    ] {
        ensure!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let hears = || guest.hears("http://203.0.113.1/", "from-the-jail");
    let is_heard = || outside.jail.fetch(&format!("http://{own}/"), crate::freebsd_network::ENOUGH);
    hears()?;
    ensure!(is_heard()? == "from-the-vm", "from outside");
    guest.hears_nothing("http://203.0.113.1:81/")?;

    // Longer than the first lease was: the guest answers where the server asks for it.
    wait_for("the lease to be renewed again and again", PATIENCE, || {
        Ok((files.renewed(&own) >= 2).then_some(()))
    })
    .with_context(|| files.log())?;
    let record = lan.attachment("leased")?;
    ensure!(record["problems"] == json!([]), "{record:#}");
    hears()?;
    ensure!(is_heard()? == "from-the-vm", "from outside, by a lease that was renewed");

    // What the server takes back is the guest's no longer, and again when it can be had again.
    let problem = |wanted: &str| {
        wait_for(wanted, PATIENCE, || {
            Ok(lan.attachment("leased")?["problems"].to_string().contains(wanted).then_some(()))
        })
        .with_context(|| files.log())
    };
    files.answer("no");
    problem("took it back")?;
    guest.hears_nothing("http://203.0.113.1/")?;
    ensure!(is_heard()?.is_empty(), "an address that was taken back");
    files.answer("yes");
    problem("[]")?;
    hears()?;
    ensure!(is_heard()? == "from-the-vm", "from outside, by a lease that was had again");

    subject.remove("leased")?;
    ensure!(files.asked("RELEASE", &own) == 1, "{}", files.log());
    drop(watch);
    let dir = lease.scratch("dhcp")?;
    drop(outside);
    fs::remove_dir_all(dir)?;
    lan.ends_empty()
}

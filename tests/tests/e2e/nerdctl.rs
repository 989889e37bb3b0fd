//! nerdctl's commands, with networks made by CNI plugins: what people type.

#[cfg(target_os = "linux")]
mod filtered;
mod flags;

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_tests::containerd_versions::Line;
use skep_tests::ctr::{BUSYBOX, Runtime};
use skep_tests::nerdctl::Nerdctl;
use skep_tests::process::{Input, LIMIT, Output, Running, run, wait_for};
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    on_2(Case::both("nerdctl_run", run_and_see)),
    on_2(Case::both("nerdctl_lifecycle", lifecycle)),
    on_2(Case::both("nerdctl_files", files)),
    on_2(Case::both("nerdctl_network", network)),
    on_2(Case::both("nerdctl_published_port", published_port)),
    on_2(Case::both("nerdctl_compose", compose)),
    on_2(Case::both("nerdctl_limits", flags::limits)),
    on_2(Case::both("nerdctl_rights", flags::rights)),
    on_2(Case::both("nerdctl_mounts", flags::mounts)),
    on_2(Case::both("nerdctl_init", flags::init)),
    on_2(Case::both("nerdctl_of_the_host", flags::of_the_host)),
    on_2(Case::skep("nerdctl_host_network", host_network)),
    #[cfg(target_os = "linux")]
    on_2(Case::skep("nerdctl_skep_cni", filtered::filtered)),
    #[cfg(target_os = "linux")]
    on_2(Case::skep("nerdctl_skep_cni_compose", filtered::compose)),
];

/// nerdctl is used with the containerd of its time.
const fn on_2(mut case: Case) -> Case {
    case.lines = &[Line::V2];
    case
}

const FOREVER: &[&str] = &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"];

fn expect(output: &Output, code: i32, out: &str) -> Result<()> {
    ensure!(
        output.code() == code && output.out() == out,
        "expected {code} and {out:?}: {}",
        output.describe()
    );
    Ok(())
}

/// Removes a container on every path out of a case.
struct Removed<'a, 'b>(&'a Nerdctl<'b>, &'static [&'static str]);

impl Drop for Removed<'_, '_> {
    fn drop(&mut self) {
        for name in self.1 {
            let _ = self.0.nerdctl(["rm", "-f", name]);
        }
    }
}

/// Takes away what nerdctl makes for all containers of one network: its bridge stays for the next.
fn end(nerdctl: &Nerdctl<'_>) -> Result<()> {
    for link in ["nerdctl0", "br-skep"] {
        let mut command = nerdctl.inside("ip");
        command.args(["link", "delete", link]);
        run(command)?;
    }
    Ok(())
}

fn run_and_see(lease: &mut Lease) -> Result<()> {
    let nerdctl = Nerdctl::new(lease.subject())?;
    let output = nerdctl.run("--rm", &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    expect(&output, 7, "out\n")?;
    ensure!(output.err().contains("err\n"), "{}", output.describe());
    let echoed =
        Running::spawn(nerdctl.run_command("--rm -i", &["cat"]), Input::Bytes(b"through\n".to_vec()))?;
    expect(&echoed.wait(LIMIT)?, 0, "through\n")?;
    if lease.runtime == Runtime::Skep {
        // runc's shim may not hear of an end that comes so early.
        let piped = Input::Piped(b"at once\n".to_vec());
        let piped = Running::spawn(nerdctl.run_command("--rm -i", &["cat"]), piped)?;
        expect(&piped.wait(LIMIT)?, 0, "at once\n")?;
    }
    let script = "hostname; ip -o -4 address show eth0 | wc -l; grep -c '^10.1.2.3.*elsewhere' /etc/hosts; \
                  grep -c nameserver /etc/resolv.conf";
    let output = nerdctl
        .run("--rm --hostname here --add-host elsewhere:10.1.2.3 --dns 10.9.8.7", &["sh", "-c", script])?;
    expect(&output, 0, "here\n1\n1\n1\n")?;
    let output = nerdctl.run("--rm --net none", &["ls", "/sys/class/net"])?;
    expect(&output, 0, "lo\n")?;
    let output =
        nerdctl.run("--rm --cap-drop ALL --read-only --user 33:33", &["sh", "-c", "id -u; touch /x"])?;
    expect(&output, 1, "33\n")?;
    end(&nerdctl)
}

fn lifecycle(lease: &mut Lease) -> Result<()> {
    let nerdctl = Nerdctl::new(lease.subject())?;
    let _removed = Removed(&nerdctl, &["life"]);
    let script = "trap 'echo bye; exit 3' TERM; echo begun; while :; do sleep 0.2; done";
    nerdctl.run("-d --name life -p 127.0.0.1:8099:80", &["sh", "-c", script])?.succeeded()?;
    wait_for("the log", LIMIT, || Ok((nerdctl.said("logs life")? == "begun").then_some(())))?;
    // nerdctl tells the code, and exits with 1.
    let exec = nerdctl.nerdctl(["exec", "life", "sh", "-c", "echo in; exit 5"])?;
    ensure!(exec.out() == "in\n" && exec.err().contains("exit code 5"), "{}", exec.describe());
    ensure!(nerdctl.said("ps")?.contains("life"));
    let port = nerdctl.said("port life")?;
    ensure!(port == "80/tcp -> 127.0.0.1:8099", "{port}");
    ensure!(nerdctl.said("top life")?.contains("PID"));
    let usage = nerdctl.said("stats --no-stream --format {{.MemUsage}} life")?;
    ensure!(usage.contains("iB /"), "{usage}");
    let inspected: Value = serde_json::from_str(&nerdctl.said("inspect life")?)?;
    let (state, networks) = (&inspected[0]["State"], &inspected[0]["NetworkSettings"]);
    ensure!(state["Running"] == true && state["Pid"].as_u64().unwrap_or(0) > 0, "{state}");
    let address = networks["IPAddress"].as_str().unwrap_or_default();
    let inside = nerdctl.nerdctl(["exec", "life", "ip", "-o", "-4", "address", "show", "eth0"])?.text()?;
    ensure!(!address.is_empty() && inside.contains(address), "{networks}\n{inside}");
    nerdctl.said("pause life")?;
    ensure!(nerdctl.said("ps -a")?.contains("Paused"));
    nerdctl.said("unpause life")?;
    nerdctl.said("stop --time 90 life")?;
    let inspected: Value = serde_json::from_str(&nerdctl.said("inspect life")?)?;
    ensure!(inspected[0]["State"]["ExitCode"] == 3, "{}", inspected[0]["State"]);
    wait_for("the whole log", LIMIT, || Ok((nerdctl.said("logs life")? == "begun\nbye").then_some(())))?;
    // The same container once more.
    nerdctl.said("start life")?;
    nerdctl.said("kill life")?;
    wait_for("its end", LIMIT, || {
        let inspected: Value = serde_json::from_str(&nerdctl.said("inspect life")?)?;
        Ok((inspected[0]["State"]["ExitCode"] == 137).then_some(()))
    })?;
    nerdctl.said("rm life")?;
    ensure!(!nerdctl.said("ps -a")?.contains("life"));
    end(&nerdctl)
}

fn files(lease: &mut Lease) -> Result<()> {
    let nerdctl = Nerdctl::new(lease.subject())?;
    let _removed = Removed(&nerdctl, &["files"]);
    let scratch = lease.scratch("volumes")?;
    fs::write(scratch.join("given"), "given\n")?;
    let flags = format!("-d --name files -v {}:/host -v named:/named --net none", scratch.display());
    nerdctl.run(&flags, FOREVER)?.succeeded()?;
    let script = "cat /host/given; echo made >/host/made; echo kept >/named/kept; echo layer >/layer";
    expect(&nerdctl.nerdctl(["exec", "files", "sh", "-c", script])?, 0, "given\n")?;
    ensure!(fs::read_to_string(scratch.join("made"))? == "made\n");
    // A running container's files nerdctl looks for below its process's root, a stopped one's in its snapshot.
    for (name, change) in [("running", "stop"), ("stopped", "start")] {
        let copied = scratch.join(name);
        nerdctl.said(&format!("cp files:/layer {}", copied.display()))?;
        ensure!(fs::read_to_string(copied)? == "layer\n");
        nerdctl.said(&format!("cp {} files:/{name}", scratch.join("given").display()))?;
        nerdctl.said(&format!("{change} files"))?;
    }
    expect(&nerdctl.nerdctl(["exec", "files", "cat", "/running", "/stopped"])?, 0, "given\ngiven\n")?;
    nerdctl.said(&format!("cp files:/named/kept {}", scratch.join("kept").display()))?;
    ensure!(fs::read_to_string(scratch.join("kept"))? == "kept\n");
    nerdctl.said(&format!("cp {} files:/named/back", scratch.join("kept").display()))?;
    expect(&nerdctl.nerdctl(["exec", "files", "cat", "/named/back"])?, 0, "kept\n")?;
    nerdctl.said("commit files skep.test/committed:latest")?;
    nerdctl.said("rm -f files")?;
    let mut command = nerdctl.run_command("--rm --net none -v named:/named", &["cat", "/named/kept"]);
    expect(&run(command)?, 0, "kept\n")?;
    command = nerdctl.command([
        "run",
        "--rm",
        "--pull",
        "never",
        "--net",
        "none",
        "--runtime",
        lease.runtime.name(),
        "skep.test/committed:latest",
        "cat",
        "/layer",
    ]);
    expect(&run(command)?, 0, "layer\n")?;
    nerdctl.said("rmi skep.test/committed:latest")?;
    nerdctl.said("volume rm named")?;
    end(&nerdctl)
}

fn network(lease: &mut Lease) -> Result<()> {
    let nerdctl = Nerdctl::new(lease.subject())?;
    let _removed = Removed(&nerdctl, &["one", "two"]);
    nerdctl.said("network create --subnet 10.88.7.0/24 between")?;
    nerdctl.run("-d --name one --net between", FOREVER)?.succeeded()?;
    nerdctl.run("-d --name two --net between --net bridge", FOREVER)?.succeeded()?;
    let reached = |from: &str, to: &str| nerdctl.nerdctl(["exec", from, "ping", "-c", "1", "-W", "60", to]);
    // By name, both ways.
    for (from, to) in [("one", "two"), ("two", "one")] {
        let output = reached(from, to)?;
        ensure!(output.code() == 0, "{}", output.describe());
    }
    let links = nerdctl.nerdctl(["exec", "two", "ls", "/sys/class/net"])?;
    expect(&links, 0, "eth0\neth1\nlo\n")?;
    nerdctl.said("rm -f one two")?;
    nerdctl.said("network rm between")?;
    end(&nerdctl)
}

fn published_port(lease: &mut Lease) -> Result<()> {
    let nerdctl = Nerdctl::new(lease.subject())?;
    let _removed = Removed(&nerdctl, &["server"]);
    let serve = "mkdir /www; echo served >/www/index.html; exec httpd -f -p 80 -h /www";
    nerdctl.run("-d --name server -p 8088:80", &["sh", "-c", serve])?.succeeded()?;
    let ip = nerdctl.said("inspect -f {{.NetworkSettings.IPAddress}} server")?;
    for url in [format!("http://{ip}/"), "http://10.4.0.1:8088/".to_owned()] {
        // Without a limit of its own: Debian's static busybox crashes when given one.
        let page = wait_for(&format!("{url} to be served"), LIMIT, || {
            let output = nerdctl.outside(&["wget", "-q", "-O", "-", &url])?;
            Ok((output.code() == 0).then(|| output.out()))
        })?;
        ensure!(page == "served\n", "{page}");
    }
    nerdctl.said("rm -f server")?;
    // What was published is so no longer.
    let gone = nerdctl.outside(&["wget", "-q", "-O", "-", "http://10.4.0.1:8088/"])?;
    ensure!(gone.code() != 0, "{}", gone.describe());
    end(&nerdctl)
}

fn compose(lease: &mut Lease) -> Result<()> {
    let nerdctl = Nerdctl::new(lease.subject())?;
    let scratch = lease.scratch("project")?;
    let runtime = lease.runtime.name();
    let file = scratch.join("compose.yaml");
    let text = format!(
        "services:\n  web:\n    image: {BUSYBOX}\n    pull_policy: never\n    runtime: {runtime}\n    \
         command: [sleep, \"1000\"]\n  \
         client:\n    image: {BUSYBOX}\n    pull_policy: never\n    runtime: {runtime}\n    \
         depends_on: [web]\n    command: [sleep, \"1000\"]\n"
    );
    fs::write(&file, text).context("writing the compose file")?;
    let compose = |words: &[&str]| {
        let mut all = vec!["compose", "-f", file.to_str().unwrap_or_default(), "-p", "skep"];
        all.extend(words);
        nerdctl.nerdctl(all)
    };
    compose(&["up", "-d"])?.succeeded()?;
    let reached = compose(&["exec", "-T", "client", "ping", "-c", "1", "-W", "60", "web"])?;
    let listed = compose(&["ps"])?;
    compose(&["down"])?.succeeded()?;
    ensure!(reached.code() == 0, "{}", reached.describe());
    ensure!(listed.out().contains("web") && listed.out().contains("client"), "{}", listed.describe());
    end(&nerdctl)
}

fn host_network(lease: &mut Lease) -> Result<()> {
    let nerdctl = Nerdctl::new(lease.subject())?;
    let output = nerdctl.run("--rm --net host", &["true"])?;
    ensure!(output.code() != 0 && output.err().contains("microVM can't share it"), "{}", output.describe());
    end(&nerdctl)
}

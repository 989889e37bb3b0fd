//! What FreeBSD hosts alone have: bhyve's VMs, nullfs, and the doctor's view of them.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use skep_tests::census;
use skep_tests::figures::tell;
use skep_tests::process::run;
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::skep("doctor", doctor).on_freebsd(),
    Case::skep("volumes", volumes).on_freebsd(),
    Case::skep("twenty_sandboxes", twenty_sandboxes).on_freebsd(),
    Case::skep("figures", figures).on_freebsd(),
];

/// The doctor finds nothing in the way, and knows which machine it looks at.
fn doctor(lease: &mut Lease) -> Result<()> {
    let mut command = Command::new(lease.build()?.bin.join("skep"));
    command.args(["doctor", "--json"]).env_remove("SKEP_CONFIG");
    command.env("CONTAINERD_ADDRESS", lease.containerd.directory().join("c.sock"));
    let output = run(command)?;
    let report: Value = serde_json::from_str(&output.out()).with_context(|| output.describe())?;
    ensure!(output.code() == 0 && report["ready"] == true, "{report:#}");
    lease.subject().sh("healthy", "true")?.succeeded()?;
    Ok(())
}

/// A directory of the host, once read-only and once not.
fn volumes(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let (given, taken) = (lease.scratch("given")?, lease.scratch("taken")?);
    fs::write(given.join("file"), "from the host\n")?;
    let mount = |source: &std::path::Path, target: &str, access: &str| {
        format!("type=bind,src={},dst={target},options=rbind:{access}", source.display())
    };
    let script = "cat /given/file; cp /given/file /taken/copy; echo changed >/given/file; echo $?";
    let output = subject
        .run("volumes")
        .flags(["--mount", &mount(&given, "/given", "ro"), "--mount", &mount(&taken, "/taken", "rw")])
        .sh(script)
        .output()?;
    ensure!(output.text()? == "from the host\n1", "{}", output.describe());
    ensure!(output.err().contains("Read-only file system"), "{}", output.describe());
    ensure!(fs::read_to_string(taken.join("copy"))? == "from the host\n");
    ensure!(fs::read_to_string(given.join("file"))? == "from the host\n");
    Ok(())
}

/// Many VMs made and deleted, several of them at a time: whoever runs this compares the census before and after.
fn twenty_sandboxes(lease: &mut Lease) -> Result<()> {
    const ROUNDS: usize = 5;
    const AT_ONCE: usize = 4;
    let subject = lease.subject();
    for round in 0..ROUNDS {
        let ids: Vec<String> = (0..AT_ONCE).map(|number| format!("many-{round}-{number}")).collect();
        for id in &ids {
            subject.run(id).flags(["--null-io"]).sh("while :; do sleep 1; done").detached()?;
        }
        let vms = fs::read_dir("/dev/vmm").context("listing VMs")?.count();
        ensure!(vms == AT_ONCE, "{vms} VMs run {AT_ONCE} containers");
        for id in &ids {
            subject.remove(id)?;
        }
    }
    Ok(())
}

/// Tells what a container costs: the phases of its start, and the memory of its processes. No figure fails.
fn figures(lease: &mut Lease) -> Result<()> {
    const ROUNDS: usize = 3;
    let subject = lease.subject();
    for round in 0..ROUNDS {
        let id = format!("figures-{round}");
        subject.run(&id).flags(["--null-io"]).sh("while :; do sleep 1; done").detached()?;
        let path = subject.sandbox(&id)?.join("timings.json");
        let timings: Value = serde_json::from_slice(&fs::read(&path)?)?;
        let marks = timings["marks"].as_array().context("timings have marks")?;
        ensure!(!marks.is_empty(), "{timings:#}");
        let mut before = 0.0;
        for mark in marks {
            let at = mark["at_us"].as_f64().context("a mark has a time")? / 1000.0;
            tell(format!("container: {}", mark["name"].as_str().unwrap_or_default()), at - before, "ms");
            before = at;
        }
        for member in census::processes(&lease.containerd.scope())? {
            let name = member.program();
            if !["containerd-shim", "skep-container", "bhyve"].iter().any(|known| name.starts_with(known)) {
                continue;
            }
            let mut ps = Command::new("ps");
            ps.args(["-o", "rss=", "-p", &member.pid.to_string()]);
            // A helper may have ended meanwhile.
            if let Ok(kib) = run(ps)?.out().trim().parse::<f64>() {
                tell(format!("container: {name} resident"), kib / 1024.0, "MiB");
            }
        }
        subject.remove(&id)?;
    }
    Ok(())
}

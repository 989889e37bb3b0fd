//! `skep doctor` says what stands in the way of containers, and nothing where they run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_tests::process::{Output, run};
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::skep("doctor_on_a_healthy_machine", healthy).everywhere(),
    Case::skep("doctor_misses_a_guest", guest_missing),
    Case::skep("doctor_misses_programs", programs_missing),
    Case::skep("doctor_finds_leftovers", leftovers),
    Case::skep("doctor_and_a_broken_configuration", configuration_broken),
];

/// The doctor with nothing but the socket to go by: what else a shim of this containerd has, it has to find out.
fn doctor(lease: &Lease, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(lease.build()?.bin.join("skep"));
    command.arg("doctor").args(arguments).env_remove("SKEP_CONFIG");
    command.env("CONTAINERD_ADDRESS", lease.containerd.directory().join("c.sock"));
    Ok(command)
}

/// What it says of one thing.
fn check<'a>(report: &'a Value, id: &str) -> Result<&'a Value> {
    let checks = report["checks"].as_array().context("a report has checks")?;
    checks.iter().find(|check| check["id"] == id).with_context(|| format!("no check {id} in {report:#}"))
}

fn report(output: &Output) -> Result<Value> {
    serde_json::from_str(&output.out()).with_context(|| output.describe())
}

/// It must say that containers would not run, with all of `words`.
fn refuses(command: Command, words: &[&str]) -> Result<()> {
    let output = run(command)?;
    ensure!(output.code() == 1, "the status should be 1: {}", output.describe());
    let text = output.out();
    for word in words.iter().chain(&["containers would not run"]) {
        ensure!(text.contains(word), "{word:?} is not said: {}", output.describe());
    }
    Ok(())
}

fn healthy(lease: &mut Lease) -> Result<()> {
    let output = run(doctor(lease, &["--json"])?)?;
    ensure!(output.code() == 0, "{}", output.describe());
    let report = report(&output)?;
    ensure!(report["ready"] == true, "{report:#}");
    let version = &lease.containerd.installation().version;
    let config = lease.containerd.skep_config();
    let shim = lease.build()?.bin.join(skep_tests::suite::SHIM);
    for (id, found) in [
        ("containerd", version.as_str()),
        ("configuration", &config.to_string_lossy()),
        ("shim", &shim.to_string_lossy()),
        ("guest", &lease.build()?.guest.to_string_lossy()),
        ("qemu", "QEMU emulator version"),
    ] {
        let check = check(&report, id)?;
        let said = check["found"].as_str().unwrap_or_default();
        ensure!(check["state"] == "ok" && said.contains(found), "{found:?} is not in {check:#}");
    }
    // And so it is.
    lease.subject().sh("healthy", "true")?.succeeded()?;
    Ok(())
}

fn guest_missing(lease: &mut Lease) -> Result<()> {
    lease.configure(|configuration| Path::new("/no/such/guest").clone_into(&mut configuration.guest))?;
    refuses(doctor(lease, &[])?, &["/no/such/guest", "cargo xtask guest"])
}

fn programs_missing(lease: &mut Lease) -> Result<()> {
    lease.configure(|configuration| "/no/such/qemu".clone_into(&mut configuration.qemu))?;
    refuses(doctor(lease, &[])?, &["/no/such/qemu", "qemu.binary"])?;
    // Without a containerd it is the caller's own search path that counts.
    let mut command = doctor(lease, &["--containerd", "/no/such/containerd.sock"])?;
    command.env("PATH", lease.scratch("empty")?);
    let words =
        ["/no/such/containerd.sock", "qemu-system-x86_64 not found", "no containerd-shim-skep-v2 in PATH"];
    refuses(command, &words)?;
    let output = run(doctor(lease, &["--jsn"])?)?;
    ensure!(output.code() == 2 && output.err().contains("--jsn"), "{}", output.describe());
    Ok(())
}

fn leftovers(lease: &mut Lease) -> Result<()> {
    let state = |lease: &Lease| -> Result<Value> {
        let report = report(&run(doctor(lease, &["--json"])?)?)?;
        ensure!(report["ready"] == true, "a leftover is not in the way: {report:#}");
        Ok(check(&report, "leftovers")?.clone())
    };
    // As of a shim that was killed while it made or removed a sandbox.
    let left = lease.containerd.skep_state().join("sb/0123456789abcdef");
    fs::create_dir_all(&left).with_context(|| format!("creating {}", left.display()))?;
    let check = state(lease)?;
    ensure!(check["state"] == "warning" && check["fix"] == "skep gc", "{check:#}");
    lease.skep(&["gc"])?.succeeded()?;
    let check = state(lease)?;
    ensure!(check["state"] == "ok", "{check:#}");
    Ok(())
}

fn configuration_broken(lease: &mut Lease) -> Result<()> {
    lease.configure(|configuration| "accl = 'tcg'\n".clone_into(&mut configuration.more))?;
    let file = lease.containerd.skep_config();
    refuses(doctor(lease, &[])?, &["qemu.accl: unknown field", &file.to_string_lossy(), "skep config check"])
}

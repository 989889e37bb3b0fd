//! Deaths at the wrong moment: what is left can be removed, and nothing stays behind.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_tests::census::{self, Member};
use skep_tests::events::Recorder;
use skep_tests::process::{LIMIT, wait_for};
use skep_tests::suite::Lease;

use crate::Case;
use crate::bad_input::silent_guest;

pub(crate) const CASES: &[Case] = &[
    Case::both("shim_killed", shim_killed).on_freebsd().everywhere(),
    Case::skep("vmm_killed", vmm_killed).on_freebsd(),
    Case::skep("vmm_stopped", vmm_stopped).on_freebsd(),
    Case::skep("stand_in_stopped", stand_in_stopped).on_freebsd(),
    Case::skep("vmm_killed_while_attached", vmm_killed_while_attached).on_freebsd(),
    Case::both("ctr_killed", ctr_killed).on_freebsd(),
    Case::skep("ctr_killed_during_boot", ctr_killed_during_boot).on_freebsd(),
    Case::skep("all_killed", all_killed).on_freebsd(),
];

const FOREVER: &str = "while :; do sleep 1; done";

pub(crate) fn member(lease: &Lease, what: &str, is: impl Fn(&Member) -> bool) -> Result<Pid> {
    let all = census::processes(&lease.containerd.scope())?;
    let found = all.into_iter().find(is).with_context(|| format!("no process is {what}"))?;
    Ok(Pid::from_raw(found.pid))
}

pub(crate) fn is_shim_of(id: &str) -> impl Fn(&Member) -> bool {
    move |member| {
        member.program().starts_with("containerd-shim") && member.arguments.iter().any(|word| word == id)
    }
}

/// Kills the shim of container `id` and waits until containerd knows.
pub(crate) fn lose_shim(lease: &Lease, id: &str) -> Result<()> {
    kill(member(lease, "the shim", is_shim_of(id))?, Signal::SIGKILL).context("killing the shim")?;
    wait_for("the task to be gone or stopped", LIMIT, || {
        Ok(lease.subject().task(id)?.is_none_or(|task| task.status != "RUNNING").then_some(()))
    })
}

/// containerd learns of the shim's death, calls its `delete`, and tells of the exit.
fn shim_killed(lease: &mut Lease) -> Result<()> {
    let recorder = Recorder::start(&lease.containerd)?;
    let subject = lease.subject();
    subject.run("orphan").flags(["--null-io"]).sh(FOREVER).detached()?;
    lose_shim(lease, "orphan")?;
    let exit = recorder.wait("orphan", "exit")?;
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    subject.remove("orphan")
}

pub(crate) fn is_vmm(member: &Member) -> bool {
    let name = if cfg!(target_os = "linux") { "qemu-system" } else { "bhyve" };
    member.program().starts_with(name)
}

/// The VMM, of which there is one.
pub(crate) fn vmm(lease: &Lease) -> Result<Pid> {
    member(lease, "the VMM", is_vmm)
}

fn vmm_killed(lease: &mut Lease) -> Result<()> {
    let recorder = Recorder::start(&lease.containerd)?;
    let subject = lease.subject();
    subject.run("crashed").flags(["--null-io"]).sh(FOREVER).detached()?;
    kill(vmm(lease)?, Signal::SIGKILL).context("killing the VMM")?;
    let exit = recorder.wait("crashed", "exit")?;
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    subject.wait_status("crashed", "STOPPED")?;
    let exec = subject.exec("crashed", "late").args(["true"]).output()?;
    ensure!(exec.code() != 0, "{}", exec.describe());
    ensure!(subject.delete_task("crashed")? == 137);
    subject.remove("crashed")
}

/// Who kills what is in a guest that does not answer any more ends its VM: the exit is told, and all of it can be
/// removed. Until then nobody knows whether it goes on.
fn vmm_stopped(lease: &mut Lease) -> Result<()> {
    lease.configure(|configuration| configuration.call = Some(10))?;
    let recorder = Recorder::start(&lease.containerd)?;
    let subject = lease.subject();
    subject.run("stuck").flags(["--null-io"]).sh(FOREVER).detached()?;
    kill(vmm(lease)?, Signal::SIGSTOP).context("stopping the VMM")?;
    let exec = subject.exec("stuck", "e1").args(["true"]).output()?;
    ensure!(exec.code() != 0 && exec.err().contains("deadline exceeded"), "{}", exec.describe());
    ensure!(subject.task("stuck")?.is_some_and(|task| task.status == "RUNNING"));
    subject.kill("stuck", "SIGKILL")?.succeeded()?;
    let exit = recorder.wait("stuck", "exit")?;
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    subject.wait_status("stuck", "STOPPED")?;
    ensure!(subject.delete_task("stuck")? == 137);
    subject.remove("stuck")
}

/// Nothing of the container runs in it.
fn stand_in_stopped(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("goes-on").flags(["--null-io"]).sh(FOREVER).detached()?;
    let pid = subject.task("goes-on")?.context("no task")?.pid;
    let pid = Pid::from_raw(i32::try_from(pid)?);
    kill(pid, Signal::SIGSTOP).context("stopping the stand-in")?;
    let output = subject.exec("goes-on", "e1").args(["echo", "alive"]).output()?;
    ensure!(output.text()? == "alive", "{}", output.describe());
    subject.remove("goes-on")
}

fn vmm_killed_while_attached(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let running = subject.run("cut").sh(&format!("echo begun; {FOREVER}")).start()?;
    subject.wait_status("cut", "RUNNING")?;
    let exec = subject.exec("cut", "e1").sh(&format!("echo begun; {FOREVER}")).start()?;
    wait_for("both to say something", LIMIT, || Ok(running.first_output().and(exec.first_output())))?;
    kill(vmm(lease)?, Signal::SIGKILL).context("killing the VMM")?;
    for attached in [running, exec] {
        let output = attached.wait(skep_tests::process::LIMIT)?;
        ensure!(output.code() == 137 && output.out() == "begun\n", "{}", output.describe());
    }
    Ok(())
}

/// The client dies, not the container.
fn ctr_killed(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let running = subject.run("left").keep().sh(FOREVER).start()?;
    subject.wait_status("left", "RUNNING")?;
    drop(running);
    let output = subject.exec("left", "e1").args(["echo", "alive"]).output()?;
    ensure!(output.text()? == "alive", "{}", output.describe());
    subject.remove("left")
}

/// Who asked for the container is gone: nobody waits for the boot to end.
fn ctr_killed_during_boot(lease: &mut Lease) -> Result<()> {
    let guest = silent_guest(lease)?;
    lease.configure(|configuration| {
        configuration.guest = guest;
        configuration.boot = 3600;
    })?;
    let running = lease.subject().run("unwanted").keep().args(["true"]).start()?;
    wait_for("the VM to be started", LIMIT, || Ok(vmm(lease).ok()))?;
    drop(running);
    wait_for("the VM to be ended", LIMIT, || Ok(vmm(lease).is_err().then_some(())))?;
    lease.subject().remove("unwanted")
}

/// Nobody is left who knows of the sandbox but its journal.
fn all_killed(lease: &mut Lease) -> Result<()> {
    lease.subject().run("ruin").flags(["--null-io"]).sh(FOREVER).detached()?;
    let listed = lease.skep(&["list"])?;
    ensure!(
        listed.text()?.lines().any(|line| line.contains("used") && line.ends_with("ruin")),
        "{}",
        listed.describe()
    );
    // What is in use is not touched.
    let collected = lease.skep(&["gc"])?;
    ensure!(collected.text()?.contains("0 removed, 1 in use"), "{}", collected.describe());
    ensure!(lease.subject().exec("ruin", "e1").args(["true"]).output()?.code() == 0);

    lease.containerd.stop(Signal::SIGKILL)?;
    kill(member(lease, "the shim", is_shim_of("ruin"))?, Signal::SIGKILL).context("killing the shim")?;
    let collected = wait_for("the sandbox to be nobody's", LIMIT, || {
        let collected = lease.skep(&["gc"])?;
        Ok((!collected.out().contains("1 in use")).then_some(collected))
    })?;
    ensure!(collected.text()?.contains("1 removed"), "{}", collected.describe());
    ensure!(!census::processes(&lease.containerd.scope())?.iter().any(is_vmm), "the VMM runs on");
    let listed = lease.skep(&["list"])?;
    ensure!(listed.text()?.lines().count() == 1, "{}", listed.describe());

    lease.containerd.resume()?;
    let subject = lease.subject();
    wait_for("the task to be gone or stopped", LIMIT, || {
        Ok(subject.task("ruin")?.is_none_or(|task| task.status != "RUNNING").then_some(()))
    })?;
    subject.remove("ruin")
}

//! Containers of FreeBSD images in FreeBSD guests under bhyve: jails.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use serde_json::json;
use skep_tests::ctr::{Exec, Run, Subject};
use skep_tests::events::Recorder;
use skep_tests::image::Image;
use skep_tests::process::{LIMIT, wait_for};
use skep_tests::suite::{FREEBSD_GUEST_VARIABLE, Lease};
use skep_tests::task_api::Shim;

use crate::Case;
use crate::resources::Figures;

const CASES: &[Case] = &[
    Case::skep("jail_runs", runs).on_freebsd(),
    Case::skep("jail_execs", execs).on_freebsd(),
    Case::skep("jail_pauses", pauses).on_freebsd(),
    Case::skep("jail_limits", limits).on_freebsd(),
    Case::skep("jail_metrics", metrics).on_freebsd(),
    Case::skep("jail_volumes", volumes).on_freebsd(),
];

const IMAGE: &str = "skep.test/freebsd:latest";
const PLATFORM: &[&str] = &["--platform", "freebsd/amd64", "--snapshotter", "native"];
const PROGRAMS: &[&str] = &[
    "/bin/sh",
    "/bin/cat",
    "/bin/dd",
    "/bin/echo",
    "/bin/hostname",
    "/bin/kill",
    "/bin/ls",
    "/bin/sleep",
    "/bin/stty",
    "/usr/bin/id",
    "/usr/bin/touch",
    "/usr/bin/true",
    "/usr/bin/tty",
    "/usr/bin/uname",
    "/usr/bin/wc",
];
const PATIENT: &str = "trap 'exit 7' TERM; touch /tmp/ready; while :; do sleep 0.1; done";
const UNTIL_READY: &str = "until test -e /tmp/ready; do sleep 0.1; done";

/// There is no such guest without a kernel that has to be built with FreeBSD's own sources.
pub(crate) fn cases() -> &'static [Case] {
    if std::env::var_os(FREEBSD_GUEST_VARIABLE).is_some() { CASES } else { &[] }
}

/// A container of such an image; the guest is given the time that it takes under emulation.
fn run<'a>(lease: &'a Lease, id: &str) -> Result<Run<'a>> {
    lease.configure(|configuration| (configuration.call, configuration.stop) = (Some(120), Some(60)))?;
    if !lease.subject().ctr(["image", "ls", "--quiet"])?.text()?.contains(IMAGE) {
        let archive = lease.containerd.directory().join("freebsd.tar");
        Image::of_this_freebsd(IMAGE, PROGRAMS)?.write(&archive)?;
        lease.containerd.import_for(&["--platform", "freebsd/amd64"], &archive)?;
    }
    Ok(lease.subject().run(id).image(IMAGE).platform(PLATFORM))
}

fn start(lease: &Lease, id: &str, flags: &[&str]) -> Result<()> {
    run(lease, id)?.flags(["--null-io"]).flags(flags.iter().copied()).sh(PATIENT).detached()?;
    exec(lease.subject(), id, "ready").sh(UNTIL_READY).output()?.succeeded().map(drop)
}

fn exec<'a>(subject: Subject<'a>, id: &str, name: &str) -> Exec<'a> {
    subject.exec(id, name)
}

/// What a user sees of it: system, streams, status, user, terminal.
fn runs(lease: &mut Lease) -> Result<()> {
    let script = "uname -s; id -u; cat; echo to-stderr >&2; exit 42";
    let output = run(lease, "jail")?.sh(script).stdin("some\nlines\n").output()?;
    ensure!(
        output.code() == 42 && output.out() == "FreeBSD\n0\nsome\nlines\n" && output.err() == "to-stderr\n",
        "{}",
        output.describe()
    );
    let output =
        run(lease, "screen")?.terminal().sh("test -t 0 && test -t 1 && stty size; exit 3").output()?;
    ensure!(output.code() == 3 && output.out().contains("24 80"), "{}", output.describe());
    let output = run(lease, "user")?.flags(["--user", "1000:1000"]).sh("id -u; id -g; ls /dev").output()?;
    let text = output.text()?;
    ensure!(text.starts_with("1000\n1000\n"), "{}", output.describe());
    for hidden in ["vtcon", "mem", "ttyu0", "pci"] {
        ensure!(!text.lines().any(|line| line == hidden), "/dev/{hidden} shows: {text}");
    }
    let output = run(lease, "large")?.sh("dd if=/dev/zero bs=65536 count=160 2>/dev/null").output()?;
    ensure!(
        output.stdout.len() == 160 << 16 && output.stdout.iter().all(|byte| *byte == 0),
        "{}",
        output.stdout.len()
    );
    let output = run(lease, "absent")?.args(["/no/such/program"]).output()?;
    ensure!(output.code() != 0 && output.err().contains("/no/such/program"), "{}", output.describe());
    Ok(())
}

/// Processes that are added, one after another and at once, with and without a terminal, and signals.
fn execs(lease: &mut Lease) -> Result<()> {
    start(lease, "host", &[])?;
    let subject = lease.subject();
    for number in 0..3 {
        let script = format!("id -u; wc -c; echo err >&2; exit {number}");
        let output = exec(subject, "host", &format!("e{number}")).sh(&script).stdin("12345").output();
        // Said first, since ctr ends the input when something was said.
        let output = output?;
        ensure!(
            output.code() == number
                && output.out().split_whitespace().eq(["0", "5"])
                && output.err() == "err\n",
            "{}",
            output.describe()
        );
    }
    let output = exec(subject, "host", "screen").terminal().sh("tty; stty size; exit 6").output()?;
    ensure!(output.code() == 6 && output.out().contains("24 80"), "{}", output.describe());
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..3)
            .map(|user| {
                scope.spawn(move || -> Result<()> {
                    for number in 0..3 {
                        let script = format!("echo {user}-{number}; sleep 0.2; exit {number}");
                        let output =
                            exec(subject, "host", &format!("u{user}-{number}")).sh(&script).output()?;
                        let expected = (number, format!("{user}-{number}\n"));
                        ensure!((output.code(), output.out()) == expected, "{}", output.describe());
                    }
                    Ok(())
                })
            })
            .collect();
        users.into_iter().try_for_each(|user| user.join().map_err(|_| anyhow::anyhow!("a user panicked"))?)
    })?;
    let table = subject.ctr(["task", "ps", "host"])?.text()?;
    ensure!(table.lines().count() > 1, "{table}");
    subject.kill("host", "SIGTERM")?.succeeded()?;
    subject.wait_status("host", "STOPPED")?;
    ensure!(subject.delete_task("host")? == 7);
    subject.remove("host")
}

/// What is paused does nothing, and goes on afterwards.
fn pauses(lease: &mut Lease) -> Result<()> {
    let script = "trap 'exit 7' TERM; while :; do echo >>/tmp/ticks; touch /tmp/ready; sleep 0.1; done";
    run(lease, "still")?.flags(["--null-io"]).sh(script).detached()?;
    let subject = lease.subject();
    exec(subject, "still", "ready").sh(UNTIL_READY).output()?.succeeded()?;
    let ticks = lease.containerd.directory().join("root/io.containerd.snapshotter.v1.native/snapshots");
    let count = || -> Result<u64> {
        for snapshot in std::fs::read_dir(&ticks)? {
            if let Ok(metadata) = snapshot?.path().join("tmp/ticks").metadata() {
                return Ok(metadata.len());
            }
        }
        anyhow::bail!("no snapshot has tmp/ticks")
    };
    subject.ctr(["task", "pause", "still"])?.succeeded()?;
    subject.wait_status("still", "PAUSED")?;
    let before = count()?;
    std::thread::sleep(Duration::from_secs(5));
    ensure!(count()? == before, "it ticks while it is paused");
    let refused = exec(subject, "still", "late").args(["true"]).output()?;
    ensure!(refused.code() != 0 && refused.err().contains("paused"), "{}", refused.describe());
    subject.ctr(["task", "resume", "still"])?.succeeded()?;
    wait_for("it to tick again", LIMIT, || Ok((count()? > before).then_some(())))?;
    subject.kill("still", "SIGTERM")?.succeeded()?;
    subject.wait_status("still", "STOPPED")?;
    ensure!(subject.delete_task("still")? == 7);
    subject.remove("still")
}

const LIMIT_BYTES: u64 = 96 << 20;

/// Who takes too much memory is killed and nobody else, and there are no more processes than may be.
fn limits(lease: &mut Lease) -> Result<()> {
    let recorder = Recorder::start(&lease.containerd)?;
    // It holds its block as long as nobody takes it. The first process makes no others later: it would not outlive a refusal.
    let script = "trap 'exit 7' TERM; \
        (dd if=/dev/zero bs=150m count=1 2>/dev/null; echo $? >/tmp/code) | sleep 1000 & wait";
    let memory = LIMIT_BYTES.to_string();
    run(lease, "bounded")?.flags(["--null-io", "--memory-limit", &memory]).sh(script).detached()?;
    recorder.wait("bounded", "oom")?;
    let subject = lease.subject();
    let script = "until test -s /tmp/code; do sleep 0.1; done; cat /tmp/code";
    let code = exec(subject, "bounded", "code").sh(script).output()?;
    ensure!(code.text()? == "137", "{}", code.describe());
    let task = subject.task("bounded")?;
    ensure!(task.as_ref().is_some_and(|task| task.status == "RUNNING"), "{task:?}");

    let shim = Shim::of(&lease.containerd, "bounded")?;
    let update = |resources: serde_json::Value| {
        shim.update("bounded", &resources).map_err(|refused| anyhow!("{resources}: {refused:?}"))
    };
    update(json!({"pids": {"limit": 8}}))?;
    let script = "for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all";
    let crowd = exec(subject, "bounded", "crowd").sh(script).output()?;
    ensure!(crowd.out().is_empty() && crowd.err().contains("ork"), "{}", crowd.describe());
    let figures = Figures::of(&subject, "bounded")?;
    ensure!(figures.oom_kills == 1 && figures.memory_limit == LIMIT_BYTES, "{figures:?}");
    ensure!((4..=8).contains(&figures.pids) && figures.pids_limit == 8, "{figures:?}");
    // What is not named stays, and what is lifted is.
    update(json!({"pids": {"limit": -1}, "memory": {"limit": -1}}))?;
    let figures = Figures::of(&subject, "bounded")?;
    ensure!(figures.memory_limit > LIMIT_BYTES && figures.pids_limit != 8, "{figures:?}");
    subject.kill("bounded", "SIGTERM")?.succeeded()?;
    subject.wait_status("bounded", "STOPPED")?;
    ensure!(subject.delete_task("bounded")? == 7);
    subject.remove("bounded")
}

/// Time and memory that are used show, and grow with what is used.
fn metrics(lease: &mut Lease) -> Result<()> {
    start(lease, "counted", &[])?;
    let subject = lease.subject();
    let first = Figures::of(&subject, "counted")?;
    ensure!(first.memory > 0 && first.pids >= 1 && first.oom_kills == 0, "{first:?}");
    let held = "(dd if=/dev/zero bs=40m count=1 2>/dev/null; :) | sleep 1000 & while :; do :; done";
    let busy = exec(subject, "counted", "busy").sh(held).start()?;
    let later = wait_for("time and memory to be counted", LIMIT, || {
        let later = Figures::of(&subject, "counted")?;
        let grown =
            later.memory > first.memory + (40 << 20) && later.cpu >= first.cpu + Duration::from_secs(2);
        Ok((grown && later.pids >= first.pids + 3).then_some(later))
    })?;
    ensure!(later.oom_kills == 0, "{later:?}");
    subject.kill("counted", "SIGKILL")?.succeeded()?;
    subject.wait_status("counted", "STOPPED")?;
    busy.wait(LIMIT)?;
    subject.remove("counted")
}

/// Directories of the host, once read-only and once not.
fn volumes(lease: &mut Lease) -> Result<()> {
    let (given, taken) = (lease.scratch("given")?, lease.scratch("taken")?);
    std::fs::write(given.join("file"), "from the host\n")?;
    let mount = |source: &std::path::Path, target: &str, access: &str| {
        format!("type=bind,src={},dst={target},options=rbind:{access}", source.display())
    };
    let script = "cat /given/file; cat /given/file >/taken/copy; echo changed >/given/file; echo $?";
    let output = run(lease, "volumes")?
        .flags(["--mount", &mount(&given, "/given", "ro"), "--mount", &mount(&taken, "/taken", "rw")])
        .sh(script)
        .output()?;
    ensure!(output.out() == "from the host\n2\n", "{}", output.describe());
    ensure!(output.err().contains("Read-only file system"), "{}", output.describe());
    ensure!(std::fs::read_to_string(taken.join("copy"))? == "from the host\n");
    ensure!(std::fs::read_to_string(given.join("file"))? == "from the host\n");
    Ok(())
}

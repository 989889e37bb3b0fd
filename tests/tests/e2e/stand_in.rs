//! What is done to a container by its process id on this host: signals, its files, its namespaces.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use skep_tests::ctr::Subject;
use skep_tests::process::{LIMIT, run, wait_for};
use skep_tests::suite::Lease;
use skep_tests::task_api::Shim;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::both("signals_by_pid", signals_by_pid),
    Case::both("killed_by_pid", killed_by_pid),
    Case::both("files_by_pid", files_by_pid),
    Case::skep("files_that_are_the_guests", files_that_are_the_guests),
    Case::skep("a_hostile_root_leads_nowhere", a_hostile_root_leads_nowhere),
    Case::skep("files_of_an_overlay", files_of_an_overlay),
];

const FOREVER: &str = "while :; do sleep 0.1; done";

fn pid(subject: &Subject<'_>, id: &str) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(subject.wait_status(id, "RUNNING")?.pid)?))
}

/// The container's root as this host reaches it.
fn root(pid: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root"))
}

/// Waits until a container has made `/begun`.
fn begun(root: &std::path::Path) -> Result<()> {
    wait_for("the container to begin", LIMIT, || Ok(root.join("begun").exists().then_some(())))
}

fn signals_by_pid(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let rootfs = lease.rootfs("root")?;
    let script = format!("trap 'echo usr1 >/got' USR1; trap 'exit 7' TERM; touch /begun; {FOREVER}");
    let spec = subject.spec("signalled", &rootfs, ["/bin/sh", "-c", &script])?;
    subject.run("signalled").spec(&spec)?.flags(["--null-io"]).detached()?;
    let pid = pid(&subject, "signalled")?;
    begun(&rootfs)?;
    kill(pid, Signal::SIGUSR1)?;
    wait_for("the signal", LIMIT, || Ok(rootfs.join("got").exists().then_some(())))?;
    kill(pid, Signal::SIGTERM)?;
    // Who is told of the end finds nothing of that pid any more.
    let status = Shim::of(&lease.containerd, "signalled")?.wait("signalled", "");
    ensure!(kill(pid, None) == Err(Errno::ESRCH), "process {pid} is there after the exit was told");
    ensure!(status == Ok(7), "{status:?}");
    subject.wait_status("signalled", "STOPPED")?;
    ensure!(subject.delete_task("signalled")? == 7);
    subject.remove("signalled")
}

fn killed_by_pid(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject.run("killed").flags(["--null-io"]).sh(FOREVER).detached()?;
    kill(pid(&subject, "killed")?, Signal::SIGKILL)?;
    subject.wait_status("killed", "STOPPED")?;
    ensure!(subject.delete_task("killed")? == 137);
    subject.remove("killed")
}

fn files_by_pid(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let (rootfs, volume) = (lease.rootfs("root")?, lease.scratch("volume")?);
    fs::write(volume.join("given"), "given\n")?;
    let script = format!("cat /vol/given >/copy; touch /begun; {FOREVER}");
    let mut spec = subject.spec("files", &rootfs, ["/bin/sh", "-c", &script])?;
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.push(json!({ "destination": "/vol", "type": "bind", "source": volume, "options": ["rbind"] }));
        mounts.push(
            json!({ "destination": "/ro", "type": "bind", "source": volume, "options": ["rbind", "ro"] }),
        );
    }
    subject.run("files").spec(&spec)?.flags(["--null-io"]).detached()?;
    let root = root(pid(&subject, "files")?);
    begun(&rootfs)?;
    for (path, text) in [("copy", "given\n"), ("vol/given", "given\n"), ("ro/given", "given\n")] {
        let found = fs::read_to_string(root.join(path))?;
        ensure!(found == text, "{path}: {found:?}");
    }
    fs::write(root.join("from-host"), "1")?;
    fs::write(root.join("vol/from-host"), "2")?;
    let refused = fs::write(root.join("ro/from-host"), "3");
    ensure!(refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem));
    let seen = subject.exec("files", "e1").args(["cat", "/from-host", "/vol/from-host"]).output()?;
    ensure!(seen.code() == 0 && seen.out() == "12", "{}", seen.describe());
    subject.remove("files")
}

/// What is mounted in the guest alone is neither read nor written beside it.
fn files_that_are_the_guests(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let rootfs = lease.rootfs("root")?;
    fs::create_dir(rootfs.join("memory"))?;
    fs::write(rootfs.join("memory/below"), "covered in the container")?;
    let script = format!("echo secret >/memory/mine; touch /begun; {FOREVER}");
    let mut spec = subject.spec("covered", &rootfs, ["/bin/sh", "-c", &script])?;
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.push(json!({ "destination": "/memory", "type": "tmpfs", "source": "tmpfs", "options": [] }));
    }
    subject.run("covered").spec(&spec)?.flags(["--null-io"]).detached()?;
    let root = root(pid(&subject, "covered")?);
    begun(&rootfs)?;
    for place in ["memory", "proc", "dev", "sys"] {
        ensure!(fs::read_dir(root.join(place))?.next().is_none(), "{place} is not empty");
        let refused = fs::write(root.join(place).join("x"), "x");
        ensure!(
            refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem),
            "{place}"
        );
    }
    subject.remove("covered")
}

/// The container's files are its own to change: no link, device or program among them does anything to this host.
fn a_hostile_root_leads_nowhere(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let (rootfs, outside) = (lease.rootfs("root")?, lease.scratch("outside")?);
    fs::write(outside.join("secret"), "secret")?;
    symlink(&outside, rootfs.join("link"))?;
    symlink("/bin/busybox", rootfs.join("inner"))?;
    let spec = subject.spec("hostile", &rootfs, ["/bin/sh", "-c", &format!("touch /begun; {FOREVER}")])?;
    subject.run("hostile").spec(&spec)?.flags(["--null-io"]).detached()?;
    let pid = pid(&subject, "hostile")?;
    let root = root(pid);
    begun(&rootfs)?;
    ensure!(root.join("link").read_link()? == outside, "links can be read");
    ensure!(fs::read(root.join("link/secret")).is_err(), "a link leads out");
    ensure!(fs::write(root.join("link/secret"), "changed").is_err(), "a link leads out");
    ensure!(fs::read(root.join("inner")).is_err(), "a link is followed");
    ensure!(fs::read_to_string(outside.join("secret"))? == "secret");
    nix::sys::stat::mknod(
        &rootfs.join("null"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::S_IRWXU,
        nix::sys::stat::makedev(1, 3),
    )?;
    ensure!(fs::read(root.join("null")).is_err(), "a device works");
    // A program of the container's would run with this host's kernel.
    let entered =
        Command::new("nsenter").args(["-t", &pid.to_string(), "-m", "/bin/busybox", "true"]).output()?;
    ensure!(!entered.status.success(), "a program of the container ran on the host");
    // Nothing of the host is there.
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    ensure!(mounts.lines().all(|line| line.contains("nosuid,nodev,noexec")), "{mounts}");
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains("CapEff:\t0000000000000000"), "{status}");
    let mut ps = Command::new("ps");
    ps.args(["-o", "args=", "-p", &pid.to_string()]);
    let shown = run(ps)?;
    ensure!(
        shown.out().starts_with("skep-container hostile (its processes are in a microVM)"),
        "{}",
        shown.out()
    );
    subject.remove("hostile")
}

fn files_of_an_overlay(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let (rootfs, volume) = (lease.rootfs("root")?, lease.scratch("volume")?);
    let script = format!("echo in >/vol/in; touch /vol/begun; {FOREVER}");
    let mut spec = subject.spec("above", &rootfs, ["/bin/sh", "-c", &script])?;
    spec["annotations"] = json!({ "org.skep.rootfs": "overlay" });
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts
            .push(json!({ "destination": "/vol/", "type": "bind", "source": volume, "options": ["rbind"] }));
    }
    subject.run("above").spec(&spec)?.flags(["--null-io"]).detached()?;
    let root = root(pid(&subject, "above")?);
    begun(&volume)?;
    ensure!(!root.join("bin").exists(), "the root is not what the container sees");
    let refused = fs::write(root.join("x"), "x");
    ensure!(refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem));
    // What is shared is there.
    ensure!(fs::read_to_string(root.join("vol/in"))? == "in\n");
    fs::write(root.join("vol/out"), "out")?;
    let seen = subject.exec("above", "e1").args(["cat", "/vol/out"]).output()?;
    ensure!(seen.code() == 0 && seen.out() == "out", "{}", seen.describe());
    subject.remove("above")
}

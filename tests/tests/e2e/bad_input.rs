//! What can't work gets an error that names the thing, in bounded time, and leaves nothing behind.
//!
//! That nothing is left is the suite's census, which every case passes through.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use skep_tests::ctr::{Run, Runtime};
use skep_tests::image::Image;
use skep_tests::init::{self, Ending};
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::both("command_not_in_image", command_not_in_image).on_freebsd().everywhere(),
    Case::both("command_not_executable", command_not_executable).on_freebsd(),
    Case::both("wrong_architecture", wrong_architecture).on_freebsd(),
    Case::both("directory_is_a_file", directory_is_a_file).on_freebsd(),
    Case::both("rootfs_missing", rootfs_missing).on_freebsd(),
    Case::skep("rootfs_is_a_file", rootfs_is_a_file).on_freebsd(),
    Case::both("volume_missing", volume_missing).on_freebsd(),
    Case::skep("guest_missing", guest_missing).on_freebsd(),
    Case::skep("kernel_missing", kernel_missing).on_freebsd(),
    Case::skep("kernel_is_garbage", kernel_is_garbage).on_freebsd(),
    Case::skep("guest_of_another_version", guest_of_another_version).on_freebsd(),
    Case::skep("hypervisor_missing", hypervisor_missing),
    Case::skep("hypervisor_fails", hypervisor_fails),
    Case::skep("agent_silent", agent_silent).on_freebsd().everywhere(),
    Case::skep("agent_dies", agent_dies).on_freebsd(),
    Case::skep("configuration_with_an_unknown_key", configuration_with_an_unknown_key).on_freebsd(),
    Case::skep("annotation_unknown", annotation_unknown).on_freebsd(),
    Case::skep("annotation_wrong", annotation_wrong).on_freebsd(),
    Case::skep("host_network", host_network).on_freebsd(),
    Case::skep("host_processes", host_processes).on_freebsd(),
    Case::skep("host_device", host_device).on_freebsd(),
];

/// Longer than any limit of the configuration that these cases use.
const BOUND: Duration = Duration::from_secs(240);

/// Runs it, which must fail, saying all of `words`.
fn fails(run: Run<'_>, words: &[&str]) -> Result<()> {
    let output = run.output_within(BOUND)?;
    ensure!(output.code() != 0, "this should have failed: {}", output.describe());
    let error = output.err();
    for word in words {
        ensure!(error.contains(word), "the error does not name {word:?}: {}", output.describe());
    }
    Ok(())
}

fn command_not_in_image(lease: &mut Lease) -> Result<()> {
    // The words by which Docker and others tell a command that is missing.
    let words = ["no-such-command", "executable file not found in $PATH"];
    fails(lease.subject().run("absent").args(["no-such-command", "argument"]), &words)?;
    let words = ["/no/such/path", "no such file or directory"];
    fails(lease.subject().run("absent").args(["/no/such/path"]), &words)
}

fn command_not_executable(lease: &mut Lease) -> Result<()> {
    fails(lease.subject().run("plain").args(["/etc/passwd"]), &["/etc/passwd", "ermission denied"])
}

fn wrong_architecture(lease: &mut Lease) -> Result<()> {
    let reference = "skep.test/foreign:latest";
    lease.import(&Image::busybox(reference)?.foreign_program("bin/foreign"))?;
    let words: &[&str] = match lease.runtime {
        Runtime::Runc => &["exec format error"],
        Runtime::Skep => &["exec format error", "/bin/foreign", "aarch64", "x86_64"],
    };
    fails(lease.subject().run("foreign").image(reference).args(["/bin/foreign"]), words)
}

fn directory_is_a_file(lease: &mut Lease) -> Result<()> {
    let run = lease.subject().run("directory").flags(["--cwd", "/etc/passwd"]).args(["true"]);
    fails(run, &["/etc/passwd"])
}

fn rootfs_missing(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let missing = Path::new("/no/such/rootfs");
    let spec = subject.spec("rootless", missing, ["true"])?;
    fails(subject.run("rootless").spec(&spec)?, &["/no/such/rootfs"])
}

fn rootfs_is_a_file(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let file = lease.scratch("root")?.join("file");
    fs::write(&file, "not a directory")?;
    let spec = subject.spec("rootless", &file, ["true"])?;
    fails(subject.run("rootless").spec(&spec)?, &[&file.to_string_lossy()])
}

fn volume_missing(lease: &mut Lease) -> Result<()> {
    let mount = "type=bind,src=/no/such/volume,dst=/volume,options=rbind:rw";
    fails(lease.subject().run("volume").flags(["--mount", mount]).args(["true"]), &["/no/such/volume"])
}

/// A copy of this build's guest that may be damaged.
fn copied_guest(lease: &Lease) -> Result<PathBuf> {
    let copy = lease.scratch("guest")?;
    let guest = &lease.build()?.guest;
    for entry in fs::read_dir(guest).with_context(|| format!("listing {}", guest.display()))? {
        let path = entry?.path();
        let name = path.file_name().context("an entry has a name")?;
        fs::copy(&path, copy.join(name)).with_context(|| format!("copying {}", path.display()))?;
    }
    Ok(copy)
}

fn change_manifest(guest: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let path = guest.join("manifest.json");
    let mut manifest = serde_json::from_slice(&fs::read(&path)?)?;
    change(&mut manifest);
    fs::write(path, serde_json::to_vec(&manifest)?)?;
    Ok(())
}

/// Puts another file in a guest, so that its manifest fits.
fn replace(guest: &Path, part: &str, content: &[u8]) -> Result<()> {
    let mut name = String::new();
    change_manifest(guest, |manifest| {
        let file = &mut manifest["files"][part];
        file["name"].as_str().unwrap_or_default().clone_into(&mut name);
        file["size"] = json!(content.len());
        file["sha256"] = json!(hex::encode(Sha256::digest(content)));
    })?;
    ensure!(!name.is_empty(), "the manifest names no {part}");
    fs::write(guest.join(name), content)?;
    Ok(())
}

/// The usual container with a guest from elsewhere.
fn fails_with_guest(lease: &Lease, guest: &Path, boot: u32, words: &[&str]) -> Result<()> {
    lease.configure(|configuration| {
        guest.clone_into(&mut configuration.guest);
        configuration.boot = boot;
    })?;
    fails(lease.subject().run("guest").args(["true"]), words)
}

fn guest_missing(lease: &mut Lease) -> Result<()> {
    fails_with_guest(lease, Path::new("/no/such/guest"), 60, &["/no/such/guest"])
}

fn kernel_missing(lease: &mut Lease) -> Result<()> {
    let guest = copied_guest(lease)?;
    let manifest: Value = serde_json::from_slice(&fs::read(guest.join("manifest.json"))?)?;
    let kernel =
        guest.join(manifest["files"]["kernel"]["name"].as_str().context("the manifest names a kernel")?);
    fs::remove_file(&kernel)?;
    fails_with_guest(lease, &guest, 60, &[&kernel.to_string_lossy()])
}

fn kernel_is_garbage(lease: &mut Lease) -> Result<()> {
    let guest = copied_guest(lease)?;
    replace(&guest, "kernel", &vec![0x5a; 100_000])?;
    fails_with_guest(lease, &guest, 10, &["kernel"])
}

fn guest_of_another_version(lease: &mut Lease) -> Result<()> {
    let guest = copied_guest(lease)?;
    let mut own = Value::Null;
    change_manifest(&guest, |manifest| {
        own = std::mem::replace(&mut manifest["agent_protocol"], json!(4711));
    })?;
    let own = format!(" {own}");
    fails_with_guest(lease, &guest, 60, &["4711", &own])?;
    let guest = copied_guest(lease)?;
    change_manifest(&guest, |manifest| manifest["arch"] = json!("riscv64"))?;
    fails_with_guest(lease, &guest, 60, &["riscv64"])
}

fn hypervisor_missing(lease: &mut Lease) -> Result<()> {
    lease.configure(|configuration| "/no/such/qemu".clone_into(&mut configuration.qemu))?;
    fails(lease.subject().run("unborn").args(["true"]), &["/no/such/qemu"])
}

fn hypervisor_fails(lease: &mut Lease) -> Result<()> {
    let script = lease.scratch("qemu")?.join("qemu");
    fs::write(&script, "#!/bin/sh\necho the machine is on fire >&2\nexit 3\n")?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    lease.configure(|configuration| configuration.qemu = script.to_string_lossy().into_owned())?;
    fails(lease.subject().run("unborn").args(["true"]), &["the machine is on fire"])
}

/// A guest that boots and then says nothing.
pub(crate) fn silent_guest(lease: &Lease) -> Result<PathBuf> {
    let guest = copied_guest(lease)?;
    replace(&guest, "initramfs", &init::initramfs("nothing to say", Ending::Hang)?)?;
    Ok(guest)
}

fn agent_silent(lease: &mut Lease) -> Result<()> {
    let guest = silent_guest(lease)?;
    fails_with_guest(lease, &guest, 5, &["agent", "5"])
}

fn agent_dies(lease: &mut Lease) -> Result<()> {
    let guest = copied_guest(lease)?;
    replace(&guest, "initramfs", &init::initramfs("famous last words", Ending::Exit)?)?;
    fails_with_guest(lease, &guest, 60, &["Attempted to kill init"])
}

fn configuration_with_an_unknown_key(lease: &mut Lease) -> Result<()> {
    lease.configure(|configuration| "[log]\nlevle = \"info\"\n".clone_into(&mut configuration.more))?;
    let file = lease.containerd.skep_config();
    fails(lease.subject().run("misled").args(["true"]), &["levle", &file.to_string_lossy()])
}

fn annotation_unknown(lease: &mut Lease) -> Result<()> {
    let run = lease.subject().run("misled").flags(["--annotation", "org.skep.colour=red"]);
    fails(run.args(["true"]), &["org.skep.colour"])
}

fn annotation_wrong(lease: &mut Lease) -> Result<()> {
    let run = lease.subject().run("misled").flags(["--annotation", "org.skep.rootfs=floppy"]);
    fails(run.args(["true"]), &["org.skep.rootfs", "floppy"])
}

fn host_network(lease: &mut Lease) -> Result<()> {
    fails(lease.subject().run("exposed").flags(["--net-host"]).args(["true"]), &["network"])
}

fn host_processes(lease: &mut Lease) -> Result<()> {
    let rootfs = lease.rootfs("exposed")?;
    let subject = lease.subject();
    let mut spec = subject.spec("exposed", &rootfs, ["true"])?;
    let namespaces = spec["linux"]["namespaces"].as_array_mut().context("a spec has namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "pid");
    namespaces.push(json!({ "type": "pid", "path": "/proc/1/ns/pid" }));
    fails(subject.run("exposed").spec(&spec)?, &["pid"])
}

fn host_device(lease: &mut Lease) -> Result<()> {
    // A device that a host has and a guest can't be given.
    let rootfs = lease.rootfs("exposed")?;
    let subject = lease.subject();
    let mut spec = subject.spec("exposed", &rootfs, ["true"])?;
    spec["linux"]["devices"] = json!([{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }]);
    fails(subject.run("exposed").spec(&spec)?, &["/dev/kvm"])
}

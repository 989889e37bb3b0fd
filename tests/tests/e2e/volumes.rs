//! Volumes: what the host changes while a container runs, and what can't be one.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_tests::ctr::Subject;
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::both("volumes_follow_the_host", volumes_follow_the_host).on_freebsd(),
    Case::both("tmpfs_has_its_size", tmpfs_has_its_size).on_freebsd(),
    Case::skep("sockets_are_refused", sockets_are_refused).on_freebsd(),
];

fn with_mounts(
    subject: &Subject<'_>,
    id: &str,
    rootfs: &Path,
    script: &str,
    mounts: &[Value],
) -> Result<Value> {
    let mut spec = subject.spec(id, rootfs, ["/bin/sh", "-c", script])?;
    spec["mounts"].as_array_mut().context("mounts")?.extend(mounts.iter().cloned());
    Ok(spec)
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({ "type": "bind", "source": source, "destination": destination, "options": options })
}

/// Publishes `version` as the kubelet does: a new directory, and one link to it that is replaced.
fn publish(volume: &Path, version: &str) -> Result<()> {
    fs::create_dir(volume.join(version))?;
    fs::write(volume.join(version).join("key"), format!("{version}\n"))?;
    symlink(version, volume.join("..new"))?;
    fs::rename(volume.join("..new"), volume.join("..data"))?;
    Ok(())
}

fn volumes_follow_the_host(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let (config, files) = (lease.scratch("config")?, lease.scratch("files")?);
    publish(&config, "..1")?;
    symlink("..data/key", config.join("key"))?;
    for name in ["written", "replaced"] {
        fs::write(files.join(name), "before\n")?;
    }
    fs::create_dir_all(files.join("sub/path"))?;
    fs::write(files.join("sub/path/file"), "of a part\n")?;
    let mounts = [
        bind(&config, "/config", &["rbind", "ro"]),
        bind(&files.join("written"), "/written", &["rbind", "ro"]),
        bind(&files.join("replaced"), "/replaced", &["rbind", "ro"]),
        bind(&files.join("sub/path"), "/part", &["rbind", "ro"]),
    ];
    let spec = with_mounts(&subject, "follows", &lease.rootfs("root")?, "sleep 1000", &mounts)?;
    subject.run("follows").spec(&spec)?.flags(["--null-io"]).detached()?;
    let seen = |exec: &str| {
        subject.exec("follows", exec).sh("cat /config/key /written /replaced /part/file").output()?.text()
    };
    let text = seen("one")?;
    ensure!(text == "..1\nbefore\nbefore\nof a part", "{text}");
    publish(&config, "..2")?;
    // Shorter, and read to the size that it had.
    fs::write(files.join("written"), "now\n")?;
    // A file that is bound alone is that file, whatever has its name later.
    fs::write(files.join("new"), "another\n")?;
    fs::rename(files.join("new"), files.join("replaced"))?;
    let text = seen("two")?;
    ensure!(text == "..2\nnow\nbefore\nof a part", "{text}");
    let refused = subject.exec("follows", "three").sh("echo x >/config/new; echo x >/written").output()?;
    ensure!(refused.err().matches("Read-only file system").count() == 2, "{}", refused.describe());
    subject.remove("follows")
}

fn tmpfs_has_its_size(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let mount = json!({ "type": "tmpfs", "source": "tmpfs", "destination": "/scratch",
        "options": ["size=1m", "mode=1700", "nosuid", "noexec"] });
    let script = "stat -c %a /scratch; df -k /scratch | awk 'END {print $2}'; \
        dd if=/dev/zero of=/scratch/full bs=64k count=32 2>/dev/null || echo full; \
        cp /bin/busybox /dev/shm/b && /dev/shm/b true || echo noexec";
    let mut spec = with_mounts(&subject, "sized", &lease.rootfs("root")?, script, &[mount])?;
    for mount in spec["mounts"].as_array_mut().context("mounts")? {
        if mount["destination"] == "/dev/shm" {
            mount["options"] = json!(["nosuid", "noexec", "nodev", "mode=1777", "size=8m"]);
        }
    }
    let output = subject.run("sized").spec(&spec)?.output()?;
    ensure!(output.text()? == "1700\n1024\nfull\nnoexec", "{}", output.describe());
    Ok(())
}

fn sockets_are_refused(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let directory = lease.scratch("sockets")?;
    let socket = directory.join("s");
    let _listener = UnixListener::bind(&socket)?;
    let mounts = [bind(&socket, "/run/s", &["rbind", "rw"])];
    let spec = with_mounts(&subject, "socket", &lease.rootfs("root")?, "true", &mounts)?;
    let output = subject.run("socket").spec(&spec)?.output()?;
    let error = output.err();
    ensure!(output.code() != 0, "{}", output.describe());
    ensure!(error.contains("a socket of the host") && error.contains("/run/s"), "{}", output.describe());
    Ok(())
}

//! What Linux tells of processes, mounts, cgroups and sockets: /proc and /sys.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use procfs::ProcError;
use procfs::net::UnixState;
use procfs::process::FDTarget;

use super::{MARK, Member, Process, Scope};

pub(super) fn processes(directory: &Path) -> Result<Vec<Process>> {
    let directory = directory.as_os_str();
    let mut found = Vec::new();
    for process in procfs::process::all_processes().context("listing processes")? {
        // A process that ends while it is looked at is not there.
        let Ok(process) = process else { continue };
        let Ok(stat) = process.stat() else { continue };
        // Empty for a zombie, which is what its state tells.
        let Ok(arguments) = process.cmdline() else { continue };
        let marked = process.environ().is_ok_and(|environment| {
            environment.get(OsStr::new(MARK)).is_some_and(|value| value == directory)
        });
        let named = arguments.iter().any(|word| contains(word.as_bytes(), directory.as_bytes()));
        let description = if arguments.is_empty() {
            format!("{} (state {})", stat.comm, stat.state)
        } else {
            arguments.join(" ")
        };
        let member = Member { pid: process.pid, arguments, description };
        found.push(Process { member, parent: stat.ppid, marked: marked || named });
    }
    Ok(found)
}

/// All mount points, in the order in which they were mounted.
pub(super) fn mounts() -> Result<Vec<PathBuf>> {
    let own = procfs::process::Process::myself().context("opening /proc/self")?;
    let all = own.mountinfo().context("reading /proc/self/mountinfo")?;
    Ok(all.into_iter().map(|mount| mount.mount_point).collect())
}

/// The cgroups of the containers, containerd's own descriptors, its network's links, and the sockets listened on there.
pub(super) fn others(scope: &Scope) -> Result<Vec<(&'static str, String)>> {
    let mut found = Vec::new();
    for cgroup in cgroups(&scope.namespace)? {
        found.push(("cgroup", cgroup.display().to_string()));
    }
    let daemon = daemon(scope.daemon)?;
    for fd in daemon.fd()? {
        let Ok(fd) = fd else { continue };
        match fd.target {
            // Its databases and snapshots, opened and read when it pleases: no trace of a container.
            FDTarget::Path(path) if path.starts_with(&scope.own) => {}
            FDTarget::Path(path) => found.push(("containerd's fd", path.display().to_string())),
            FDTarget::Pipe(_) => found.push(("containerd's fd", "pipe".to_owned())),
            FDTarget::AnonInode(kind) => found.push(("containerd's fd", kind)),
            // Connections come and go with the clients; the listening ones are counted below.
            _ => {}
        }
    }
    found.extend(daemon.dev_status()?.into_keys().map(|link| ("link", link)));
    for socket in daemon.unix()? {
        // The accepted ends have the same path, but are connected.
        if let (UnixState::UNCONNECTED, Some(path)) = (socket.state, socket.path) {
            found.push(("listener", path.display().to_string()));
        }
    }
    Ok(found)
}

/// The cgroups below those named `namespace`, in every hierarchy.
pub fn cgroups(namespace: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    // cgroup v1 has a directory for each controller.
    if let Ok(entries) = fs::read_dir("/sys/fs/cgroup") {
        roots.extend(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()));
    }
    let mut queue: Vec<PathBuf> = roots.into_iter().map(|root| root.join(namespace)).collect();
    while let Some(directory) = queue.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries {
            let entry = entry?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                queue.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn daemon(pid: u32) -> Result<procfs::process::Process> {
    match procfs::process::Process::new(i32::try_from(pid)?) {
        Err(ProcError::NotFound(_)) => bail!("containerd (process {pid}) is gone"),
        other => other.with_context(|| format!("opening process {pid}")),
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

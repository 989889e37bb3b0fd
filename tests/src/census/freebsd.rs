//! What FreeBSD tells of processes, mounts, VMs, interfaces and sockets: the base system's own programs.
//!
//! The harness has the whole machine for itself, so VMs, interfaces and loaded rules are counted machine-wide.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{MARK, Member, Process, Scope};
use crate::process::run;

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(run(command)?.succeeded()?.out())
}

pub(super) fn processes(directory: &Path) -> Result<Vec<Process>> {
    let directory = directory.display().to_string();
    // A header's text may have commas in it, so each keyword is an option. -e puts the environment before the command:
    // ps(1). It is empty for what is not ours to see, and we are root.
    let environments = said("ps", &["-axwwe", "-o", "pid=", "-o", "command="])?;
    let mark = format!("{MARK}={directory}");
    let mut marked: Vec<i32> = Vec::new();
    for line in environments.lines() {
        let line = line.trim_start();
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        if rest.split(' ').any(|word| word == mark) {
            marked.extend(pid.parse::<i32>().ok());
        }
    }
    let mut found = Vec::new();
    for line in said("ps", &["-axww", "-o", "pid=", "-o", "ppid=", "-o", "state=", "-o", "args="])?.lines() {
        let mut words = line.split_whitespace();
        let (Some(pid), Some(parent), Some(state)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let (pid, parent) = (pid.parse().context("ps's pid")?, parent.parse().context("ps's ppid")?);
        let arguments: Vec<String> = words.map(str::to_owned).collect();
        let named = arguments.iter().any(|word| word.contains(&directory));
        let description = if state.starts_with('Z') {
            format!("zombie {}", arguments.join(" "))
        } else {
            arguments.join(" ")
        };
        let member = Member { pid, arguments, description };
        found.push(Process { member, parent, marked: named || marked.contains(&pid) });
    }
    Ok(found)
}

/// All mount points, in the order in which they were mounted.
pub(super) fn mounts() -> Result<Vec<PathBuf>> {
    // Device, point, type, options and two numbers, as in fstab(5).
    let table = said("mount", &["-p"])?;
    Ok(table.lines().filter_map(|line| line.split_whitespace().nth(1)).map(PathBuf::from).collect())
}

/// VM devices, interfaces, bridge members, containerd's own descriptors, and the sockets listened on.
pub(super) fn others(scope: &Scope) -> Result<Vec<(&'static str, String)>> {
    let mut found = Vec::new();
    for (kind, directory) in [("vm", "/dev/vmm"), ("vm memory", "/dev/vmm.io")] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries {
            found.push((kind, entry?.file_name().to_string_lossy().into_owned()));
        }
    }
    for interface in said("ifconfig", &["-l"])?.split_whitespace() {
        found.push(("interface", interface.to_owned()));
        if interface.starts_with("bridge") {
            let shown = said("ifconfig", &[interface])?;
            let members = shown.lines().filter_map(|line| line.trim().strip_prefix("member: "));
            found.extend(members.map(|member| ("bridge member", format!("{interface} {member}"))));
        }
    }
    for jail in said("jls", &["name"])?.lines() {
        found.push(("jail", jail.to_owned()));
    }
    let daemon = scope.daemon.to_string();
    let descriptors = said("procstat", &["-h", "files", &daemon])?;
    ensure!(!descriptors.trim().is_empty(), "containerd (process {daemon}) is gone");
    for line in descriptors.lines() {
        // PID COMM FD T V FLAGS REF OFFSET PRO NAME: procstat(1). Sockets come and go with the clients.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, fd, kind, ..] = words.as_slice() else { continue };
        if fd.parse::<u32>().is_err() {
            continue;
        }
        match (*kind, words.last()) {
            ("s", _) => {}
            ("v", Some(name)) if Path::new(name).starts_with(&scope.own) => {}
            // Without their names: the kernel forgets those of files that it has not looked up for a while.
            (kind, _) => found.push(("containerd's fd", format!("type {kind}"))),
        }
    }
    for line in said("sockstat", &["-q", "-l", "-u"])?.lines() {
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        if Path::new(path).starts_with(&scope.directory) {
            found.push(("listener", path.to_owned()));
        }
    }
    Ok(found)
}

//! The cgroup of this host that a specification names: runc's containers are in it, and Skep's VMs. These cases run
//! whatever version of cgroups the host has.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use skep_tests::ctr::Runtime;
use skep_tests::events::Recorder;
use skep_tests::process::{LIMIT, wait_for};
use skep_tests::suite::Lease;

use crate::Case;
use crate::failures::{lose_shim, vmm};

pub(crate) const CASES: &[Case] = &[
    Case::both("host_cgroup", counted_where_it_is_named),
    Case::skep("host_cgroup_shim_killed", shim_killed),
    Case::skep("host_cgroup_too_small", too_small),
];

/// The directories of a cgroup that exist, one for each hierarchy.
pub(crate) fn places(below: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut places = vec![root.join(below)];
    if let Ok(entries) = fs::read_dir(root) {
        places.extend(entries.filter_map(|entry| Some(entry.ok()?.path().join(below))));
    }
    places.retain(|place| place.join("cgroup.procs").exists());
    places
}

fn processes(place: &Path) -> Result<Vec<String>> {
    let list = place.join("cgroup.procs");
    let text = fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn counted_where_it_is_named(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let below = format!("{}/deep/counted", lease.containerd.namespace());
    let mut spec = subject.spec("counted", &lease.rootfs("root")?, ["/bin/sleep", "1000"])?;
    spec["linux"]["cgroupsPath"] = json!(format!("/{below}"));
    subject.run("counted").flags(["--null-io"]).spec(&spec)?.detached()?;
    let expected = match lease.runtime {
        Runtime::Skep => vmm(lease)?.to_string(),
        Runtime::Runc => subject.task("counted")?.context("no task")?.pid.to_string(),
    };
    let found = places(&below);
    ensure!(!found.is_empty(), "there is no cgroup {below}");
    for place in &found {
        ensure!(processes(place)? == [expected.clone()], "{}: {:?}", place.display(), processes(place)?);
    }
    subject.remove("counted")?;
    ensure!(places(&below).is_empty(), "{:?} stay", places(&below));
    remove(&format!("{}/deep", lease.containerd.namespace()))
}

/// Parents stay, as with runc, and these are ours.
fn remove(below: &str) -> Result<()> {
    for place in places(below) {
        fs::remove_dir(&place).with_context(|| format!("removing {}", place.display()))?;
    }
    Ok(())
}

/// What `delete` finds in the journal.
fn shim_killed(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let below = format!("{}/orphan", lease.containerd.namespace());
    let mut spec = subject.spec("orphan", &lease.rootfs("root")?, ["/bin/sleep", "1000"])?;
    spec["linux"]["cgroupsPath"] = json!(format!("/{below}"));
    subject.run("orphan").flags(["--null-io"]).spec(&spec)?.detached()?;
    ensure!(!places(&below).is_empty(), "there is no cgroup {below}");
    lose_shim(lease, "orphan")?;
    subject.remove("orphan")?;
    // What containerd has begun when the shim was gone may go on longer than the removal.
    wait_for("the cgroup to go", LIMIT, || Ok(places(&below).is_empty().then_some(())))
}

/// A cgroup whose memory is limited.
fn limited(below: &str, bytes: u64) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let (place, file) = if root.join("cgroup.procs").exists() {
        let mut parent = root.to_owned();
        for part in Path::new(below) {
            fs::write(parent.join("cgroup.subtree_control"), "+memory")?;
            parent.push(part);
            fs::create_dir_all(&parent)?;
        }
        (parent, "memory.max")
    } else {
        let place = root.join("memory").join(below);
        fs::create_dir_all(&place)?;
        (place, "memory.limit_in_bytes")
    };
    fs::write(place.join(file), bytes.to_string()).with_context(|| format!("limiting {}", place.display()))
}

/// A pod's limit that leaves no room for its VM, as where a `RuntimeClass` has no overhead: when the VM comes to use its
/// memory the host's kernel ends it, and everybody is told that this was why.
fn too_small(lease: &mut Lease) -> Result<()> {
    let recorder = Recorder::start(&lease.containerd)?;
    let subject = lease.subject();
    let parent = format!("{}/tight", lease.containerd.namespace());
    limited(&parent, 160 << 20)?;
    let greedy = "dd if=/dev/zero of=/dev/null bs=300M count=1; sleep 1000";
    let mut spec = subject.spec("greedy", &lease.rootfs("root")?, ["/bin/sh", "-c", greedy])?;
    spec["linux"]["cgroupsPath"] = json!(format!("/{parent}/greedy"));
    spec["annotations"]["org.skep.memory-mib"] = json!("512");
    subject.run("greedy").flags(["--null-io"]).spec(&spec)?.detached()?;
    let exit = recorder.wait("greedy", "exit")?;
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    let summaries = recorder.summaries("greedy");
    ensure!(summaries == ["create", "start", "oom", "exit"], "{summaries:?}");
    wait_for("the log to say why", LIMIT, || {
        let log = lease.containerd.log_tail();
        let words = ["want of memory", &format!("/{parent}/greedy is 160 MiB"), "VM of 512 MiB", "podFixed"];
        Ok(words.iter().all(|word| log.contains(word)).then_some(()))
    })?;
    subject.remove("greedy")?;
    remove(&parent)
}

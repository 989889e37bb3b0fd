//! The cgroup in which a client wants a shim: option `ShimCgroup` of runc's options. `ctr` and nerdctl don't set it, so
//! these cases start the shim as containerd does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use skep_containerd_api::{runc, task::CreateTaskRequest};
use skep_tests::census::{self, MARK};
use skep_tests::process::{Input, LIMIT, Output, Running};
use skep_tests::suite::{Lease, SHIM};
use skep_tests::task_api::Shim;

use crate::Case;
use crate::failures::{is_shim_of, is_vmm};

pub(crate) const CASES: &[Case] = &[Case::skep("shim_cgroup", shim_cgroup)];

const ID: &str = "boxed";

/// The shim with one action, as containerd calls it.
fn shim(lease: &Lease, bundle: &Path, action: &str, input: Vec<u8>) -> Result<Output> {
    let containerd = &lease.containerd;
    let socket = containerd.directory().join("c.sock");
    let mut command = Command::new(lease.build()?.bin.join(SHIM));
    command.args(["-namespace", containerd.namespace(), "-id", ID, "-address"]).arg(&socket).arg(action);
    command.current_dir(bundle).env("SKEP_CONFIG", containerd.skep_config());
    command.env(MARK, containerd.directory()).env("TTRPC_ADDRESS", socket.with_extension("sock.ttrpc"));
    Running::spawn(command, Input::Piped(input))?.wait(LIMIT)
}

/// What containerd writes to the standard input of `start` for a client that names a cgroup.
fn options(cgroup: &str) -> Result<Vec<u8>> {
    let options = runc::Options { shim_cgroup: cgroup.to_owned(), ..runc::Options::default() };
    let any = Any {
        type_url: "containerd.runc.v1.Options".to_owned(),
        value: options.write_to_bytes()?,
        ..Any::default()
    };
    Ok(any.write_to_bytes()?)
}

/// Cgroups of one name in the hierarchies, removed at the end.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    /// Makes the cgroup `below` in the one hierarchy of version 2, or in two of version 1.
    fn make(below: &str) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let roots = if root.join("cgroup.procs").exists() {
            vec![root.to_owned()]
        } else {
            vec![root.join("memory"), root.join("devices")]
        };
        let made: Vec<PathBuf> = roots.iter().map(|root| root.join(below)).collect();
        for cgroup in &made {
            fs::create_dir_all(cgroup).with_context(|| format!("creating cgroup {}", cgroup.display()))?;
        }
        Ok(Self(made))
    }

    fn has(&self, pid: i32) -> Result<bool> {
        for cgroup in &self.0 {
            let processes = fs::read_to_string(cgroup.join("cgroup.procs"))?;
            if !processes.lines().any(|line| line == pid.to_string()) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for cgroup in &self.0 {
            // What is left in one is told by the census.
            let _ = fs::remove_dir(cgroup);
        }
    }
}

fn shim_cgroup(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let mut spec = subject.spec(ID, &lease.rootfs("root")?, ["/bin/sleep", "1000"])?;
    // One that names none: its VMM stays with the shim.
    spec["linux"].as_object_mut().context("a specification without linux")?.remove("cgroupsPath");
    let bundle = lease.containerd.bundle(ID);
    fs::create_dir_all(&bundle)?;
    fs::write(bundle.join("config.json"), spec.to_string())?;
    let below = format!("{}/shims", lease.containerd.namespace());

    let refused = shim(lease, &bundle, "start", options(&format!("/{below}"))?)?;
    ensure!(refused.code() != 0 && refused.err().contains(&below), "{}", refused.describe());
    let processes = census::processes(&lease.containerd.scope())?;
    ensure!(!processes.iter().any(is_shim_of(ID)), "a shim that was refused runs");

    let cgroups = Cgroups::make(&below)?;
    shim(lease, &bundle, "start", options(&format!("/{below}"))?)?.succeeded()?;
    let request = CreateTaskRequest {
        id: ID.to_owned(),
        bundle: bundle.display().to_string(),
        ..CreateTaskRequest::default()
    };
    Shim::of(&lease.containerd, ID)?
        .call(async |client, context| client.create(context, &request).await)
        .map_err(|(code, text)| anyhow::anyhow!("create: {code:?}: {text}"))?;
    let processes = census::processes(&lease.containerd.scope())?;
    for (what, is) in [("the shim", &is_shim_of(ID) as &dyn Fn(&_) -> bool), ("the VMM", &is_vmm)] {
        let process =
            processes.iter().find(|process| is(process)).with_context(|| format!("no process is {what}"))?;
        ensure!(cgroups.has(process.pid)?, "{what} (process {}) is not in {:?}", process.pid, cgroups.0);
    }
    shim(lease, &bundle, "delete", Vec::new())?.succeeded()?;
    fs::remove_dir_all(&bundle)?;
    // The namespace's directory is there from its first container.
    Ok(())
}

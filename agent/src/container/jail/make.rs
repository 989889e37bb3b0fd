//! Making processes in jails. All of this runs in helper processes (`helper.rs`).

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;

use oci_spec::runtime::{Mount, Process};
use serde::Deserialize;

use super::limits::{self, Resources};
use super::mounts;
use super::params::{self, Value};
use super::process::{self, Birth};
use super::settings::FreeBsd;
use crate::container::wanted::{Create, parse};
use crate::container::{Paths, root};
use crate::error::Refusal;

/// What is read of a spec. The rest of it speaks of Linux, or of what the host does.
#[derive(Debug, Deserialize)]
struct Spec {
    process: Option<Process>,
    #[serde(default)]
    root: Root,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    hooks: BTreeMap<String, Vec<serde_json::Value>>,
    hostname: Option<String>,
    #[serde(default)]
    freebsd: FreeBsd,
    #[serde(default)]
    linux: Linux,
}

/// Limits have their place there, whatever the system.
#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    resources: Resources,
}

#[derive(Debug, Default, Deserialize)]
struct Root {
    #[serde(default)]
    readonly: bool,
}

/// Makes a container whose first process waits to be started; returns its pid.
///
/// `fds`: the fault pipe, then 0, 1 and 2 of a process without a terminal.
pub(crate) fn create(request: &Create<'_>, fds: &[RawFd]) -> Result<i32, Refusal> {
    let paths = Paths::new(request.id);
    let spec: Spec = parse("spec", request.spec)?;
    let process = spec.process.ok_or_else(|| Refusal::invalid("process: missing"))?;
    process::check(&process)?;
    if let Some((hook, _)) = spec.hooks.iter().find(|(_, list)| !list.is_empty()) {
        return Err(Refusal::invalid(format!("hooks.{hook}: a FreeBSD guest runs no hooks yet")));
    }
    if request.overlay {
        let text = "rootfs_mode overlay: FreeBSD has no overlay that a container could live on; use 9p";
        return Err(Refusal::invalid(text));
    }
    root::check(request.rootfs)?;
    let root = request
        .rootfs
        .canonicalize()
        .map_err(|e| Refusal::internal(format!("rootfs {}: {e}", request.rootfs.display())))?;
    for dir in [&paths.bundle, &paths.state] {
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(dir)
            .map_err(|e| Refusal::internal(format!("cannot make {}: {e}", dir.display())))?;
    }
    // What the container sees: what is shared, or a view of it that cannot be written to.
    let seen = if spec.root.readonly { paths.bundle.join("view") } else { root.clone() };
    // Noted before anything is mounted: by it the mounts are found again.
    std::os::unix::fs::symlink(&seen, paths.overlay())
        .map_err(|e| Refusal::internal(format!("cannot note the container's root: {e}")))?;
    let mounts = spec
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| mounts::prepare(&root, index, mount))
        .collect::<Result<Vec<_>, _>>()?;
    if spec.root.readonly {
        mounts::view(&root, &seen)?;
    }
    for mount in &mounts {
        mount.make(&root, &seen)?;
    }
    let group = paths.group_dir();
    limits::apply(&group, &spec.linux.resources)?;
    let settings = spec.freebsd.parameters();
    let mut parameters = vec![("path", Value::Text(seen.as_os_str().as_encoded_bytes()))];
    parameters.extend(settings.iter().map(|(name, value)| (name.as_str(), *value)));
    if let Some(hostname) = spec.hostname.as_ref().filter(|_| spec.freebsd.names_itself()) {
        parameters.push(("host.hostname", Value::Text(hostname.as_bytes())));
    }
    let jid = params::create(&group, &parameters)
        .map_err(|e| Refusal::internal(format!("cannot make a jail: {e}")))?;
    let start = UnixListener::bind(paths.notify())
        .map_err(|e| Refusal::internal(format!("cannot listen on {}: {e}", paths.notify().display())))?;
    process::bear(&Birth { jid, process: &process, terminal: request.terminal, start: &start }, fds)
}

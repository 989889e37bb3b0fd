//! Making processes with libcontainer. All of this runs in helper processes (`helper.rs`).

use std::fs::{self, Permissions};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use pathrs::Root;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::payload::Payload;
use super::{group, idmap, rootfs, spec};
use crate::container::paths::{self, Paths};
use crate::container::root;
use crate::container::wanted::{Create, parse};
use crate::error::{Refusal, chain};

/// The container's spec as given to libcontainer, and its seccomp profile, which processes that join need.
const CONFIG: &str = "config.json";
pub(super) const SECCOMP: &str = "seccomp.json";

/// Makes a container whose first process waits to be started; returns its pid.
///
/// `fds`: the fault pipe, then 0, 1 and 2 of a process without a terminal.
pub(crate) fn create(request: &Create<'_>, fds: &[RawFd]) -> Result<i32, Refusal> {
    let paths = Paths::new(request.id);
    let spec: Spec = parse("spec", request.spec)?;
    root::check(request.rootfs)?;
    make_dir(&paths.bundle)?;
    let root = if request.overlay {
        rootfs::overlay(request.rootfs, &paths.overlay())?
    } else {
        request.rootfs.to_owned()
    };
    let parts = spec::split(spec, &root, &paths.group)?;
    if spec::wants_cwd_early(&parts) {
        // Whatever is wrong with it, the process itself says it better.
        let _ = Root::open(&root)
            .and_then(|root| root.mkdir_all(parts.process.cwd(), &Permissions::from_mode(0o755)));
    }
    for (name, value) in &parts.sysctl {
        let file = spec::sysctl_file(name);
        fs::write(&file, value)
            .map_err(|e| Refusal::invalid(format!("linux.sysctl {name}={value:?}: {e}")))?;
    }
    group::make(&paths.group_dir())?;
    super::devices::filter(&paths.group_dir(), &parts.devices).map_err(group::GroupError::from)?;
    store(&paths.bundle.join(CONFIG), &parts.spec)?;
    if let Some(seccomp) = &parts.seccomp {
        store(&paths.bundle.join(SECCOMP), seccomp)?;
    }
    if parts.many_ranges() {
        idmap::provide()?;
    }
    let (faults, stdio) = split_fds(fds)?;
    let payload = Payload::new(&parts.process, parts.seccomp, faults).masking(parts.masked);
    let container = builder(request.id, payload, stdio, request.terminal)?
        .as_init(&paths.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|e| failed("make the container", &e))?;
    container
        .pid()
        .map(nix_pid)
        .ok_or_else(|| Refusal::internal("libcontainer made a container without a pid"))
}

/// The group below the container's own in which its first process is: one that runs systemd, say, may have
/// moved itself, and a group with groups below it takes no processes.
pub(super) fn sub_group(init: i32, group: &Path) -> Option<String> {
    let line = fs::read_to_string(format!("/proc/{init}/cgroup")).ok()?;
    let path = line.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = Path::new(path).strip_prefix(group).ok()?.to_str()?;
    (!below.is_empty()).then(|| below.to_owned())
}

fn builder(
    id: &str,
    payload: Payload,
    stdio: Option<[OwnedFd; 3]>,
    terminal: Option<&Path>,
) -> Result<ContainerBuilder, Refusal> {
    crate::log::tell_faults(payload.faults());
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::Linux)
        .with_root_path(paths::STATE)
        .map_err(|e| failed("find the state directory", &e))?
        .with_executor(payload)
        .with_console_socket(terminal);
    if let Some([stdin, stdout, stderr]) = stdio {
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    Ok(builder)
}

fn split_fds(fds: &[RawFd]) -> Result<(RawFd, Option<[OwnedFd; 3]>), Refusal> {
    // SAFETY: the helper was given these descriptors, each for one purpose, and nothing else in it owns them.
    let own = |fd: &RawFd| unsafe { OwnedFd::from_raw_fd(*fd) };
    match fds {
        [faults] => Ok((*faults, None)),
        [faults, stdin, stdout, stderr] => Ok((*faults, Some([own(stdin), own(stdout), own(stderr)]))),
        _ => Err(Refusal::internal(format!("a helper was given {} descriptors", fds.len()))),
    }
}

fn nix_pid(pid: impl Into<libc::pid_t>) -> i32 {
    pid.into()
}

fn failed(what: &str, error: &LibcontainerError) -> Refusal {
    let text = format!("cannot {what}: {}", chain(error));
    match error {
        LibcontainerError::InvalidSpec(_)
        | LibcontainerError::MissingSpec(_)
        | LibcontainerError::Spec(_)
        | LibcontainerError::UserNamespace(_) => Refusal::invalid(text),
        _ => Refusal::internal(text),
    }
}

fn store(path: &Path, value: &impl Serialize) -> Result<(), Refusal> {
    let written =
        serde_json::to_vec(value).map_err(std::io::Error::from).and_then(|json| fs::write(path, json));
    written.map_err(|e| Refusal::internal(format!("cannot write {}: {e}", path.display())))
}

/// Reads what [`create`] wrote.
pub(super) fn load<T: DeserializeOwned>(path: &PathBuf) -> Result<T, Refusal> {
    let fail = |e: std::io::Error| Refusal::internal(format!("cannot read {}: {e}", path.display()));
    serde_json::from_slice(&fs::read(path).map_err(fail)?).map_err(|e| fail(e.into()))
}

fn make_dir(path: &Path) -> Result<(), Refusal> {
    fs::create_dir(path).map_err(|e| Refusal::internal(format!("cannot make {}: {e}", path.display())))
}

//! The OCI spec taken apart: what libcontainer does, what the payload does after it, what the guest does.
//!
//! libcontainer makes the namespaces, cgroup limits, mounts, devices, masks and the terminal. The last steps
//! before exec (working directory, user, capabilities, seccomp) are the payload's (`payload.rs`), because
//! they then are the same for a container's first process and for one that joins it.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use libcontainer::oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp,
    LinuxSeccompAction, Mount, Process, Root, Spec, User,
};

use crate::error::Refusal;

/// Why a spec cannot be served. Each names the field.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SpecError {
    #[error("{field}: missing")]
    Missing { field: &'static str },
    #[error("{field}: {reason}")]
    Wrong { field: &'static str, reason: String },
    #[error("{field}: not possible in a Skep guest")]
    Unsupported { field: &'static str },
}

impl From<SpecError> for Refusal {
    fn from(error: SpecError) -> Self {
        Self::invalid(error.to_string())
    }
}

/// A container's spec, ready to be carried out.
#[derive(Debug)]
pub(crate) struct Parts {
    /// For libcontainer.
    pub(crate) spec: Spec,
    /// What the container's first process is, as the user wrote it.
    pub(crate) process: Process,
    pub(crate) seccomp: Option<LinuxSeccomp>,
    /// Kernel parameters, set in the guest, whose namespaces the containers share.
    pub(crate) sysctl: HashMap<String, String>,
    pub(crate) devices: Vec<LinuxDeviceCgroup>,
    /// What is to be covered once everything is mounted.
    pub(crate) masked: Vec<PathBuf>,
}

impl Parts {
    /// Whether its users or groups are mapped by more than one range.
    pub(crate) fn many_ranges(&self) -> bool {
        let Some(linux) = self.spec.linux() else { return false };
        [linux.uid_mappings(), linux.gid_mappings()].into_iter().flatten().any(|ranges| ranges.len() > 1)
    }
}

/// Splits `spec` for a container whose root is `rootfs` and whose cgroup is `group`.
pub(crate) fn split(mut spec: Spec, rootfs: &Path, group: &Path) -> Result<Parts, SpecError> {
    let process = spec.process().clone().ok_or(SpecError::Missing { field: "process" })?;
    check_process(&process)?;
    check_hooks(&spec)?;

    let mut linux = spec.linux().clone().ok_or(SpecError::Missing { field: "linux" })?;
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(SpecError::Unsupported { field: "linux.netDevices" });
    }
    if linux.intel_rdt().is_some() {
        return Err(SpecError::Unsupported { field: "linux.intelRdt" });
    }
    let namespaces = namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
    linux.set_namespaces(Some(namespaces));
    linux.set_cgroups_path(Some(group.to_owned()));
    let seccomp = linux.seccomp().clone();
    linux.set_seccomp(None);
    check_seccomp(seccomp.as_ref())?;
    let sysctl = linux.sysctl().clone().unwrap_or_default();
    linux.set_sysctl(None);
    check_sysctl(&sysctl)?;
    let masked = linux.masked_paths().iter().flatten().map(PathBuf::from).collect();
    linux.set_masked_paths(None);
    let devices =
        linux.resources().as_ref().and_then(|resources| resources.devices().clone()).unwrap_or_default();

    if has(linux.namespaces().as_deref(), LinuxNamespaceType::User) {
        spec.set_mounts(spec.mounts().clone().map(|mounts| mounts.into_iter().map(borrowed).collect()));
    }
    // The sandbox has one name; it was given to the guest.
    spec.set_hostname(None);
    spec.set_domainname(None);
    let mut root = Root::default();
    root.set_path(rootfs.to_owned());
    root.set_readonly(spec.root().as_ref().and_then(Root::readonly));
    spec.set_root(Some(root));
    spec.set_linux(Some(linux));
    spec.set_process(Some(bare(&process)));
    Ok(Parts { spec, process, seccomp, sysctl, devices, masked })
}

/// Whether the working directory has to be made before the root becomes read-only: it then cannot be made
/// later, and is not on some other mount.
pub(crate) fn wants_cwd_early(parts: &Parts) -> bool {
    let readonly = parts.spec.root().as_ref().and_then(Root::readonly).unwrap_or(false);
    let mounted =
        |cwd: &Path| parts.spec.mounts().iter().flatten().any(|mount| cwd.starts_with(mount.destination()));
    readonly && !mounted(parts.process.cwd())
}

/// A process as libcontainer is to make it: everything but what the payload does itself.
pub(crate) fn bare(process: &Process) -> Process {
    let mut bare = process.clone();
    let mut user = User::default();
    user.set_umask(process.user().umask());
    bare.set_user(user);
    bare.set_cwd("/".into());
    bare.set_capabilities(None);
    bare.set_rlimits(None);
    bare.set_no_new_privileges(None);
    // HOME keeps libcontainer from looking the user up, which a static binary cannot do safely.
    bare.set_env(Some(vec!["HOME=/".to_owned()]));
    // Unset, a process would inherit the agent's immunity to the OOM killer.
    bare.set_oom_score_adj(Some(process.oom_score_adj().unwrap_or(0)));
    bare
}

/// Refuses a process that cannot be run as it is.
pub(crate) fn check_process(process: &Process) -> Result<(), SpecError> {
    let args = process.args().as_deref().unwrap_or_default();
    let Some(command) = args.first() else { return Err(SpecError::Missing { field: "process.args" }) };
    if command.is_empty() {
        return Err(SpecError::Wrong { field: "process.args", reason: "the command is empty".to_owned() });
    }
    let nul = |values: &[String]| values.iter().any(|value| value.contains('\0'));
    if nul(args) {
        return Err(SpecError::Wrong { field: "process.args", reason: "contains a NUL byte".to_owned() });
    }
    if nul(process.env().as_deref().unwrap_or_default()) {
        return Err(SpecError::Wrong { field: "process.env", reason: "contains a NUL byte".to_owned() });
    }
    if !process.cwd().is_absolute() {
        let reason = format!("{} is not an absolute path", process.cwd().display());
        return Err(SpecError::Wrong { field: "process.cwd", reason });
    }
    if process.apparmor_profile().as_ref().is_some_and(|profile| !profile.is_empty()) {
        return Err(SpecError::Unsupported { field: "process.apparmorProfile" });
    }
    if process.selinux_label().as_ref().is_some_and(|label| !label.is_empty()) {
        return Err(SpecError::Unsupported { field: "process.selinuxLabel" });
    }
    Ok(())
}

/// Refuses what only a container's first process can have.
pub(crate) fn check_joins(process: &Process) -> Result<(), SpecError> {
    if process.scheduler().is_some() {
        return Err(SpecError::Unsupported { field: "process.scheduler" });
    }
    if process.exec_cpu_affinity().is_some() {
        return Err(SpecError::Unsupported { field: "process.execCPUAffinity" });
    }
    Ok(())
}

/// Hooks that run outside the container would run in the guest, where none of their programs is.
fn check_hooks(spec: &Spec) -> Result<(), SpecError> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    #[allow(deprecated)] // prestart is deprecated, and still in use
    let outside = [
        ("hooks.prestart", hooks.prestart()),
        ("hooks.createRuntime", hooks.create_runtime()),
        ("hooks.poststart", hooks.poststart()),
        ("hooks.poststop", hooks.poststop()),
    ];
    for (field, list) in outside {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(SpecError::Unsupported { field });
        }
    }
    Ok(())
}

fn check_seccomp(seccomp: Option<&LinuxSeccomp>) -> Result<(), SpecError> {
    let Some(seccomp) = seccomp else { return Ok(()) };
    let notifies = seccomp.default_action() == LinuxSeccompAction::ScmpActNotify
        || seccomp.syscalls().iter().flatten().any(|call| call.action() == LinuxSeccompAction::ScmpActNotify);
    if notifies || seccomp.listener_path().is_some() {
        return Err(SpecError::Unsupported { field: "linux.seccomp.listenerPath" });
    }
    Ok(())
}

/// A container has mounts, cgroup and (if asked for) processes, users and clocks of its own. Network, IPC and
/// host name belong to the sandbox, so they are the guest's.
fn namespaces(asked: &[LinuxNamespace]) -> Result<Vec<LinuxNamespace>, SpecError> {
    let mut kept = vec![fresh(LinuxNamespaceType::Mount)?, fresh(LinuxNamespaceType::Cgroup)?];
    for namespace in asked {
        let typ = namespace.typ();
        if matches!(typ, LinuxNamespaceType::Pid | LinuxNamespaceType::User | LinuxNamespaceType::Time) {
            kept.push(namespace.clone());
        }
    }
    Ok(kept)
}

fn has(namespaces: Option<&[LinuxNamespace]>, typ: LinuxNamespaceType) -> bool {
    namespaces.into_iter().flatten().any(|namespace| namespace.typ() == typ)
}

/// A mount as a container with users of its own can have it: what shows the sandbox's network or IPC belongs to
/// the sandbox's users, so the kernel does not let the container mount it, but lets it use the guest's.
fn borrowed(mut mount: Mount) -> Mount {
    let guests = match mount.typ().as_deref() {
        Some("sysfs") => "/sys",
        Some("mqueue") => "/dev/mqueue",
        _ => return mount,
    };
    let mut options = mount.options().clone().unwrap_or_default();
    options.push("rbind".to_owned());
    mount.set_typ(Some("bind".to_owned())).set_source(Some(guests.into())).set_options(Some(options));
    mount
}

fn fresh(typ: LinuxNamespaceType) -> Result<LinuxNamespace, SpecError> {
    LinuxNamespaceBuilder::default()
        .typ(typ)
        .build()
        .map_err(|e| SpecError::Wrong { field: "linux.namespaces", reason: e.to_string() })
}

/// The file below /proc/sys of a kernel parameter, whose parts are divided by dots or slashes.
pub(crate) fn sysctl_file(name: &str) -> std::path::PathBuf {
    // As sysctl(8): the first divider found decides, so that a dot may be part of a name.
    let relative = match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('.') => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    };
    Path::new("/proc/sys").join(relative)
}

fn check_sysctl(sysctl: &HashMap<String, String>) -> Result<(), SpecError> {
    for name in sysctl.keys() {
        let file = sysctl_file(name);
        let inside = file.strip_prefix("/proc/sys").is_ok_and(|rest| {
            rest.components().count() > 1 && rest.components().all(|c| matches!(c, Component::Normal(_)))
        });
        if !inside {
            let reason = format!("{name:?} is not the name of a kernel parameter");
            return Err(SpecError::Wrong { field: "linux.sysctl", reason });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Parts, SpecError> {
        let spec: Spec = serde_json::from_str(text).expect("json");
        split(spec, Path::new("/run/skep/share/a/rootfs"), Path::new("/skep/a"))
    }

    fn with(process: &str, rest: &str) -> String {
        format!(
            r#"{{"ociVersion":"1.1.0","process":{{"user":{{"uid":5,"gid":6}},"cwd":"/w"{process}}}{rest}}}"#
        )
    }

    const ARGS: &str = r#","args":["sh"]"#;

    #[test]
    fn the_sandbox_keeps_network_ipc_and_name() {
        let text = with(
            ARGS,
            r#","hostname":"x","linux":{"cgroupsPath":"/kubepods/x","namespaces":[
                {"type":"pid"},{"type":"ipc"},{"type":"uts"},{"type":"mount"},
                {"type":"network","path":"/var/run/netns/cni-1"}]}"#,
        );
        let parts = parse(&text).expect("split");
        assert_eq!(parts.spec.hostname(), &None);
        let linux = parts.spec.linux().clone().expect("linux");
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/skep/a")));
        let mut types: Vec<String> =
            linux.namespaces().iter().flatten().map(|ns| ns.typ().to_string()).collect();
        types.sort();
        assert_eq!(types, ["cgroup", "mnt", "pid"]);
    }

    #[test]
    fn the_payload_keeps_what_libcontainer_must_not_do() {
        let text = with(
            &format!(r#"{ARGS},"env":["A=b"],"noNewPrivileges":true,"oomScoreAdj":-5"#),
            r#","linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"},"sysctl":{"net.ipv4.ip_forward":"1"}}"#,
        );
        let parts = parse(&text).expect("split");
        assert_eq!(parts.process.user().uid(), 5);
        assert!(parts.seccomp.is_some());
        assert_eq!(parts.sysctl.len(), 1);
        let bare = parts.spec.process().clone().expect("process");
        assert_eq!((bare.user().uid(), bare.cwd().as_path()), (0, Path::new("/")));
        assert_eq!(bare.oom_score_adj(), Some(-5));
        assert_eq!(bare.env().as_deref(), Some(["HOME=/".to_owned()].as_slice()));
        let linux = parts.spec.linux().clone().expect("linux");
        assert!(linux.seccomp().is_none() && linux.sysctl().is_none());
    }

    #[test]
    fn what_is_unset_does_not_come_from_the_agent() {
        let parts = parse(&with(ARGS, r#","linux":{}"#)).expect("split");
        assert_eq!(parts.spec.process().clone().expect("process").oom_score_adj(), Some(0));
    }

    #[test]
    fn faults_name_their_field() {
        let field = |text: &str| match parse(text).expect_err(text) {
            SpecError::Missing { field }
            | SpecError::Unsupported { field }
            | SpecError::Wrong { field, .. } => field,
        };
        assert_eq!(field(r#"{"ociVersion":"1.1.0"}"#), "process");
        assert_eq!(field(&with("", r#","linux":{}"#)), "process.args");
        assert_eq!(field(&with(r#","args":[""]"#, r#","linux":{}"#)), "process.args");
        assert_eq!(field(&with(ARGS, "")), "linux");
        assert_eq!(
            field(&with(&format!(r#"{ARGS},"apparmorProfile":"p""#), r#","linux":{}"#)),
            "process.apparmorProfile"
        );
        assert_eq!(
            field(&with(ARGS, r#","linux":{},"hooks":{"poststop":[{"path":"/x"}]}"#)),
            "hooks.poststop"
        );
        for name in ["../x", "net", "net/../../x", "/etc/passwd"] {
            let text = with(ARGS, &format!(r#","linux":{{"sysctl":{{"{name}":"1"}}}}"#));
            assert_eq!(field(&text), "linux.sysctl", "{name}");
        }
    }

    #[test]
    fn users_of_its_own_borrow_the_guests_sysfs() {
        let mounts = |namespaces: &str| {
            let rest = format!(
                r#","linux":{{"namespaces":[{namespaces}]}},"mounts":[
                    {{"destination":"/sys","type":"sysfs","source":"sysfs","options":["ro"]}},
                    {{"destination":"/proc","type":"proc","source":"proc"}}]"#
            );
            let parts = parse(&with(ARGS, &rest)).expect("split");
            parts.spec.mounts().iter().flatten().filter_map(|mount| mount.typ().clone()).collect::<Vec<_>>()
        };
        assert_eq!(mounts(r#"{"type":"user"}"#), ["bind", "proc"]);
        assert_eq!(mounts(r#"{"type":"pid"}"#), ["sysfs", "proc"]);
    }

    #[test]
    fn only_a_readonly_root_needs_its_directory_early() {
        let early = |rest: &str| {
            let text = with(ARGS, &format!(r#","linux":{{}},"root":{{"path":"r","readonly":true}}{rest}"#));
            wants_cwd_early(&parse(&text).expect("split"))
        };
        assert!(early(""));
        assert!(early(r#","mounts":[{"destination":"/work","type":"tmpfs","source":"tmpfs"}]"#));
        assert!(!early(r#","mounts":[{"destination":"/w","type":"tmpfs","source":"tmpfs"}]"#));
        assert!(!wants_cwd_early(&parse(&with(ARGS, r#","linux":{}"#)).expect("split")));
    }

    #[test]
    fn parameters_are_files() {
        assert_eq!(sysctl_file("net.ipv4.ip_forward"), Path::new("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(sysctl_file("net/ipv4/conf/eth0.1/mtu"), Path::new("/proc/sys/net/ipv4/conf/eth0.1/mtu"));
        assert_eq!(sysctl_file("net.ipv4.conf.eth0/1.mtu"), Path::new("/proc/sys/net/ipv4/conf/eth0.1/mtu"));
    }
}

//! What differs where the guest is FreeBSD: containers are jails there.

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxResources, Mount, Process, Spec};

use super::mounts::{self, Volume, kind, made};
use super::{Context, Probe, SpecError, freebsd, limits, namespaces};
use crate::network::NetworkRequest;

/// File systems that the guest's kernel makes.
const GUEST_MADE: [&str; 4] = ["devfs", "fdescfs", "procfs", "tmpfs"];
/// Linux's, which a client on Linux asks for whatever the image is, and for which FreeBSD has no use.
const LINUX_ONLY: [&str; 6] = ["sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "securityfs"];
/// Options that tmpfs(5) and mount(8) do not have, and that change nothing where there are no device files.
const LINUX_OPTIONS: [&str; 5] = ["nodev", "strictatime", "relatime", "rprivate", "rslave"];

/// Rewrites everything but the process and the mounts.
pub(super) fn rewrite(
    spec: &mut Spec,
    context: &Context<'_>,
    notes: &mut Vec<String>,
) -> Result<NetworkRequest, SpecError> {
    if let Some(section) = context.freebsd {
        freebsd::check(section)?;
    }
    if let Some(domain) = spec.domainname() {
        notes.push(format!("domainname {domain}: the sandbox's host name has none, left out"));
    }
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref());
    if let Some(hook) = hooks.and_then(|list| list.first()) {
        return Err(SpecError::unsupported(
            "hooks.startContainer[0]",
            format!("{}: a FreeBSD guest runs no hooks yet", hook.path().display()),
        ));
    }
    // Of the section that containerd writes whatever the image is, two things mean something here.
    let Some(mut linux) = spec.linux().clone() else { return Ok(NetworkRequest::Own) };
    let network = namespaces::rewrite(&mut linux, context.sandbox_pids)?;
    for (present, field, reason) in [
        (
            linux.devices().as_ref().is_some_and(|devices| !devices.is_empty()),
            "linux.devices",
            "the guest is FreeBSD: Linux's device numbers mean nothing there",
        ),
        (
            linux.sysctl().as_ref().is_some_and(|sysctl| !sysctl.is_empty()),
            "linux.sysctl",
            "the guest is FreeBSD: Linux's settings mean nothing there",
        ),
    ] {
        if present {
            return Err(SpecError::unsupported(field, reason));
        }
    }
    if linux.seccomp().is_some() {
        notes.push("linux.seccomp: FreeBSD's system calls are others, left out".into());
    }
    let mut kept = Linux::default();
    kept.set_namespaces(None)
        .set_devices(None)
        .set_masked_paths(None)
        .set_readonly_paths(None)
        .set_resources(linux.resources().clone().map(|resources| limits(resources, notes)).transpose()?);
    spec.set_linux(Some(kept));
    Ok(network)
}

/// Takes out what rctl(8) does not know and what means nothing in a guest.
pub(super) fn limits(
    mut resources: LinuxResources,
    notes: &mut Vec<String>,
) -> Result<LinuxResources, SpecError> {
    limits::rewrite_resources(&mut resources, notes)?;
    // Which devices there are is devfs's to say.
    resources.set_devices(None);
    let unified = resources.unified().as_ref().is_some_and(|unified| !unified.is_empty());
    if unified {
        return Err(SpecError::unsupported(
            "linux.resources.unified",
            "the guest is FreeBSD, which has no cgroups",
        ));
    }
    let cpu = resources.cpu().as_ref();
    if cpu.is_some_and(|cpu| cpu.cpus().as_ref().is_some_and(|cpus| !cpus.is_empty())) {
        return Err(SpecError::unsupported(
            "linux.resources.cpu.cpus",
            "a FreeBSD guest does not bind containers to CPUs yet",
        ));
    }
    Ok(resources)
}

/// What of a process is Linux's alone.
pub(super) fn rewrite_process(process: &mut Process) -> Result<(), SpecError> {
    for (present, field) in [
        (process.scheduler().is_some(), "process.scheduler"),
        (process.io_priority().is_some(), "process.ioPriority"),
    ] {
        if present {
            return Err(SpecError::unsupported(field, "a FreeBSD guest does not set it yet"));
        }
    }
    // What a jail's root may is the jail's to say, and there are no capabilities to be taken from it.
    process.set_capabilities(None);
    process.set_oom_score_adj(None);
    Ok(())
}

/// Sorts the mounts by who makes them.
pub(super) fn rewrite_mounts(
    mounts: Vec<Mount>,
    context: &Context<'_>,
    probe: &Probe<'_>,
    notes: &mut Vec<String>,
) -> Result<(Vec<Mount>, Vec<Volume>), SpecError> {
    let mut kept = Vec::new();
    let mut volumes = Vec::new();
    for (index, mount) in mounts.into_iter().enumerate() {
        let field = format!("mounts[{index}]");
        mounts::check_destination(&mount, &field)?;
        let at = mount.destination().clone();
        match kind(&mount) {
            "proc" => kept.push(made("procfs", "procfs", &at, &["nosuid", "noexec"])?),
            "tmpfs" if at == Path::new("/dev") => {
                kept.push(made("devfs", "devfs", &at, &[])?);
                kept.push(made("fdescfs", "fdescfs", Path::new("/dev/fd"), &[])?);
            }
            // Shared memory has no directory here: shm_open(2).
            _ if at == Path::new("/dev/shm") => {
                notes.push(format!("{field}: FreeBSD has no /dev/shm, left out"));
            }
            other if LINUX_ONLY.contains(&other) => {
                notes.push(format!("{field}: FreeBSD has no {other}, left out"));
            }
            _ if mounts::is_bind(&mount) => {
                let volume = mounts::volume(&mount, &field, volumes.len(), context, probe)?;
                let source = format!("{}/{}", context.guest_dir, volume.name);
                // What is read-only is so on the host already; here it is said to programs that ask.
                let options: &[&str] = if volume.readonly { &["ro"] } else { &[] };
                kept.push(made("nullfs", &source, &at, options)?);
                volumes.push(volume);
            }
            other if GUEST_MADE.contains(&other) => kept.push(without_linux_options(mount)),
            "linprocfs" | "linsysfs" => {
                return Err(SpecError::unsupported(
                    field,
                    format!("{}: a FreeBSD guest does not emulate Linux", at.display()),
                ));
            }
            other => return Err(mounts::unknown(field, &at, other)),
        }
    }
    Ok((kept, volumes))
}

fn without_linux_options(mut mount: Mount) -> Mount {
    let options = mount.options().iter().flatten();
    let kept = options.filter(|option| !LINUX_OPTIONS.contains(&option.as_str())).cloned().collect();
    mount.set_options(Some(kept));
    mount
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::container::spec::{FreeBsd, GuestSpec, SourceKind};
    use crate::guest::GuestOs;

    fn run(spec: Value) -> Result<GuestSpec, SpecError> {
        let section: Option<FreeBsd> =
            spec.get("freebsd").cloned().map(|section| serde_json::from_value(section).unwrap());
        let context = Context {
            id: "t1",
            bundle: Path::new("/bundle"),
            guest_dir: "/run/skep/share/x",
            sandbox_pids: &[],
            os: GuestOs::FreeBsd,
            freebsd: section.as_ref(),
        };
        let probe = |path: &Path| Ok((path.to_owned(), SourceKind::Directory));
        super::super::rewrite(serde_json::from_value(spec).unwrap(), &context, &probe)
    }

    /// What containerd on FreeBSD sends for a FreeBSD image (`pkg/oci/spec.go`, `pkg/oci/mounts_freebsd.go`).
    fn containerd() -> Value {
        json!({
            "ociVersion": "1.3.0",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh"], "cwd": "/", "noNewPrivileges": true,
                "capabilities": {"bounding": ["CAP_CHOWN"]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/dev", "type": "devfs", "source": "devfs", "options": ["ruleset=4"]},
                {"destination": "/dev/fd", "type": "fdescfs", "source": "fdescfs"},
                {"destination": "/data", "type": "nullfs", "source": "/srv/data", "options": ["ro"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nodev", "mode=1777"]}
            ],
            "linux": {
                "resources": {"devices": [{"allow": false, "access": "rwm"}], "pids": {"limit": 10}},
                "cgroupsPath": "/default/t1",
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}
                ],
                "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"]
            }
        })
    }

    fn mounts(spec: &Spec) -> Vec<(String, String, Vec<String>)> {
        let words = |mount: &Mount| {
            let at = mount.destination().display().to_string();
            (kind(mount).to_owned(), at, mount.options().clone().unwrap_or_default())
        };
        spec.mounts().iter().flatten().map(words).collect()
    }

    #[test]
    fn what_containerd_sends_becomes_a_jail() {
        let after = run(containerd()).unwrap();
        let expected = [
            ("devfs", "/dev", vec!["ruleset=4"]),
            ("fdescfs", "/dev/fd", vec![]),
            ("nullfs", "/data", vec!["ro"]),
            ("tmpfs", "/tmp", vec!["mode=1777"]),
        ];
        let expected = expected.map(|(kind, at, options)| {
            (kind.to_owned(), at.to_owned(), options.into_iter().map(str::to_owned).collect::<Vec<_>>())
        });
        assert_eq!(mounts(&after.spec), expected);
        assert!(after.volumes[0].readonly && after.volumes[0].source == Path::new("/srv/data"));
        let linux = serde_json::to_value(after.spec.linux()).unwrap();
        assert_eq!(linux, json!({"resources": {"pids": {"limit": 10}}}));
        let process = after.spec.process().as_ref().unwrap();
        assert!(process.capabilities().is_none() && process.no_new_privileges() == Some(true));
        assert_eq!(after.spec.root().as_ref().unwrap().path(), Path::new("/run/skep/share/x/rootfs"));
        assert!(after.notes.is_empty(), "{:?}", after.notes);
    }

    #[test]
    fn what_a_client_on_linux_asks_for_has_its_counterpart() {
        let mut spec = containerd();
        spec["mounts"] = json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime"]}
        ]);
        let after = run(spec).unwrap();
        let kinds: Vec<_> =
            mounts(&after.spec).into_iter().map(|(kind, at, _)| format!("{kind} {at}")).collect();
        assert_eq!(kinds, ["procfs /proc", "devfs /dev", "fdescfs /dev/fd", "tmpfs /run"]);
        assert_eq!(after.notes.len(), 3);
    }

    #[test]
    fn what_a_jail_cannot_have_is_refused_by_name() {
        let refusal = |pointer: &str, value: Value| {
            let mut spec = containerd();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[key] = value;
            run(spec).unwrap_err().to_string()
        };
        let device = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]);
        assert!(refusal("/linux/devices", device).contains("linux.devices"));
        assert!(refusal("/linux/sysctl", json!({"net.x": "1"})).contains("linux.sysctl"));
        assert!(refusal("/linux/resources/cpu", json!({"cpus": "0"})).contains("linux.resources.cpu.cpus"));
        let hook = json!({"startContainer": [{"path": "/bin/hook"}]});
        assert!(refusal("/hooks", hook).contains("hooks.startContainer[0]"));
        assert!(refusal("/windows", json!({"layerFolders": []})).contains("windows"));
        let linprocfs = json!({"destination": "/proc", "type": "linprocfs", "source": "x"});
        assert!(refusal("/mounts", json!([linprocfs])).contains("mounts[0]"));
        let nfs = json!({"destination": "/n", "type": "nfs", "source": "h:/e"});
        assert!(refusal("/mounts", json!([nfs])).contains("nfs"));
        assert!(refusal("/freebsd", json!({"jail": {"parent": "x"}})).contains("freebsd.jail.parent"));
    }
}

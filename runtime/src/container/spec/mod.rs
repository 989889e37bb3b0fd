//! Rewrites an OCI runtime specification made for this host into one for the guest.
//!
//! Pure: what has to be known of the host's files is asked through a function. Three outcomes for each field: it means
//! in the guest what it meant here and stays; it names something of the host that has a counterpart in the guest and
//! is changed; or a microVM can't give it and the whole specification is refused, naming the field.

mod freebsd;
mod jail;
mod limits;
mod mounts;
mod namespaces;

use std::{io, path::Path};

use oci_spec::runtime::{Hooks, LinuxResources, Process, Spec};

use crate::{guest::GuestOs, network::NetworkRequest};

pub use freebsd::{Allow, Device, FreeBsd, Jail, Sharing, guest_os};
pub use mounts::{Probe, SourceKind, Volume};

/// The jail that a container is to be in, of ocijail and podman: its network is that jail's.
const PARENT_JAIL: &str = "org.freebsd.parentJail";
/// Where programs look for resolvers.
const RESOLVER: &str = "/etc/resolv.conf";

/// Why a specification can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// A microVM can't give this, or Skep can't yet.
    #[error("config.json: {field}: {reason}")]
    Unsupported {
        /// The field, in the notation of the specification.
        field: String,
        /// Why, and what to do instead.
        reason: String,
    },
    /// The specification contradicts the OCI runtime specification, or names what is not there.
    #[error("config.json: {field}: {reason}")]
    Invalid {
        /// The field, in the notation of the specification.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl SpecError {
    fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), reason: reason.into() }
    }

    fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }
}

/// What a specification is rewritten for.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The container's id.
    pub id: &'a str,
    /// The bundle's directory: relative sources of mounts begin there.
    pub bundle: &'a Path,
    /// The container's directory below the share, as the guest sees it.
    pub guest_dir: &'a str,
    /// Process ids that stand for the sandbox and its containers on this host, when the container joins a sandbox that
    /// runs: namespace paths below `/proc/<pid>/ns` then mean the sandbox's.
    pub sandbox_pids: &'a [u32],
    /// The guest's system.
    pub os: GuestOs,
    /// The specification's `freebsd` section, if it has one.
    pub freebsd: Option<&'a FreeBsd>,
}

/// A specification for the guest.
#[derive(Debug)]
pub struct GuestSpec {
    /// To be handed to the agent.
    pub spec: Spec,
    /// Its `freebsd` section, which [`Spec`] does not know.
    pub freebsd: Option<FreeBsd>,
    /// The sandbox's host name, if the specification sets one.
    pub hostname: Option<String>,
    /// Where the sandbox's network comes from. One that it names itself must be the sandbox's, if that runs already.
    pub network: NetworkRequest,
    /// What has to be shared with the guest, in the order of the mounts.
    pub volumes: Vec<Volume>,
    /// What was left out because it has no meaning in a guest, for the log.
    pub notes: Vec<String>,
}

impl GuestSpec {
    /// As the agent takes it.
    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        #[derive(serde::Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            spec: &'a Spec,
            #[serde(skip_serializing_if = "Option::is_none")]
            freebsd: Option<&'a FreeBsd>,
        }
        serde_json::to_vec(&Whole { spec: &self.spec, freebsd: self.freebsd.as_ref() })
    }

    /// Gives the container `file` of the host as its resolv.conf(5), unless its specification has one.
    pub fn provide_resolver(&mut self, file: &Path, context: &Context<'_>) -> Result<(), SpecError> {
        let mut mounts = self.spec.mounts().clone().unwrap_or_default();
        if mounts.iter().any(|mount| mount.destination() == Path::new(RESOLVER)) {
            return Ok(());
        }
        let (mount, volume) = mounts::file(file, RESOLVER, self.volumes.len(), context)?;
        mounts.push(mount);
        self.spec.set_mounts(Some(mounts));
        self.volumes.push(volume);
        Ok(())
    }
}

/// Rewrites `spec` for the guest.
pub fn rewrite(mut spec: Spec, context: &Context<'_>, probe: &Probe<'_>) -> Result<GuestSpec, SpecError> {
    let mut notes = Vec::new();
    let hooks = guest_hooks(spec.hooks().as_ref())?;
    for (present, field) in [
        (spec.windows().is_some(), "windows"),
        (spec.solaris().is_some(), "solaris"),
        (spec.zos().is_some(), "zos"),
        (spec.vm().is_some(), "vm"),
    ] {
        if present {
            return Err(SpecError::unsupported(field, format!("the guest is {}", context.os)));
        }
    }
    let mut network = match context.os {
        GuestOs::Linux => rewrite_linux(&mut spec, context, &mut notes)?,
        GuestOs::FreeBsd => jail::rewrite(&mut spec, context, &mut notes)?,
    };
    if let (true, GuestOs::Linux, NetworkRequest::Own, Some(jail)) = (
        cfg!(target_os = "freebsd"),
        context.os,
        &network,
        spec.annotations().as_ref().and_then(|all| all.get(PARENT_JAIL)).filter(|name| !name.is_empty()),
    ) {
        network = NetworkRequest::Join(jail.into());
    }
    let process = spec.process().clone().ok_or_else(|| SpecError::invalid("process", "missing"))?;
    spec.set_process(Some(rewrite_process(process, context.os, &mut notes)?));

    let mounts = spec.mounts().clone().unwrap_or_default();
    let (mounts, volumes) = match context.os {
        GuestOs::Linux => mounts::rewrite(mounts, context, probe, &mut notes)?,
        GuestOs::FreeBsd => jail::rewrite_mounts(mounts, context, probe, &mut notes)?,
    };
    spec.set_mounts(Some(mounts));

    let mut root = spec.root().clone().unwrap_or_default();
    root.set_path(format!("{}/rootfs", context.guest_dir).into());
    spec.set_root(Some(root));

    let hostname = spec.hostname().clone().filter(|name| !name.is_empty());
    spec.set_hostname(None);
    spec.set_domainname(None);
    spec.set_annotations(None);
    spec.set_hooks(hooks);
    let freebsd = context.freebsd.filter(|_| context.os == GuestOs::FreeBsd).cloned();
    Ok(GuestSpec { spec, freebsd, hostname, network, volumes, notes })
}

fn rewrite_linux(
    spec: &mut Spec,
    context: &Context<'_>,
    notes: &mut Vec<String>,
) -> Result<NetworkRequest, SpecError> {
    let mut linux = spec.linux().clone().ok_or_else(|| {
        SpecError::invalid("linux", "missing: the guest is Linux and runs Linux images only")
    })?;
    let network = namespaces::rewrite(&mut linux, context.sandbox_pids)?;
    limits::rewrite(&mut linux, context.id, notes)?;
    if let Some(domain) = spec.domainname() {
        // The container has the sandbox's UTS namespace, so the runtime in the guest would not set this by itself.
        linux.sysctl_mut().get_or_insert_default().insert("kernel.domainname".into(), domain.clone());
    }
    spec.set_linux(Some(linux));
    Ok(network)
}

/// Rewrites limits, of a request to change them.
pub(super) fn rewrite_limits(
    mut resources: LinuxResources,
    os: GuestOs,
    notes: &mut Vec<String>,
) -> Result<LinuxResources, SpecError> {
    match os {
        GuestOs::Linux => limits::rewrite_resources(&mut resources, notes).map(|()| resources),
        GuestOs::FreeBsd => jail::limits(resources, notes),
    }
}

/// Rewrites a process, of `config.json` or of an exec request.
pub fn rewrite_process(
    mut process: Process,
    os: GuestOs,
    notes: &mut Vec<String>,
) -> Result<Process, SpecError> {
    if process.args().as_ref().is_none_or(|args| args.first().is_none_or(String::is_empty)) {
        return Err(SpecError::invalid("process.args", "no command: name one, or use an image that has one"));
    }
    if !process.cwd().is_absolute() {
        return Err(SpecError::invalid(
            "process.cwd",
            format!("{} is not an absolute path", process.cwd().display()),
        ));
    }
    // Profiles and labels are names in the host kernel's security modules; the guest's kernel has none, and what
    // they would protect (the host) is behind the VM's boundary.
    if let Some(profile) = process.apparmor_profile().as_ref().filter(|p| !p.is_empty()) {
        notes.push(format!("process.apparmorProfile {profile}: the host's, left out"));
    }
    if let Some(label) = process.selinux_label().as_ref().filter(|l| !l.is_empty()) {
        notes.push(format!("process.selinuxLabel {label}: the host's, left out"));
    }
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    if os == GuestOs::FreeBsd {
        jail::rewrite_process(&mut process)?;
    }
    Ok(process)
}

/// What of the hooks is the guest's: those that run in the container's root. The host's are [`super::HostHooks`].
fn guest_hooks(hooks: Option<&Hooks>) -> Result<Option<Hooks>, SpecError> {
    let Some(hooks) = hooks else { return Ok(None) };
    if let Some(hook) = hooks.create_container().as_ref().and_then(|list| list.first()) {
        return Err(SpecError::unsupported(
            "hooks.createContainer[0]",
            format!(
                "{} would have to run in the guest before the container has its root, where no programs are: \
                 createRuntime hooks run on the host, startContainer hooks in the container",
                hook.path().display()
            ),
        ));
    }
    let Some(list) = hooks.start_container().clone().filter(|list| !list.is_empty()) else { return Ok(None) };
    let mut guest = Hooks::default();
    guest.set_start_container(Some(list));
    Ok(Some(guest))
}

/// Asks the host's file system what a source is, following symbolic links.
pub fn probe_host(path: &Path) -> io::Result<(std::path::PathBuf, SourceKind)> {
    use std::os::unix::fs::FileTypeExt;
    let resolved = path.canonicalize()?;
    let kind = resolved.metadata()?.file_type();
    let kind = if kind.is_dir() {
        SourceKind::Directory
    } else if kind.is_file() {
        SourceKind::File
    } else if kind.is_socket() {
        SourceKind::Socket
    } else if kind.is_fifo() {
        SourceKind::Fifo
    } else {
        SourceKind::Device
    };
    Ok((resolved, kind))
}

#[cfg(test)]
mod tests;

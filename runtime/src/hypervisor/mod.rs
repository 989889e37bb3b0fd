//! One interface over the programs that run virtual machines.
//!
//! A driver makes a running VM out of a [`VmSpec`], which is plain data; it knows sandboxes no more than containers.
//! Drivers are in one table by name ([`driver`]); the configuration chooses.

pub mod bhyve;
mod exit;
mod log;
pub mod qemu;
mod spec;
mod tsc;

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use skep_protocol::Endpoint;

use crate::cgroup::Cgroup;
use crate::config::{Config, HypervisorKind};
use crate::journal::{Journal, JournalError};
use crate::os::ProcessIdentity;

pub use exit::{ExitCause, VmExit};
pub use spec::{ConsolePort, Disk, MacAddress, Nic, Share, SpecError, VmSpec, Vsock};

/// What a driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// [`Vm::pause`] and [`Vm::resume`].
    pub pause: bool,
    /// [`VmSpec::vsock`].
    pub vsock: bool,
}

/// Where a VM keeps its sockets and logs, and where what it holds is recorded.
#[derive(Debug, Clone)]
pub struct Place {
    /// A directory of the VM's own, mode 0700.
    pub dir: PathBuf,
    /// The network namespace in which the VMM is to live (Linux).
    pub netns: Option<Arc<OwnedFd>>,
    /// The taps of [`VmSpec::nics`], in their order, where the VMM takes descriptors.
    pub taps: Vec<Arc<OwnedFd>>,
    /// The cgroup in which the VMM and its helpers are to be (Linux).
    pub cgroup: Option<Arc<Cgroup>>,
    /// Where each process and other resource of the host is recorded before it is acquired.
    pub journal: Arc<Journal>,
}

/// What a VMM takes beside its guest's memory, MiB, with a little room to spare. Measured of QEMU 7.2: 60 MiB, with kernel
/// and initramfs in the page cache, and 45 to 57 MiB of translated code under software emulation.
const VMM_MIB: u64 = 128;

/// What a VM may come to take of its host's memory, bytes.
pub fn memory_need(spec: &VmSpec) -> u64 {
    (u64::from(spec.memory.mib()) + VMM_MIB) << 20
}

/// Says that a VM in that cgroup may be killed for want of memory, and what to do.
pub fn too_little_memory(cgroup: &Cgroup, spec: &VmSpec) -> String {
    let limit =
        cgroup.memory_limit().map_or_else(|| "no limit".to_owned(), |limit| format!("{} MiB", limit >> 20));
    format!(
        "the memory limit of cgroup {} is {limit}, and a VM of {} MiB may take {} MiB with its VMM: raise the limit, which \
         in Kubernetes is what overhead.podFixed of the pod's RuntimeClass is for",
        cgroup.path(),
        spec.memory.mib(),
        memory_need(spec) >> 20
    )
}

/// A part of a VM's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// What was done.
    pub name: &'static str,
    /// When it was over.
    pub at: Instant,
}

impl Phase {
    /// Is over now.
    fn over(name: &'static str) -> Self {
        Self { name, at: Instant::now() }
    }
}

/// A program that runs VMs.
#[async_trait]
pub trait Hypervisor: Debug + Send + Sync {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Starts a VM: when this returns, its process runs and its channels can be connected to; the guest has still to
    /// boot. On an error whatever was acquired is in the journal.
    async fn boot(&self, spec: VmSpec, place: Place) -> Result<Arc<dyn Vm>, HypervisorError>;
}

/// A VM that was started.
#[async_trait]
pub trait Vm: Debug + Send + Sync {
    /// The process that runs it.
    fn process(&self) -> ProcessIdentity;

    /// Where the agent is to be found, of the first console port or the vsock of its spec.
    fn agent_endpoint(&self) -> &Endpoint;

    /// How its instructions are run, for people: "TCG: /proc/cpuinfo has neither vmx nor svm".
    fn acceleration(&self) -> &str;

    /// The parts of its start that took this host's time, in their order.
    fn phases(&self) -> &[Phase] {
        &[]
    }

    /// Stops all virtual CPUs.
    async fn pause(&self) -> Result<(), HypervisorError>;

    /// Lets them run again.
    async fn resume(&self) -> Result<(), HypervisorError>;

    /// Ends it at once; what the guest had not written is lost. Returns when its process has ended. That it has ended
    /// already is no error.
    async fn kill(&self) -> Result<(), HypervisorError>;

    /// Returns when it has ended, for whatever reason; any number of callers.
    async fn wait(&self) -> VmExit;

    /// The last lines of the guest's console, made harmless to print.
    fn console_tail(&self) -> String;
}

/// A VM cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The spec cannot be served.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The program is not there.
    #[error("{program} not found: {hint}, or set {key} in the configuration")]
    NoProgram {
        /// The program.
        program: String,
        /// How to get it.
        hint: &'static str,
        /// The key that names it.
        key: &'static str,
    },
    /// KVM was asked for by name and does not serve.
    #[error("qemu.accel = \"kvm\": {reason}")]
    NoKvm {
        /// Why not.
        reason: String,
    },
    /// bhyve, its library or the vmm refused.
    #[error(transparent)]
    Bhyve(#[from] bhyve::BhyveError),
    /// The driver does not do this.
    #[error("{hypervisor} cannot {what}")]
    Unsupported {
        /// Which driver.
        hypervisor: &'static str,
        /// What was asked.
        what: &'static str,
    },
    /// Its record or its process failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Its process cannot be where the host counts it.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// Its process cannot be watched or signalled.
    #[error(transparent)]
    Process(#[from] crate::os::ProcessError),
    /// A socket or log cannot be made.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The monitor refused a command or did not answer.
    #[error(transparent)]
    Qmp(#[from] qemu::QmpError),
    /// It has ended.
    #[error("the VM has ended: {0}")]
    Ended(VmExit),
}

/// The driver of that name.
pub fn driver(config: &Config) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    tsc::prepare();
    match config.hypervisor {
        HypervisorKind::Qemu => Ok(Arc::new(qemu::Qemu::new(config))),
        HypervisorKind::Bhyve => Ok(Arc::new(bhyve::Bhyve::default())),
    }
}

/// Destroys a VM that a kernel keeps, by the name in its [`crate::journal::Entry::Vm`]. Blocks.
pub(crate) fn release(name: &str) -> Result<(), HypervisorError> {
    bhyve::destroy(name)?;
    Ok(())
}

/// Bytes of host memory that the guest of a VM has which a kernel keeps, by the name in its
/// [`crate::journal::Entry::Vm`]: they are not its process's. Blocks.
pub(crate) fn guest_resident_bytes(name: &str) -> Result<u64, HypervisorError> {
    Ok(bhyve::resident_bytes(name)?)
}

/// Finds a program as a shell does: a name in `PATH`, or a path.
fn find_program(program: &Path) -> Option<PathBuf> {
    find_program_in(program, &search_path())
}

/// `PATH`, or where programs usually are.
pub(crate) fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into())
}

/// Finds a program as a shell with that `PATH` does.
pub(crate) fn find_program_in(program: &Path, path: &OsStr) -> Option<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        return is_executable(program).then(|| program.to_owned());
    }
    std::env::split_paths(path).map(|dir| dir.join(program)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_does() {
        assert!(find_program(Path::new("sh")).is_some_and(|path| path.is_absolute()));
        assert_eq!(find_program(Path::new("/bin/sh")), Some("/bin/sh".into()));
        for missing in ["no-such-program-anywhere", "/bin/no-such-program", "/etc/passwd", "/bin"] {
            assert_eq!(find_program(Path::new(missing)), None, "{missing}");
        }
    }

    #[test]
    fn the_configuration_chooses_the_driver() {
        for name in ["bhyve", "qemu"] {
            let config = Config::parse(&format!("hypervisor = '{name}'"), "test").unwrap();
            assert_eq!(driver(&config).unwrap().name(), name);
        }
    }
}

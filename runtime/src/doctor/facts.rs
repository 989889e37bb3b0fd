//! What there is to judge by: plain data, the same on either system so that the judging of both can be tested on
//! either. An `Err` is why a fact could not be had.

#![allow(dead_code, reason = "each system makes its own half of these")]

use std::path::PathBuf;

use crate::config::{AccelChoice, Channel};
use crate::hypervisor::qemu::Accel;

/// Everything.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) root: bool,
    pub(super) config: ConfigFacts,
    /// What the guest's manifest says, after its files were compared with it.
    pub(super) guest: Result<String, String>,
    /// The same of the guest for FreeBSD images.
    pub(super) freebsd_guest: Result<String, String>,
    pub(super) hypervisor: HypervisorFacts,
    pub(super) memory: MemoryFacts,
    pub(super) state_dir: StateDirFacts,
    pub(super) containerd: ContainerdFacts,
    pub(super) shim: ShimFacts,
    /// Directories of sandboxes that nobody looks after.
    pub(super) leftovers: Result<usize, String>,
    pub(super) system: SystemFacts,
}

#[derive(Debug, Clone)]
pub(super) struct ConfigFacts {
    /// Where it is, or would be.
    pub(super) file: PathBuf,
    pub(super) exists: bool,
    pub(super) error: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) enum HypervisorFacts {
    Qemu(QemuFacts),
    Bhyve(BhyveFacts),
}

#[derive(Debug, Clone)]
pub(super) struct QemuFacts {
    /// As configured.
    pub(super) binary: PathBuf,
    pub(super) found: Option<PathBuf>,
    /// First line of `-version`.
    pub(super) version: Result<String, String>,
    /// What `-device help` lists.
    pub(super) devices: Result<String, String>,
    pub(super) accel_choice: AccelChoice,
    /// How instructions would be run and why.
    pub(super) accel: Result<(Accel, String), String>,
    pub(super) channel: Channel,
    /// The backend of the vsock channel, if it is there.
    pub(super) vsock_backend: Option<PathBuf>,
    pub(super) vsock_binary: PathBuf,
}

#[derive(Debug, Clone)]
pub(super) struct BhyveFacts {
    /// Whether bhyve(8) is there.
    pub(super) program: bool,
    /// Which libvmmapi was loaded.
    pub(super) library: Result<String, String>,
    pub(super) virtualisation: Virtualisation,
    /// Whether vmm.ko is loaded or in the kernel.
    pub(super) vmm: bool,
    /// vmm found the processor's nested paging; nothing while it is not loaded.
    pub(super) vmm_ready: Option<bool>,
    /// Whether /dev is a devfs.
    pub(super) devfs: Result<bool, String>,
    /// Whether bhyve(8) was built with `BHYVE_SNAPSHOT`.
    pub(super) bhyve_snapshot: Result<bool, String>,
    /// Whether the kernel's configuration has it; nothing where the kernel does not carry its configuration.
    pub(super) kernel_snapshot: Option<bool>,
}

/// What the CPU itself says of its virtualisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Virtualisation {
    /// Intel's; nested paging (EPT) shows only to a kernel.
    Vmx,
    /// AMD's, with or without nested paging (NPT).
    Svm {
        nested_paging: bool,
    },
    None,
}

#[derive(Debug, Clone)]
pub(super) struct MemoryFacts {
    pub(super) available_mib: Result<u64, String>,
    /// What a VM gets whose pod does not choose.
    pub(super) vm_mib: u64,
}

#[derive(Debug, Clone)]
pub(super) struct StateDirFacts {
    pub(super) path: PathBuf,
    /// The nearest directory above that exists, or itself.
    pub(super) existing: PathBuf,
    pub(super) fstype: Option<String>,
    pub(super) filesystem: Result<FilesystemFacts, String>,
    /// Owner and mode of the directory that holds the sandboxes, if it exists.
    pub(super) sandboxes: Option<(u32, u32)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct FilesystemFacts {
    pub(super) read_only: bool,
    pub(super) nosuid: bool,
    pub(super) free_mib: u64,
}

#[derive(Debug, Clone)]
pub(super) struct ContainerdFacts {
    pub(super) socket: PathBuf,
    /// Whether it answers on its socket.
    pub(super) listening: Result<(), String>,
    /// The program: of the process that listens, or found in the search path.
    pub(super) program: Option<PathBuf>,
    /// What it says of its version.
    pub(super) version: Option<String>,
    /// Its configuration.
    pub(super) config: PathBuf,
    /// Whether its CRI plugin knows a runtime of ours by name. Nothing if there is no such file.
    pub(super) registered: Result<Option<bool>, String>,
}

#[derive(Debug, Clone)]
pub(super) struct ShimFacts {
    pub(super) found: Option<PathBuf>,
    /// Where containerd looks, for people.
    pub(super) searched: String,
    /// Whether that is the search path of the running containerd, or just our own.
    pub(super) of_containerd: bool,
}

#[derive(Debug, Clone)]
pub(super) enum SystemFacts {
    Linux(LinuxFacts),
    FreeBsd(FreeBsdFacts),
}

#[derive(Debug, Clone)]
pub(super) struct LinuxFacts {
    /// `ID` and `ID_LIKE` of os-release(5).
    pub(super) distribution: Vec<String>,
    /// What networks need: module and whether the kernel has it.
    pub(super) modules: Vec<(&'static str, Module)>,
    pub(super) ip_forward: Option<bool>,
    pub(super) cgroup: Cgroup,
}

/// Whether a Linux kernel can do what a module does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Module {
    /// Loaded or built in.
    Present,
    /// On disk.
    Loadable,
    /// Neither.
    Absent,
    /// Nothing on this machine says.
    Unknown,
}

/// How the host's control groups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cgroup {
    V2,
    Hybrid,
    V1,
    None,
}

#[derive(Debug, Clone)]
pub(super) struct FreeBsdFacts {
    /// `kern.osreldate`.
    pub(super) osreldate: Option<u64>,
    /// Kernel modules by name, and whether they are loaded.
    pub(super) modules: Vec<(&'static str, bool)>,
    /// sysctls by name; nothing where there is no such.
    pub(super) sysctls: Vec<(&'static str, Option<u64>)>,
    pub(super) pf: Result<PfFacts, String>,
}

#[derive(Debug, Clone)]
pub(super) struct PfFacts {
    pub(super) enabled: bool,
    /// Whether the main ruleset refers to our anchors.
    pub(super) anchor: bool,
    /// `set limit anchors`.
    pub(super) anchors: Option<u64>,
}

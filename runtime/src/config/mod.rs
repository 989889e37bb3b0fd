//! The configuration file, and what a pod may choose by annotation.
//!
//! One TOML file; every key is documented in `packaging/config.toml`. Everything is parsed into types here, once:
//! whoever holds a [`Config`] holds values that make sense.

mod load;
mod options;
mod values;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use load::ConfigError;
pub use options::{AnnotationError, HostSize, OwnLimits, PodOptions};
pub use values::{Interfaces, Memory, RootfsMode, Seconds, Vcpus};

use crate::guest::GuestOs;
use values::StateDir;

/// All that can be configured. [`Config::default`] is what holds where no file says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where sandboxes keep their directories; short, since unix sockets live below it.
    pub state_dir: StateDir,
    /// Which driver of [`crate::hypervisor`] runs the VMs.
    pub hypervisor: HypervisorKind,
    /// What is logged.
    pub log: Log,
    /// What a sandbox gets that does not choose, and the most it may choose.
    pub sandbox: Sandbox,
    /// Networks of sandboxes that come without one.
    pub network: Network,
    /// What VMs boot.
    pub guest: Guest,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// The QEMU driver.
    pub qemu: Qemu,
    /// Containers.
    pub container: Container,
    /// The agent in the guest.
    pub agent: Agent,
}

/// A hypervisor driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorKind {
    /// QEMU, as a process for each VM.
    Qemu,
    /// bhyve(8), on FreeBSD.
    Bhyve,
}

impl HypervisorKind {
    /// The name it has in the configuration and in the table of drivers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Bhyve => "bhyve",
        }
    }
}

impl Default for HypervisorKind {
    fn default() -> Self {
        if cfg!(target_os = "freebsd") { Self::Bhyve } else { Self::Qemu }
    }
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The least severe level that is written.
    pub level: LogLevel,
}

/// Severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// What may fail soon.
    Warn,
    /// What happened.
    #[default]
    Info,
    /// How it happened.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word for it, as `tracing` and the agent take it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// `[sandbox]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sandbox {
    /// Virtual CPUs of a VM whose pod does not choose.
    pub vcpus: Vcpus,
    /// Memory of a VM whose pod does not choose.
    pub memory_mib: Memory,
    /// Network devices of a VM whose network is made after it and whose pod does not choose.
    pub interfaces: Interfaces,
    /// The most virtual CPUs a pod may choose.
    pub max_vcpus: Vcpus,
    /// The most memory a pod may choose.
    pub max_memory_mib: Memory,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            vcpus: Vcpus::DEFAULT,
            memory_mib: Memory::DEFAULT,
            interfaces: Interfaces::DEFAULT,
            max_vcpus: Vcpus::MOST,
            max_memory_mib: Memory::MOST,
        }
    }
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Whether CNI plugins are called where nobody made a network.
    pub cni: CniMode,
    /// Directories of network configurations.
    pub conf_dirs: Vec<PathBuf>,
    /// Directories of plugins.
    pub bin_dirs: Vec<PathBuf>,
    /// Networks of a pod that does not choose; empty: the one of the first file.
    pub networks: Vec<String>,
}

/// Whether CNI plugins are called where nobody made a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CniMode {
    /// Never.
    Off,
    /// Where there is a configuration.
    Auto,
    /// Always; that there is no configuration is an error.
    Required,
}

impl Default for Network {
    fn default() -> Self {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        if cfg!(target_os = "freebsd") {
            Self {
                // Nobody else calls them there.
                cni: CniMode::Auto,
                conf_dirs: paths(&["/usr/local/etc/cni/net.d", "/etc/cni/net.d"]),
                bin_dirs: paths(&["/usr/local/libexec/cni", "/opt/cni/bin"]),
                networks: Vec::new(),
            }
        } else {
            Self {
                cni: CniMode::Off,
                conf_dirs: paths(&["/etc/cni/net.d"]),
                bin_dirs: paths(&["/opt/cni/bin", "/usr/lib/cni"]),
                networks: Vec::new(),
            }
        }
    }
}

/// `[guest]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guest {
    /// Directory with a Linux guest's kernel, initramfs and manifest, as `cargo xtask guest` builds it.
    pub dir: PathBuf,
    /// Directory with a FreeBSD guest's kernel, root and manifest, as `cargo xtask freebsd guest` builds it.
    pub freebsd_dir: PathBuf,
}

impl Guest {
    /// Where the guest of that system is.
    pub fn dir_of(&self, os: GuestOs) -> &Path {
        match os {
            GuestOs::Linux => &self.dir,
            GuestOs::FreeBsd => &self.freebsd_dir,
        }
    }
}

impl Default for Guest {
    fn default() -> Self {
        let prefix = Path::new(if cfg!(target_os = "freebsd") { "/usr/local" } else { "/usr" });
        Self {
            dir: prefix.join("share/skep/guest/linux"),
            freebsd_dir: prefix.join("share/skep/guest/freebsd"),
        }
    }
}

/// `[timeouts]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From the start of the VM to the agent's first answer.
    pub boot_s: Seconds,
    /// One call to the agent.
    pub call_s: Seconds,
    /// From asking the guest to power off until it is killed.
    pub stop_s: Seconds,
    /// One call of a CNI plugin.
    pub cni_s: Seconds,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            boot_s: Seconds::new(60),
            call_s: Seconds::new(30),
            stop_s: Seconds::new(5),
            // Those that ask others for an address wait for an answer.
            cni_s: Seconds::new(90),
        }
    }
}

/// `[qemu]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Qemu {
    /// The program: a name looked up in `PATH`, or a path.
    pub binary: PathBuf,
    /// How guest instructions are run.
    pub accel: AccelChoice,
    /// The vhost-user backend that `agent.channel = "vsock"` needs: a name looked up in `PATH`, or a path.
    pub vhost_device_vsock: PathBuf,
}

impl Default for Qemu {
    fn default() -> Self {
        Self {
            binary: "qemu-system-x86_64".into(),
            accel: AccelChoice::Auto,
            vhost_device_vsock: "vhost-device-vsock".into(),
        }
    }
}

/// How QEMU is to run guest instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM where it runs ordinary guests, else TCG.
    #[default]
    Auto,
    /// KVM, or an error that says why not.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// `[container]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Container {
    /// How a container's root is made whose pod does not choose.
    pub rootfs: RootfsMode,
}

/// `[agent]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// The byte channel between host and guest.
    pub channel: Channel,
    /// What the agent writes to the guest's console.
    pub log: LogLevel,
}

impl Default for Agent {
    fn default() -> Self {
        Self { channel: Channel::Console, log: LogLevel::Warn }
    }
}

/// A byte channel between host and guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// A virtio-console port.
    #[default]
    Console,
    /// A virtio socket.
    Vsock,
}

//! What a sandbox can hold.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cgroup::CgroupPath;
use crate::os::ProcessIdentity;

/// Role of a process that writes down a container's output. It ends by itself when what it reads ends, and is given the
/// time to write the last of it.
pub const LOGGER: &str = "logger";

/// Role of the process that runs a VM.
pub const VMM: &str = "vmm";

/// A host resource, with all that is needed to undo it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    /// A process; undone by SIGKILL. All processes are undone first, since they use the rest.
    Process {
        /// What it does: "vmm".
        role: String,
        /// Which one.
        process: ProcessIdentity,
    },
    /// A VM that the system's kernel keeps, whether a process runs it or not (bhyve's); undone by destroying it, after
    /// all processes.
    Vm {
        /// Its name in the kernel.
        name: String,
    },
    /// Whatever is mounted on a place; undone by unmounting it. The place itself stays.
    Mount {
        /// Where.
        target: PathBuf,
    },
    /// An interface of a network namespace that is not the sandbox's own, taken over for its VM; undone by giving it
    /// back. The namespace may be gone, and its interfaces with it.
    Redirect {
        /// The namespace.
        netns: PathBuf,
        /// Its name there.
        interface: String,
    },
    /// A tap of the sandbox's VM (FreeBSD); undone by removing it, after the VM, which has it open.
    Tap {
        /// Its name.
        name: String,
        /// The one it was made under, from which it is renamed at once.
        first: String,
        /// The vnet jail it was moved to.
        jail: Option<String>,
    },
    /// A jail that is nothing but a network stack (FreeBSD); undone by removing it.
    Jail {
        /// Its name.
        name: String,
    },
    /// An interface that CNI plugins were asked to make; undone by asking them to remove it.
    Cni {
        /// What they are told.
        attachment: Box<CniAttachment>,
    },
    /// A cgroup that was made for the sandbox's processes; undone by removing it, after these. Its parents stay.
    Cgroup {
        /// Which.
        path: CgroupPath,
    },
    /// A directory outside of the sandbox's own, that is removed with all that is in it but never across a mount.
    Directory {
        /// Which.
        path: PathBuf,
    },
    /// A file, unix socket or fifo outside of the sandbox's directory; undone by unlinking it.
    File {
        /// Which.
        path: PathBuf,
    },
}

/// An interface that CNI plugins make, with all that they have to be told to remove it. The terms are those of the CNI
/// specification.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CniAttachment {
    /// The network configuration list, as it was at ADD.
    pub list: Value,
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_NETNS`
    pub netns: String,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `CNI_ARGS`
    pub args: String,
    /// What plugins get as `runtimeConfig` if they have the capability.
    pub capabilities: Map<String, Value>,
    /// `CNI_PATH`
    pub path: Vec<PathBuf>,
    /// How long a plugin may take, in seconds.
    pub limit_s: u64,
    /// What ADD answered, once it has.
    pub result: Option<Value>,
}

impl Entry {
    /// Whether it is still there after a power cut, so that its record must be, too.
    pub(super) fn outlives_the_kernel(&self) -> bool {
        match self {
            Self::Process { .. }
            | Self::Vm { .. }
            | Self::Mount { .. }
            | Self::Redirect { .. }
            | Self::Tap { .. }
            | Self::Jail { .. }
            | Self::Cgroup { .. } => false,
            // Plugins write down who has which address.
            Self::Cni { .. } | Self::Directory { .. } | Self::File { .. } => true,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { role, process } => write!(f, "{role} process {}", process.pid),
            Self::Vm { name } => write!(f, "VM {name}"),
            Self::Mount { target } => write!(f, "mount on {}", target.display()),
            Self::Redirect { netns, interface } => {
                write!(f, "interface {interface} of the network namespace {}", netns.display())
            }
            Self::Tap { name, .. } => write!(f, "tap {name}"),
            Self::Jail { name } => write!(f, "jail {name}"),
            Self::Cni { attachment } => {
                let network = attachment.list.get("name").and_then(Value::as_str).unwrap_or("?");
                write!(f, "interface {} on the CNI network {network}", attachment.ifname)
            }
            Self::Cgroup { path } => write!(f, "cgroup {path}"),
            Self::Directory { path } => write!(f, "directory {}", path.display()),
            Self::File { path } => write!(f, "file {}", path.display()),
        }
    }
}

/// Names a record in its journal; never used twice there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct EntryId(pub(super) u64);

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

//! What a sandbox can hold.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::os::ProcessIdentity;

/// Role of a process that writes down a container's output. It ends by itself when what it reads ends, and is given the
/// time to write the last of it.
pub const LOGGER: &str = "logger";

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

impl Entry {
    /// Whether it is still there after a power cut, so that its record must be, too.
    pub(super) fn outlives_the_kernel(&self) -> bool {
        match self {
            Self::Process { .. } | Self::Vm { .. } | Self::Mount { .. } | Self::Redirect { .. } => false,
            Self::Directory { .. } | Self::File { .. } => true,
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

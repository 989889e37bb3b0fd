//! Calling CNI plugins for sandboxes that come without a network.
//!
//! Who wants which network is decided in [`choose`]; [`NetworkList`] says what each plugin of a list is told, which is
//! pure; `client` runs them. What ADD was told is in the sandbox's journal before the first plugin runs, so that
//! whoever comes can undo it by DEL.
//!
//! Source of facts: the CNI specification 1.1.0, and its `CONVENTIONS.md` for capabilities.

mod annotations;
mod client;
mod directory;
mod interface;
mod list;
mod request;

use std::path::PathBuf;

use crate::config::AnnotationError;
use crate::journal::{JournalError, ProgramError};

pub(crate) use client::{add, undo};
pub use client::{check, delete};
pub use directory::{find, first};
#[cfg(target_os = "freebsd")]
pub(in crate::network) use interface::address;
pub(crate) use interface::{Resolver, interface};
pub use list::{ListError, NetworkList};
pub use request::{CniRequest, choose};

/// A network cannot be had from CNI plugins.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// An annotation makes no sense.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// A sandbox with a network of its caller's cannot have others.
    #[error("annotation {key}: the container's specification names a network namespace already")]
    Twice {
        /// The annotation.
        key: &'static str,
    },
    /// Plugins are not to be called.
    #[error("annotation {key}: network.cni is \"off\" in the configuration")]
    Off {
        /// The annotation.
        key: &'static str,
    },
    /// No such network.
    #[error("there is no CNI network {name} in {}", shown(dirs))]
    NoNetwork {
        /// Its name.
        name: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// No network at all.
    #[error("network.cni is \"required\", and there is no CNI configuration in {}", shown(dirs))]
    NoConfiguration {
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// A configuration cannot be read.
    #[error("cannot read the CNI configuration {}: {source}", path.display())]
    Read {
        /// File or directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A configuration makes no sense.
    #[error("CNI configuration {}: {source}", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ListError,
    },
    /// A name that plugins would refuse.
    #[error(
        "container id `{id}` cannot be told to CNI plugins: a letter or digit, then those, `_`, `.` and `-`"
    )]
    ContainerId {
        /// The id.
        id: String,
    },
    /// The plugin is not there.
    #[error(
        "CNI network {network}: plugin {plugin} is not in {}: install it, or see network.bin_dirs in the configuration",
        shown(dirs)
    )]
    NoPlugin {
        /// The network.
        network: String,
        /// The plugin.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// The plugin could not be run to its end.
    #[error("CNI network {network}: {command} of plugin {plugin}: {source}")]
    Program {
        /// The network.
        network: String,
        /// What was asked.
        command: &'static str,
        /// The plugin.
        plugin: String,
        /// What went wrong.
        source: ProgramError,
    },
    /// The plugin refused.
    #[error("CNI network {network}: {command} of plugin {plugin}: {message} (code {code})")]
    Refused {
        /// The network.
        network: String,
        /// What was asked.
        command: &'static str,
        /// The plugin.
        plugin: String,
        /// Its error's number; 0 if it gave none.
        code: u64,
        /// Its words.
        message: String,
    },
    /// What came out makes no sense.
    #[error("CNI network {network}: the result of plugin {plugin}: {reason}")]
    Result {
        /// The network.
        network: String,
        /// The plugin.
        plugin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The record of a network in a journal makes no sense.
    #[error("the CNI configuration in the journal: {0}")]
    Record(ListError),
    /// Its record cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Several things went wrong, all of which were tried.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<CniError>),
    /// The work was not done.
    #[error("CNI plugins could not be called: {0}")]
    Interrupted(String),
}

fn shown(dirs: &[PathBuf]) -> String {
    if dirs.is_empty() {
        return "no directory at all".into();
    }
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl CniError {
    /// One error of several; none if there are none.
    fn collect(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// Whether the caller asked for something that cannot be, rather than this host failing.
    pub fn is_callers(&self) -> bool {
        matches!(
            self,
            Self::Annotation(_) | Self::Twice { .. } | Self::NoNetwork { .. } | Self::ContainerId { .. }
        )
    }
}

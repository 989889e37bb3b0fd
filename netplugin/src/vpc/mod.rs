//! `skep net`: a network declared once for several hosts, and brought to each of them.
//!
//! A [`Declaration`] is one file, the same on every node. From it follows what a node needs: its links (by
//! [`crate::vxlan`]), addresses of its own that no other node gives out ([`Declaration::ranges`]), and the CNI
//! configuration that runtimes read ([`conflist()`]). [`Directory`] keeps the
//! files, [`mod@sync`] carries them by ssh.

mod check;
mod conflist;
mod declaration;
mod destination;
mod files;
mod groups;
mod known;
mod nodes;
mod ranges;
pub mod sync;
#[cfg(test)]
mod testing;

pub use conflist::{conflist, plugin_config};
pub use declaration::{Declaration, Group, Member};
pub use destination::SshDestination;
pub(crate) use files::host_addresses;
pub use files::{Directory, InstallError, Installed};
pub use groups::default_max_groups;
pub use nodes::NewNode;
pub use ranges::{Block, default_max_nodes};

use std::path::PathBuf;

use crate::cni::ConfigError;
use crate::network::StateError;
use crate::vxlan::VpcError;

/// Why a declaration, or what was asked of it, is not usable.
#[derive(Debug, thiserror::Error)]
pub enum DeclarationError {
    /// A field breaks a rule.
    #[error("{field}: {why}")]
    Field {
        /// Where in the declaration.
        field: String,
        /// Which rule.
        why: String,
    },
    /// Not JSON, or a field of the wrong kind.
    #[error("{field}: {why}")]
    Json {
        /// Where in the declaration.
        field: String,
        /// What the parser says.
        why: String,
    },
    /// The part about VXLAN.
    #[error(transparent)]
    Vpc(#[from] VpcError),
    /// `config`, together with what follows from the rest.
    #[error("config: {0}")]
    Config(#[from] ConfigError),
    /// Nothing of that name is declared here.
    #[error("no network `{name}` is declared in {} (skep net create, or copy its file there)", .dir.display())]
    Missing {
        /// The network.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// It is declared already.
    #[error("{} is there already: change it by `skep net node` or `skep net group`, or remove it by `skep net delete`", .0.display())]
    Exists(PathBuf),
    /// What is here is newer, or another change of the same.
    #[error("network `{name}` is here in revision {here}, not changed to {offered}: {why}")]
    Revision {
        /// The network.
        name: String,
        /// What is installed.
        here: u64,
        /// What was to be installed.
        offered: u64,
        /// Why it was not.
        why: &'static str,
    },
    /// This host is no node, or not the one it was said to be.
    #[error("network `{network}`: {why}")]
    NotANode {
        /// The network.
        network: String,
        /// What does not fit.
        why: String,
    },
    /// The files.
    #[error(transparent)]
    Files(#[from] StateError),
}

fn wrong(field: impl Into<String>, why: impl Into<String>) -> DeclarationError {
    DeclarationError::Field { field: field.into(), why: why.into() }
}

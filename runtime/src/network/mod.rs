//! The sandbox's network.
//!
//! On Linux the VMM lives in a network namespace: the one that the caller names, or one of the sandbox's own, which
//! others find by the VMM's pid and put interfaces into (CNI by an OCI hook, `ctr --cni`, Docker). When the first
//! container starts, [`Network::take`] reads what is there and takes each interface over: a frame that arrives at it
//! goes to a tap of the VM and the other way round, and the guest gets the interface's name, Ethernet address, MTU, IP
//! addresses, routes and static neighbours. Whoever made the interface sees no difference to a process in the
//! namespace.
//!
//! On FreeBSD a vnet jail that the caller names is what a namespace is on Linux, and netgraph(4) moves the frames.
//!
//! Where nobody makes a network, and configuration or annotations say so, CNI plugins are called ([`cni`]), while the VM
//! boots. On Linux they find a namespace; on FreeBSD Skep's own takes a tap of the VM, others find a jail.
//!
//! The VM has its network devices from its start, since not every VMM can add one later: as many as the namespace has
//! interfaces by then, or as configuration and annotations say. What is not needed the agent takes away.
//!
//! What to take is decided in `plan`, which is pure.

mod attachments;
pub mod cni;
#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;
mod plan;
mod sandbox;
mod traffic;

use std::io;
use std::path::{Path, PathBuf};

#[cfg(target_os = "freebsd")]
use freebsd as system;
#[cfg(target_os = "linux")]
use linux as system;

use cni::CniRequest;
pub use sandbox::Network;
/// A sandbox's network as its guest is told of it.
pub use skep_protocol::api::Network as GuestNetwork;
pub(crate) use system::{release, remove_jail, remove_tap};
pub use traffic::{Count, Traffic};

/// Where a sandbox's network is to come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NetworkRequest {
    /// From nowhere yet: the sandbox gets a place where others may put interfaces.
    #[default]
    Own,
    /// There shall be none.
    Nothing,
    /// From the network namespace at this path (Linux), or the vnet jail of this name (FreeBSD).
    Join(PathBuf),
    /// From CNI plugins.
    Cni(Box<CniRequest>),
}

/// A network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace.
    #[error("network namespace {}: {reason}", path.display())]
    Namespace {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The VM has fewer devices than there are interfaces.
    #[error(
        "the sandbox's network has {} interfaces ({}), the VM has room for {room}: annotation \
         org.skep.interfaces = \"{}\" makes more",
        names.len(), names.join(", "), names.len()
    )]
    Room {
        /// The interfaces.
        names: Vec<String>,
        /// How many devices the VM has.
        room: usize,
    },
    /// Another VM lives there.
    #[error(
        "network namespace {}: another microVM has it, and two kernels can't share an interface: put the containers \
         into one pod", .0.display()
    )]
    OfAnother(PathBuf),
    /// An interface that no VM can have.
    #[error("interface {name} is not an Ethernet one: a microVM can't take it over")]
    Kind {
        /// Which.
        name: String,
    },
    /// Somebody has it.
    #[error(
        "interface {name} has an ingress queue already: another sandbox has taken it over, or a filter is on it"
    )]
    InUse {
        /// Which.
        name: String,
    },
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// Why not.
        source: io::Error,
    },
    /// Its record.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// CNI plugins.
    #[error(transparent)]
    Cni(#[from] cni::CniError),
}

impl NetworkError {
    fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::System { action, source }
    }
}

/// Where connections to the loopback addresses of a sandbox's network namespace arrive.
#[derive(Debug)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "made where there are network namespaces"))]
pub(crate) struct Loopback {
    /// One for IPv4, one for IPv6 where there is that. A socket they accept has the port that was dialled as its own.
    pub(crate) listeners: Vec<std::net::TcpListener>,
    /// What brings the connections to them, while it lives.
    pub(crate) steering: Box<dyn std::any::Any + Send + Sync>,
}

/// An interface of a network namespace that was taken over, for the journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken<'a> {
    /// The namespace.
    pub(crate) netns: &'a Path,
    /// Its name there.
    pub(crate) interface: &'a str,
}

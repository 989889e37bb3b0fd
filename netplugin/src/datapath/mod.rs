//! The operating system's part: bridges, interfaces, packet filters.
//!
//! [`Datapath`] is the boundary. Everything above it is plain data; below it is netlink and nftables
//! (`linux`), or ifconfig's ioctls and pf (`freebsd`).

// What needs no kernel of FreeBSD's is tested everywhere.
#[cfg(any(target_os = "freebsd", test))]
mod freebsd;
mod judge;
#[cfg(target_os = "linux")]
pub mod linux;

#[cfg(target_os = "freebsd")]
pub use freebsd::{Host, Watch};
#[cfg(target_os = "linux")]
pub use linux::{Host, Watch};

use std::net::IpAddr;

use serde::Serialize;

use crate::cni::{Interface, Route};
use crate::dhcp::Line;
use crate::mac::Mac;
use crate::network::{Attachment, HostState, Kind, Network, StateError};
use crate::vxlan::VpcError;

/// Why the operating system's part failed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel refused.
    #[error("cannot {what}: {error}")]
    Kernel {
        /// What was tried, with its operand.
        what: String,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// The kernel answered with something that makes no sense.
    #[error("{what}: unexpected answer from the kernel: {why}")]
    Answer {
        /// What was asked.
        what: String,
        /// What is odd.
        why: String,
    },
    /// The container's network namespace is gone or never was.
    #[error("network namespace {path}: {why}")]
    Netns {
        /// Where it should be.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something of the host stands in the way.
    #[error("{0}")]
    Conflict(String),
    /// This system cannot do it.
    #[error("{what}: {why}")]
    Unsupported {
        /// What was wanted.
        what: String,
        /// Why not.
        why: String,
    },
    /// A VPC's declaration does not fit this host.
    #[error(transparent)]
    Vpc(#[from] VpcError),
    /// The records needed to restore rules cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
}

#[cfg(target_os = "freebsd")]
impl From<skep_ifnet::Error> for DatapathError {
    fn from(error: skep_ifnet::Error) -> Self {
        match error {
            skep_ifnet::Error::Kernel { what, error } => Self::Kernel { what, error },
            skep_ifnet::Error::Jail { name, why } => Self::Netns { path: name, why },
            skep_ifnet::Error::Inside(what) => Self::Conflict(what),
            skep_ifnet::Error::Unsupported { what, why } => Self::Unsupported { what, why },
        }
    }
}

impl DatapathError {
    /// Whether the container is gone.
    pub fn is_netns_gone(&self) -> bool {
        matches!(self, Self::Netns { .. })
    }
}

/// What an interface carried and what was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Frames the sandbox sent.
    pub sent_packets: u64,
    /// Bytes the sandbox sent.
    pub sent_bytes: u64,
    /// Frames delivered to it.
    pub received_packets: u64,
    /// Bytes delivered to it.
    pub received_bytes: u64,
    /// Frames with a source that is not the sandbox's.
    pub spoofed_packets: u64,
    /// Flows it tried to open and may not (packets).
    pub denied_out_packets: u64,
    /// Flows others tried to open to it and may not (packets).
    pub denied_in_packets: u64,
}

/// What a chained plugin must know of the interface another one made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// The host's end.
    pub host_ifname: String,
    /// The bridge it is on.
    pub bridge: String,
    /// The container's end.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
}

/// Something of ours on the host that no record speaks of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", content = "name", rename_all = "camelCase")]
pub enum Orphan {
    /// An interface or a bridge.
    Interface(String),
    /// A chain (nftables) or an anchor (pf).
    Rules(String),
    /// An address that is taken in a network's file, by nobody.
    Address(String),
}

impl std::fmt::Display for Orphan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "interface {name}"),
            Self::Rules(name) => write!(f, "packet filter rules {name}"),
            Self::Address(name) => write!(f, "address {name}"),
        }
    }
}

/// The operating system's part.
pub trait Datapath {
    /// Whether an attachment could be made on this host now: what STATUS reports.
    fn ready(&self) -> Result<(), DatapathError>;

    /// Fills in what only the host knows of a network that was never made: whether the bridge is there already, the
    /// MTU that the underlay carries (where `mtu` is 0), the links to other hosts. Changes nothing.
    fn prepare(&self, network: &mut Network) -> Result<(), DatapathError>;

    /// Checks that nothing of the host stands in the way of a network, and of an attachment to it. Changes nothing.
    fn validate(&self, network: &Network, attachment: Option<&Attachment>) -> Result<(), DatapathError>;

    /// Finds what another plugin made, by the interfaces of its result. Changes nothing.
    fn find_existing(
        &self,
        interfaces: &[Interface],
        netns: &str,
        ifname: &str,
    ) -> Result<Existing, DatapathError>;

    /// Makes the network's bridge, links and rules, where they are not there yet, in place of `earlier`'s. `state` is
    /// asked for only when all rules must be made anew (there were none, or somebody removed them); it must have this
    /// network.
    fn ensure_network(
        &self,
        network: &Network,
        earlier: Option<&Network>,
        state: &dyn Fn() -> Result<HostState, StateError>,
    ) -> Result<(), DatapathError>;

    /// Makes all rules anew if they are not there (somebody flushed the ruleset); true if they were not.
    fn restore(&self, state: &dyn Fn() -> Result<HostState, StateError>) -> Result<bool, DatapathError>;

    /// Removes what [`Datapath::ensure_network`] made; `last` when no other network is left.
    fn remove_network(&self, network: &Network, last: bool) -> Vec<DatapathError>;

    /// Makes the sandbox's rules, then its interface. Nothing passes before the rules are in place.
    fn attach(&self, network: &Network, attachment: &Attachment) -> Result<(), DatapathError>;

    /// Whether an attachment may get its addresses after its interface ([`Datapath::give_addresses`]).
    fn takes_addresses_later(&self) -> bool {
        false
    }

    /// Gives the addresses and routes of an attachment to its interface, which [`Datapath::attach`] made without any, and
    /// makes the rules that go with them: the rules first.
    fn give_addresses(&self, _network: &Network, attachment: &Attachment) -> Result<(), DatapathError> {
        Err(DatapathError::Unsupported {
            what: format!("addresses for {} after it was made", attachment.host_ifname),
            why: "not on this system".to_owned(),
        })
    }

    /// Whether leases of addresses are asked for by [`Datapath::dhcp_line`], and not by another plugin.
    fn is_dhcp_client(&self) -> bool {
        false
    }

    /// The way to the DHCP servers of a network, for an attachment that is made.
    fn dhcp_line(&self, _network: &Network, attachment: &Attachment) -> Result<Box<dyn Line>, DatapathError> {
        Err(DatapathError::Unsupported {
            what: format!("asking by DHCP for {}", attachment.host_ifname),
            why: "on this system another plugin does".to_owned(),
        })
    }

    /// Takes a sandbox's addresses from it, or gives them back, as [`Attachment::lapsed`] says: in its rules alone.
    fn follow_lease(&self, _network: &Network, attachment: &Attachment) -> Result<(), DatapathError> {
        Err(DatapathError::Unsupported {
            what: format!("the lease of {}", attachment.host_ifname),
            why: "on this system another plugin has it".to_owned(),
        })
    }

    /// Gives a sandbox other routes in place of those it was given: whether that can be done. A VM has its routes inside, where
    /// nobody but its runtime reaches them.
    fn change_routes(&self, _attachment: &Attachment, _routes: &[Route]) -> Result<bool, DatapathError> {
        Ok(false)
    }

    /// Undoes [`Datapath::attach`], as much of it as there is. Goes on after an error.
    fn detach(&self, network: Option<&Network>, attachment: &Attachment) -> Vec<DatapathError>;

    /// What differs from what [`Datapath::attach`] made.
    fn check(&self, network: &Network, attachment: &Attachment) -> Result<Vec<String>, DatapathError>;

    /// Replaces the rules of a sandbox at once, and ends live flows that the new ones forbid. Makes all rules anew
    /// first if somebody removed them: `state` is asked for only then.
    fn update_policy(
        &self,
        network: &Network,
        attachment: &Attachment,
        state: &dyn Fn() -> Result<HostState, StateError>,
        members: &dyn Fn(&crate::policy::GroupName, IpAddr) -> bool,
    ) -> Result<(), DatapathError>;

    /// What has our names and is in no record. The lock is held, `state` was read under it.
    fn orphans(&self, state: &HostState) -> Result<Vec<Orphan>, DatapathError>;

    /// Removes what [`Datapath::orphans`] found. The lock is still held. Goes on after an error.
    fn remove_orphans(&self, orphans: &[Orphan], state: &HostState) -> Vec<DatapathError>;

    /// What tells the namespace that `CNI_NETNS` names from any other that comes by the same path later; none where the
    /// system has no such thing.
    fn netns_cookie(&self, _netns: &str) -> Result<Option<u64>, DatapathError> {
        Ok(None)
    }

    /// Whether an attachment's container is still there.
    fn netns_lives(&self, attachment: &Attachment) -> bool;

    /// What the host's end is for a container that `CNI_NETNS` names.
    fn kind_for(&self, netns: &str) -> Kind;

    /// The Ethernet address of an interface of the host. None if it has none, or there is no such interface.
    fn mac(&self, ifname: &str) -> Result<Option<Mac>, DatapathError>;

    /// What an interface carried: packets and bytes received, then sent. None if there is no such interface.
    fn carried(&self, ifname: &str) -> Result<Option<[u64; 4]>, DatapathError>;

    /// What a sandbox's interface carried.
    fn counters(&self, attachment: &Attachment) -> Result<Counters, DatapathError>;
}

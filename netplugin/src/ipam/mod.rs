//! Who has which address.
//!
//! The `skep` allocator hands out addresses of ranges written in the configuration. What is taken is a sparse
//! bitmap per subnet ([`Used`]), kept in one small file; the truth behind it are the attachments' own records,
//! from which it can be rebuilt. Any other `ipam.type` is a plugin found in `CNI_PATH` and called as the CNI
//! specification says.

mod allocator;
mod bitmap;
mod config;
mod delegate;

pub use allocator::{Allocator, Lease, Used};
pub use bitmap::Bitmap;
pub use config::{IpamConfig, OwnIpam, Range};
pub(crate) use config::{address, number};
pub use delegate::delegate;

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// `ipam` is not usable.
    #[error("{field}: {why}")]
    Config {
        /// Where in the configuration.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// Every address of a range set is taken.
    #[error(
        "no free address left in {}{}",
        subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        group.as_ref().map(|group| format!(" for group `{group}`")).unwrap_or_default()
    )]
    Exhausted {
        /// The subnets of the ranges.
        subnets: Vec<IpNet>,
        /// The group, if they are one's.
        group: Option<String>,
    },
    /// A group without ranges.
    #[error("ipam.groups: has no ranges for group `{0}`, so it has no addresses on this host")]
    NoRanges(String),
    /// An address that is not of the sandbox's group.
    #[error("{0}")]
    Group(String),
    /// An address asked for is in no range.
    #[error("address {0} is in no range of this network")]
    OutOfRange(IpAddr),
    /// An address asked for is taken or reserved.
    #[error("address {0} is taken or reserved")]
    Taken(IpAddr),
    /// The delegated plugin is in no directory of `CNI_PATH`.
    #[error("ipam.type: there is no plugin `{0}` in CNI_PATH")]
    PluginMissing(String),
    /// The delegated plugin said no.
    #[error("ipam plugin {plugin}: {message}")]
    Delegate {
        /// Its name.
        plugin: String,
        /// Its error code.
        code: u32,
        /// Its message.
        message: String,
    },
    /// The delegated plugin could not be run, or did not do its part.
    #[error("ipam plugin {}: {why}", .plugin.display())]
    Exec {
        /// The file.
        plugin: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// A chained plugin must hand us addresses.
    #[error("there are no addresses: neither `ipam` nor `prevResult` has any")]
    NoAddress,
}

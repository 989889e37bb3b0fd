//! Another network namespace and its settings, with errors that say what was tried.

use skep_netlink::NetnsError;
pub(super) use skep_netlink::{Netns, sysctl};

use super::netlink::kernel;
use crate::datapath::DatapathError;

impl From<NetnsError> for DatapathError {
    fn from(error: NetnsError) -> Self {
        Self::Netns { path: error.path.display().to_string(), why: error.why }
    }
}

/// Writes a setting of the calling thread's network namespace. One that the kernel does not have (IPv6 is not
/// built in, or off) is none of ours.
pub(super) fn set_sysctl(name: &str, value: &str) -> Result<(), DatapathError> {
    skep_netlink::set_sysctl(name, value).map_err(|error| kernel(format!("set {name} to {value}"), error))
}

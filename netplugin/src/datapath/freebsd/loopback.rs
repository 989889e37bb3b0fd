//! What published ports take of the loopback, for processes of the host itself: see [`super::pf::published`].

use ipnet::IpNet;
use skep_ifnet::{Control, need, route};

use super::pf::published::from_host;
use crate::datapath::DatapathError;

/// The loopback of every network stack.
const LOOPBACK: &str = "lo0";

/// Gives the addresses that such flows come from a route to the loopback, and has packets leave it with checksums: they may
/// go on to a sandbox. Fine if it is so.
pub(super) fn ensure(control: &Control) -> Result<(), DatapathError> {
    control.make_loopback_checksums(LOOPBACK)?;
    let index = need(LOOPBACK)?.index;
    for ipv6 in [false, true] {
        match route::add(index, IpNet::from(from_host(ipv6)), None) {
            // A stack without IPv6 has nobody who could ask by it.
            Err(error) if matches!(error.errno(), Some(libc::EEXIST | libc::EAFNOSUPPORT)) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Removes the routes. Goes on after an error.
pub(super) fn remove() -> Vec<DatapathError> {
    [false, true]
        .into_iter()
        .filter_map(|ipv6| route::delete_host(from_host(ipv6)).err())
        .map(DatapathError::from)
        .collect()
}

//! rtnetlink, with errors that say what was tried.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use rustix::thread::CapabilitySet;
pub(super) use skep_netlink::allow;

use crate::datapath::DatapathError;

/// A connection to the routing subsystem of one network namespace: the one it was opened in.
#[derive(Debug)]
pub(super) struct Route(skep_netlink::Route);

impl Route {
    /// Connects in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, DatapathError> {
        skep_netlink::Route::open().map(Self).map_err(|error| kernel("open a netlink socket", error))
    }

    /// Asks for a change; `flags` besides REQUEST and ACK.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.0.change(message, flags)
    }

    /// Asks for one thing.
    pub(super) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        self.0.get(message)
    }

    /// Asks for all things of a kind.
    pub(super) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.0.dump(message)
    }
}

/// Names what was tried.
pub(super) fn kernel(what: impl Into<String>, error: impl Into<io::Error>) -> DatapathError {
    DatapathError::Kernel { what: what.into(), error: error.into() }
}

/// Whoever may not would be told so by the first step that fails, of which each says something else.
pub(super) fn may_change_the_network() -> Result<(), DatapathError> {
    let ours = rustix::thread::capabilities(None)
        .map_err(|error| kernel("ask for this process's capabilities", error))?;
    if ours.effective.contains(CapabilitySet::NET_ADMIN) {
        return Ok(());
    }
    Err(DatapathError::Unsupported {
        what: "not allowed to change the network".to_owned(),
        why: "needs root on the host (CAP_NET_ADMIN), or in the namespaces that a rootless runtime made for itself".to_owned(),
    })
}

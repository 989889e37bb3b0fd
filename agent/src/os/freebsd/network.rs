//! The sandbox's network: loopback only, for now.

use skep_protocol::api::Network;

use crate::error::Refusal;

/// Refuses interfaces; that there are none is what the guest has.
pub(crate) fn settle(network: &Network) -> Result<(), Refusal> {
    if network.interfaces.is_empty() {
        return Ok(());
    }
    Err(Refusal::precondition("network: a FreeBSD guest has loopback only, it cannot set up interfaces yet"))
}

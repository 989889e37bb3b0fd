//! Which live flows a policy still permits. No input or output.

use std::net::IpAddr;

use crate::network::{Attachment, Network};
use crate::policy::{Direction, Flow, GroupName};

/// A flow that the host tracks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    /// Who opened it.
    pub(super) from: IpAddr,
    /// Who answers: behind a published port, the sandbox.
    pub(super) to: IpAddr,
    /// The protocol's number in the IP header.
    pub(super) protocol: u8,
    /// The port it was opened to, behind all translation; 0 without ports.
    pub(super) port: u16,
    /// Whether it came by a published port.
    pub(super) published: bool,
}

impl Live {
    /// Whether it may go on as far as `attachment`'s and its network's lists are asked. `members` tells whether an address is one
    /// of a group's, where the network declares none.
    pub(super) fn permitted(
        &self,
        network: &Network,
        attachment: &Attachment,
        members: &dyn Fn(&GroupName, IpAddr) -> bool,
    ) -> bool {
        let own = attachment.senders();
        let permits = |direction, peer, published| {
            let flow = Flow { direction, peer, protocol: self.protocol, port: self.port, published };
            attachment.policy.permits(&network.policy, &flow, members)
        };
        self.is_hosts(network)
            || ((!own.contains(&self.from) || permits(Direction::Egress, self.to, false))
                && (!own.contains(&self.to) || permits(Direction::Ingress, self.from, self.published)))
    }

    /// Whether the host opened it where it may, or it is to a service of the host's: no list speaks of those.
    fn is_hosts(&self, network: &Network) -> bool {
        let host = |ip: IpAddr| {
            ip == network.mac.link_local() || network.gateways.iter().any(|net| net.addr() == ip)
        };
        let served = |service: &crate::policy::HostService| {
            service.protocol.number() == self.protocol && service.port == self.port
        };
        (network.policy.host_ingress && host(self.from))
            || (host(self.to) && network.policy.host_services.iter().any(served))
    }
}

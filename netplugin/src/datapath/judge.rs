//! Which live flows a policy still permits. No input or output.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::network::{Attachment, HostState, Network};
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

/// A sandbox whose lists are asked, perhaps about many flows.
pub(super) struct Asked<'a> {
    network: &'a Network,
    /// Its record.
    pub(super) attachment: &'a Attachment,
    /// Every address it sends from.
    pub(super) own: BTreeSet<IpAddr>,
}

impl<'a> Asked<'a> {
    /// One sandbox of a network.
    pub(super) fn new(network: &'a Network, attachment: &'a Attachment) -> Self {
        Self { network, attachment, own: attachment.senders().into_iter().collect() }
    }

    /// All of a network's sandboxes.
    pub(super) fn all(network: &'a Network, state: &'a HostState) -> Vec<Self> {
        let on_network = state.attachments.iter().filter(|one| one.network == network.name);
        on_network.map(|one| Self::new(network, one)).collect()
    }

    /// Whether a flow may go on as far as the sandbox's and its network's lists are asked. `members` tells whether an address is
    /// one of a group's, where the network declares none.
    pub(super) fn permits(&self, live: &Live, members: &dyn Fn(&GroupName, IpAddr) -> bool) -> bool {
        let permits = |direction, peer, published| {
            let flow = Flow { direction, peer, protocol: live.protocol, port: live.port, published };
            self.attachment.policy.permits(&self.network.policy, &flow, members)
        };
        live.is_hosts(self.network)
            || ((!self.own.contains(&live.from) || permits(Direction::Egress, live.to, false))
                && (!self.own.contains(&live.to) || permits(Direction::Ingress, live.from, live.published)))
    }
}

impl Live {
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

//! Ending live flows that a changed policy forbids.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::conntrack::{self, Count, Flow};
use super::history;
use super::nft::Nft;
use crate::datapath::DatapathError;
use crate::network::{Attachment, HostState, Network};
use crate::policy::{Direction, Flow as Opened, GroupName};

/// Whether a tracked flow may go on under the sandbox's policy.
fn permitted(
    flow: &Flow,
    ips: &BTreeSet<IpAddr>,
    network: &Network,
    attachment: &Attachment,
    members: &dyn Fn(&GroupName, IpAddr) -> bool,
) -> bool {
    // The rules saw the destination behind a translation, which is where the answers come from.
    let (to, port) = (flow.reply.source, flow.reply.source_port);
    let published = flow.original.destination != to;
    let opened = |direction, peer, published| Opened {
        direction,
        peer,
        protocol: flow.original.protocol,
        port,
        published,
    };
    let outgoing = !ips.contains(&flow.original.source)
        || attachment.policy.permits(&network.policy, &opened(Direction::Egress, to, false), members);
    let incoming = !ips.contains(&to)
        || attachment.policy.permits(
            &network.policy,
            &opened(Direction::Ingress, flow.original.source, published),
            members,
        );
    outgoing && incoming
}

/// Ends the flows of one sandbox that its policy forbids now.
pub(super) fn sandbox(
    nft: &Nft,
    count: &Count,
    network: &Network,
    attachment: &Attachment,
    members: &dyn Fn(&GroupName, IpAddr) -> bool,
) -> Result<(), DatapathError> {
    let busy = history::with_flows(nft, count, network, attachment)?;
    if busy.is_empty() {
        return Ok(());
    }
    let ips: BTreeSet<IpAddr> = attachment.ips().collect();
    let forbidden =
        conntrack::flows_of(nft, count, &busy, |flow| !permitted(flow, &ips, network, attachment, members))?;
    forbidden.iter().try_for_each(|flow| conntrack::end(nft, flow))
}

/// Ends the flows of a network's sandboxes that its policy forbids now.
pub(super) fn network(
    nft: &Nft,
    count: &Count,
    earlier: &Network,
    network: &Network,
    state: &HostState,
) -> Result<(), DatapathError> {
    let on_network: Vec<&Attachment> =
        state.attachments.iter().filter(|one| one.network == network.name).collect();
    let members = |group: &GroupName, ip: IpAddr| {
        on_network.iter().any(|one| one.group.as_ref() == Some(group) && one.ips().any(|other| other == ip))
    };
    // The host's own rights are no list of a sandbox: without them all, what it may not open must end.
    let host_cut = earlier.policy.host_ingress && !network.policy.host_ingress;
    let owners: Vec<(BTreeSet<IpAddr>, &Attachment)> =
        on_network.iter().map(|one| (one.ips().collect(), *one)).collect();
    let forbidden = conntrack::flows(nft, count, |flow| {
        owners.iter().any(|(ips, attachment)| {
            let from_host = network.gateways.iter().any(|net| net.addr() == flow.original.source);
            flow.involves(ips)
                && (!from_host || host_cut || !network.policy.host_ingress)
                && !permitted(flow, ips, network, attachment, &members)
        })
    })?;
    forbidden.iter().try_for_each(|flow| conntrack::end(nft, flow))
}

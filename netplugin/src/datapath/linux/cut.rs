//! Ending live flows that a changed policy forbids.

use std::net::IpAddr;

use super::conntrack::{self, Count, Flow};
use super::history;
use super::nft::Nft;
use crate::datapath::DatapathError;
use crate::datapath::judge::{Asked, Live};
use crate::network::{Attachment, HostState, Network};
use crate::policy::GroupName;

/// What the lists are asked about.
fn live(flow: &Flow) -> Live {
    // The rules saw the destination behind a translation, which is where the answers come from.
    let to = flow.reply.source;
    Live {
        from: flow.original.source,
        to,
        protocol: flow.original.protocol,
        port: flow.reply.source_port,
        published: flow.original.destination != to,
    }
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
    let asked = Asked::new(network, attachment);
    let forbidden = conntrack::flows_of(nft, count, &busy, |flow| !asked.permits(&live(flow), members))?;
    forbidden.iter().try_for_each(|flow| conntrack::end(nft, flow))
}

/// Ends the flows of a network's sandboxes that its policy forbids now.
pub(super) fn network(
    nft: &Nft,
    count: &Count,
    network: &Network,
    state: &HostState,
) -> Result<(), DatapathError> {
    let all = Asked::all(network, state);
    let members = |group: &GroupName, ip: IpAddr| {
        Attachment::any_sends(all.iter().map(|one| one.attachment), group, ip)
    };
    let forbidden = conntrack::flows(nft, count, |flow| {
        all.iter().any(|one| flow.involves(&one.own) && !one.permits(&live(flow), &members))
    })?;
    forbidden.iter().try_for_each(|flow| conntrack::end(nft, flow))
}

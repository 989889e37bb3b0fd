//! Ending live flows that a changed policy forbids.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::pf::device::Pf;
use super::pf::load;
use super::pf::states::{End, State};
use crate::datapath::DatapathError;
use crate::datapath::judge::Live;
use crate::network::{Attachment, HostState, Network};
use crate::policy::GroupName;

/// Ends that a published port joins: pf tells it of the state made on the way in only.
fn published(flows: &[State]) -> BTreeSet<(End, End)> {
    flows.iter().filter(|flow| flow.published).map(|flow| (flow.from, flow.to)).collect()
}

/// What the lists are asked about.
fn live(state: &State, published: &BTreeSet<(End, End)>) -> Live {
    Live {
        from: state.from.0,
        to: state.to.0,
        protocol: state.protocol,
        port: state.to.1,
        published: published.contains(&(state.from, state.to)),
    }
}

/// Ends the flows of one sandbox that its policy forbids now.
pub(super) fn sandbox(
    pf: &Pf,
    network: &Network,
    attachment: &Attachment,
    members: &dyn Fn(&GroupName, IpAddr) -> bool,
) -> Result<(), DatapathError> {
    let flows = pf.flows()?;
    let through = published(&flows);
    let ips = attachment.senders();
    load::end(flows.iter().filter(|flow| {
        ips.iter().any(|ip| flow.involves(*ip))
            && !live(flow, &through).permitted(network, attachment, members)
    }))
}

/// Ends the flows of a network's sandboxes that its policy forbids now.
pub(super) fn network(pf: &Pf, network: &Network, state: &HostState) -> Result<(), DatapathError> {
    let on_network: Vec<(Vec<IpAddr>, &Attachment)> = state
        .attachments
        .iter()
        .filter(|one| one.network == network.name)
        .map(|one| (one.senders(), one))
        .collect();
    let members = |group: &GroupName, ip: IpAddr| {
        Attachment::any_sends(on_network.iter().map(|(_, one)| *one), group, ip)
    };
    let flows = pf.flows()?;
    let through = published(&flows);
    load::end(flows.iter().filter(|flow| {
        on_network.iter().any(|(ips, one)| {
            ips.iter().any(|ip| flow.involves(*ip)) && !live(flow, &through).permitted(network, one, &members)
        })
    }))
}

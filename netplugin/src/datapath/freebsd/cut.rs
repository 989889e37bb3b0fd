//! Ending live flows that a changed policy forbids.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::pf::device::Pf;
use super::pf::load;
use super::pf::states::{End, State};
use crate::datapath::DatapathError;
use crate::datapath::judge::{Asked, Live};
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
    let asked = Asked::new(network, attachment);
    load::end(flows.iter().filter(|flow| forbids(&asked, flow, &through, members)))
}

/// Ends the flows of a network's sandboxes that its policy forbids now.
pub(super) fn network(pf: &Pf, network: &Network, state: &HostState) -> Result<(), DatapathError> {
    let all = Asked::all(network, state);
    let members = |group: &GroupName, ip: IpAddr| {
        Attachment::any_sends(all.iter().map(|one| one.attachment), group, ip)
    };
    let flows = pf.flows()?;
    let through = published(&flows);
    load::end(flows.iter().filter(|flow| all.iter().any(|one| forbids(one, flow, &through, &members))))
}

/// Whether it is a flow of the sandbox's that may not go on.
fn forbids(
    asked: &Asked<'_>,
    flow: &State,
    published: &BTreeSet<(End, End)>,
    members: &dyn Fn(&GroupName, IpAddr) -> bool,
) -> bool {
    asked.own.iter().any(|ip| flow.involves(*ip)) && !asked.permits(&live(flow, published), members)
}

//! Ending live flows that a changed policy forbids.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::pf::device::Pf;
use super::pf::load;
use super::pf::states::{End, State};
use crate::datapath::DatapathError;
use crate::network::{Attachment, HostState, Network};
use crate::policy::{Direction, Flow, GroupName};

/// Ends that a published port joins: pf tells it of the state made on the way in only.
fn published(flows: &[State]) -> BTreeSet<(End, End)> {
    flows.iter().filter(|flow| flow.published).map(|flow| (flow.from, flow.to)).collect()
}

fn permitted(
    state: &State,
    published: bool,
    network: &Network,
    attachment: &Attachment,
    members: &dyn Fn(&GroupName, IpAddr) -> bool,
) -> bool {
    let own = |ip: IpAddr| attachment.ips().any(|own| own == ip);
    let flow = |direction, peer, published| Flow {
        direction,
        peer,
        protocol: state.protocol,
        port: state.to.1,
        published,
    };
    let permits = |flow: &Flow| attachment.policy.permits(&network.policy, flow, members);
    (!own(state.from.0) || permits(&flow(Direction::Egress, state.to.0, false)))
        && (!own(state.to.0) || permits(&flow(Direction::Ingress, state.from.0, published)))
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
    load::end(flows.iter().filter(|flow| {
        attachment.ips().any(|ip| flow.involves(ip))
            && !of_host(network, flow)
            && !permitted(flow, through.contains(&(flow.from, flow.to)), network, attachment, members)
    }))
}

/// Ends the flows of a network's sandboxes that its policy forbids now.
pub(super) fn network(pf: &Pf, network: &Network, state: &HostState) -> Result<(), DatapathError> {
    let all: Vec<&Attachment> = state.attachments.iter().filter(|one| one.network == network.name).collect();
    let members = |group: &GroupName, ip: IpAddr| {
        all.iter().any(|one| one.group.as_ref() == Some(group) && one.ips().any(|other| other == ip))
    };
    let flows = pf.flows()?;
    let through = published(&flows);
    load::end(flows.iter().filter(|flow| {
        !of_host(network, flow)
            && all.iter().any(|one| {
                one.ips().any(|ip| flow.involves(ip))
                    && !permitted(flow, through.contains(&(flow.from, flow.to)), network, one, &members)
            })
    }))
}

/// A flow that the host opened where it may, or one to a service of the host's: no list speaks of those.
fn of_host(network: &Network, flow: &State) -> bool {
    let gateway = |ip: IpAddr| network.gateways.iter().any(|net| net.addr() == ip);
    let service = |service: &crate::policy::HostService| {
        service.protocol.number() == flow.protocol && service.port == flow.to.1
    };
    (network.policy.host_ingress && gateway(flow.from.0))
        || (gateway(flow.to.0) && network.policy.host_services.iter().any(service))
}

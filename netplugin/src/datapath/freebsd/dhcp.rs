//! Leases of addresses: the way to the servers behind a network's card, and what a sandbox may do with a lease or without.
//!
//! A question goes in behind the filter of the sandbox's port and takes the way of its frames: by pf and the bridge, and
//! out by the card. (What is written to a card by bpf(4) the bridge sends by all ports, past pf.) An answer is heard on the
//! card itself, where no other sandbox's frames are among those that come in.

use std::io;
use std::time::Instant;

use skep_ifnet::{Capture, Injector, Netgraph, find};

use super::pf::device::Pf;
use super::pf::{load, ruleset, tree};
use super::{attach, frames};
use crate::datapath::DatapathError;
use crate::dhcp::{DhcpError, Line};
use crate::network::{Attachment, Network};

struct Wire {
    card: Capture,
    port: Injector,
}

impl Line for Wire {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.port.send(frame)
    }

    fn receive(&mut self, until: Instant) -> io::Result<Option<Vec<u8>>> {
        self.card.next(until)
    }
}

/// See [`crate::datapath::Datapath::dhcp_line`].
pub(super) fn line(network: &Network, attachment: &Attachment) -> Result<Box<dyn Line>, DatapathError> {
    let nic = network.nic.as_ref().ok_or_else(|| DatapathError::Conflict(DhcpError::NoUplink.to_string()))?;
    let card = Capture::open(nic, &frames::dhcp_answers())?;
    let port = Netgraph::injector(&attachment.host_ifname)?;
    Ok(Box::new(Wire { card, port }))
}

/// See [`crate::datapath::Datapath::follow_lease`].
pub(super) fn follow_lease(pf: &Pf, network: &Network, attachment: &Attachment) -> Result<(), DatapathError> {
    let port = &attachment.host_ifname;
    // A sandbox without its interface has no use for rules.
    if find(port)?.is_none() {
        return Ok(());
    }
    let had: Vec<_> = attachment.ips().collect();
    let nets: Vec<ipnet::IpNet> = had.iter().copied().map(Into::into).collect();
    // Who has the address next is not of this one's group.
    for group in network.policy.undeclared(attachment.group.iter()) {
        pf.change(&ruleset::group_table(network, group), !attachment.lapsed, &nets)?;
    }
    if !attachment.lapsed {
        load::sandbox(pf, network, attachment)?;
        return Ok(Netgraph::open()?.refilter(port, &attach::program(attachment))?);
    }
    Netgraph::open()?.refilter(port, &attach::program(attachment))?;
    load::sandbox(pf, network, attachment)?;
    for table in tree::routed_tables(&attachment.id) {
        pf.change(&table, false, &nets)?;
    }
    load::end_all(pf, &had).into_iter().next().map_or(Ok(()), Err)
}

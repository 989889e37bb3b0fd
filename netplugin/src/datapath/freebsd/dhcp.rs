//! Leases of addresses: the way to the servers behind a network's card, and what a sandbox may do with a lease or without.
//!
//! A question goes in behind the filter of the sandbox's port and takes the way of its frames: by pf and the bridge, and
//! out by the card. (What is written to a card by bpf(4) the bridge sends by all ports, past pf.) An answer is heard on the
//! card itself, where no other sandbox's frames are among those that come in. So is what is said by ARP of an address: of the
//! network's own sandboxes none has one that is not on record.

use std::io;
use std::time::Instant;

use skep_ifnet::{Capture, Injector, Jail, Netgraph, find, need, route};

use super::pf::device::Pf;
use super::pf::{load, tree};
use super::{attach, frames};
use crate::cni::Route;
use crate::datapath::DatapathError;
use crate::dhcp::{DhcpError, Line};
use crate::network::{Attachment, Kind, Network};

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
    // Who has the address next is not of this one's group.
    let whole = Attachment { lapsed: false, ..attachment.clone() };
    load::group(pf, network, &whole, !attachment.lapsed)?;
    if !attachment.lapsed {
        load::sandbox(pf, network, attachment)?;
        return Ok(Netgraph::open()?.refilter(port, &attach::program(attachment))?);
    }
    Netgraph::open()?.refilter(port, &attach::program(attachment))?;
    load::sandbox(pf, network, attachment)?;
    let had: Vec<_> = attachment.ips().collect();
    let nets: Vec<ipnet::IpNet> = had.iter().copied().map(Into::into).collect();
    for table in tree::routed_tables(&attachment.id) {
        pf.change(&table, false, &nets)?;
    }
    load::end_all(pf, &had).into_iter().next().map_or(Ok(()), Err)
}

/// See [`crate::datapath::Datapath::change_routes`].
pub(super) fn change_routes(attachment: &Attachment, routes: &[Route]) -> Result<bool, DatapathError> {
    if attachment.kind != Kind::Veth {
        return Ok(false);
    }
    let name = &attachment.ifname;
    Jail::open(&attachment.netns)?.run(|| {
        let index = need(name)?.index;
        // Those that others go by are the first: they come first and go last. A route that somebody else made in the place of
        // ours is not ours to remove.
        for gone in attachment.routes.iter().rev().filter(|one| !routes.contains(one)) {
            route::delete(index, gone.dst.trunc(), attach::gateway_of(attachment, gone))?;
        }
        for new in routes.iter().filter(|one| !attachment.routes.contains(one)) {
            route::ensure(index, new.dst.trunc(), attach::gateway_of(attachment, new))?;
        }
        Ok(())
    })?;
    Ok(true)
}

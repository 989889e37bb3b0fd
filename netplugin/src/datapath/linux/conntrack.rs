//! Ending live flows.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::netlink::kernel;
use super::nft::{Attrs, Nft, attributes, find_attribute};
use crate::cni::PortMapping;
use crate::datapath::DatapathError;

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const DUMP: u16 = 0x300;
const ACK: u16 = 0x4;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// One end-to-end tuple of a tracked flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    /// Who sends.
    pub(super) source: IpAddr,
    /// To whom.
    pub(super) destination: IpAddr,
    /// The protocol's number.
    pub(super) protocol: u8,
    /// From which port; 0 without ports.
    pub(super) source_port: u16,
    /// To which port; 0 without ports.
    pub(super) destination_port: u16,
}

/// A tracked flow: the direction it was opened in, as its opener saw it, and what answers look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// As opened.
    pub(super) original: Tuple,
    /// As answered.
    pub(super) reply: Tuple,
    family: u8,
    // What names it to the kernel.
    tuple: Vec<u8>,
    id: Vec<u8>,
    zone: Option<Vec<u8>>,
}

impl Flow {
    /// Whether one of `ips` takes part in it.
    pub(super) fn involves(&self, ips: &BTreeSet<IpAddr>) -> bool {
        [self.original.source, self.original.destination, self.reply.source, self.reply.destination]
            .iter()
            .any(|ip| ips.contains(ip))
    }
}

fn parse_tuple(buffer: &[u8]) -> Option<Tuple> {
    let (ip, proto) = (find_attribute(buffer, 1)?, find_attribute(buffer, 2)?);
    let address = |v4: u16, v6: u16| {
        let v4 = find_attribute(ip, v4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
        v4.or_else(|| find_attribute(ip, v6).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from))
    };
    let port = |kind: u16| {
        find_attribute(proto, kind).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes)
    };
    Some(Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        protocol: *find_attribute(proto, 1)?.first()?,
        source_port: port(2),
        destination_port: port(3),
    })
}

fn parse(family: u8, body: &[u8]) -> Option<Flow> {
    let found: Vec<(u16, &[u8])> = attributes(body).collect();
    let get = |kind: u16| found.iter().find(|(other, _)| *other == kind).map(|(_, value)| *value);
    Some(Flow {
        original: parse_tuple(get(TUPLE_ORIG)?)?,
        reply: parse_tuple(get(TUPLE_REPLY)?)?,
        family,
        tuple: get(TUPLE_ORIG)?.to_vec(),
        id: get(ID)?.to_vec(),
        zone: get(ZONE).map(<[u8]>::to_vec),
    })
}

/// The tracked flows of IPv4, IPv6 or both that `wanted` picks.
pub(super) fn flows(nft: &Nft, wanted: impl Fn(&Flow) -> bool) -> Result<Vec<Flow>, DatapathError> {
    let mut found = Vec::new();
    for family in [2, 10] {
        let answers =
            nft.ask(GET, DUMP, family, |_| ()).map_err(|error| kernel("list the tracked flows", error))?;
        found.extend(answers.iter().filter_map(|body| parse(family, body)).filter(&wanted));
    }
    Ok(found)
}

/// Forgets a flow: its next packet is judged as if it were the first.
pub(super) fn end(nft: &Nft, flow: &Flow) -> Result<(), DatapathError> {
    let fill = |attrs: &mut Attrs<'_>| {
        attrs.nest(TUPLE_ORIG, |tuple| tuple.0.extend_from_slice(&flow.tuple));
        attrs.bytes(ID, &flow.id);
        if let Some(zone) = &flow.zone {
            attrs.bytes(ZONE, zone);
        }
    };
    match nft.ask(DELETE, ACK, flow.family, fill) {
        // It ended by itself in between.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(kernel("end a tracked flow", error)),
        Ok(_) => Ok(()),
    }
}

/// Ends every flow that a sandbox with these addresses and published ports takes part in, or that was tracked to one
/// of the ports before it was published.
pub(super) fn end_all(nft: &Nft, ips: &BTreeSet<IpAddr>, ports: &[PortMapping]) -> Result<(), DatapathError> {
    let to_port = |flow: &Flow| {
        let to = &flow.original;
        ports.iter().any(|port| {
            port.protocol.number() == to.protocol
                && port.host_port == to.destination_port
                && port.host_ip.is_none_or(|ip| ip == to.destination)
        })
    };
    flows(nft, |flow| flow.involves(ips) || to_port(flow))?.iter().try_for_each(|flow| end(nft, flow))
}

//! Which addresses have flows.
//!
//! To find an address's flows the kernel walks over all that it tracks, some hundred nanoseconds for each. So our rules
//! note, in two sets, each address on a bridge of ours that a flow is opened from, or to, before the kernel tracks the
//! flow; one question about each set then says whether there is anything to look for, and on which side: the kernel walks
//! once for either. The same holds for ports of the host that flows were opened to while they were nobody's.
//!
//! What was tracked before the rules were there is not noted. So a subnet counts only when its earlier flows were
//! looked through and their addresses noted, too (`stocked`). A note is removed when the address's flows are ended:
//! before that, so that none is lost which comes after, and while they are being ended the address is in `ending`, so
//! that a kill in between loses none either. All of this is in our table, and goes with it when somebody removes that.
//!
//! Where a network's card is on the bridge, or the bridge is not ours, anybody's address may have flows there that the
//! rules do not see, or too many to note: then the kernel is always asked to walk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::conntrack::{self, Count, Flow, Part};
use super::netlink::kernel;
use super::nft::{Batch, Element, Family, Key, Nft};
use super::rules::TABLE;
use crate::datapath::DatapathError;
use crate::mac::link_local_net;
use crate::network::{Attachment, Kind, Network};

/// More addresses with flows than this, or so many ports, are not written down one by one.
const MANY: usize = 30_000;

fn by_family(ip: IpAddr, v4: &'static str, v6: &'static str) -> &'static str {
    if ip.is_ipv4() { v4 } else { v6 }
}

fn address(ip: IpAddr) -> Element {
    Element::key(Key::new().ip(ip))
}

/// The notes of who opened flows.
fn opened(ip: IpAddr) -> &'static str {
    by_family(ip, "opened4", "opened6")
}

/// The notes of whom flows were opened to.
fn answered(ip: IpAddr) -> &'static str {
    by_family(ip, "answered4", "answered6")
}

/// The notes that say which part an address has.
fn notes_of(ip: IpAddr, part: Part) -> impl Iterator<Item = &'static str> {
    let sides = [(part.opens, opened(ip)), (part.answers, answered(ip))];
    sides.into_iter().filter(|(has, _)| *has).map(|(_, set)| set)
}

fn ending(ip: IpAddr) -> &'static str {
    by_family(ip, "ending4", "ending6")
}

/// The mark of an address family of which there are more addresses than are noted.
fn crowded(ip: IpAddr) -> Element {
    Element::key(Key::new().proto(if ip.is_ipv4() { 2 } else { 10 }))
}

/// The mark of a subnet whose earlier flows were looked through.
fn stocked(net: IpNet) -> (&'static str, Element) {
    let key = Key::new().ip(net.network()).proto(net.prefix_len());
    (by_family(net.addr(), "stocked4", "stocked6"), Element::key(key))
}

fn port_of(protocol: u8, port: u16) -> Element {
    Element::key(Key::new().proto(protocol).port(port))
}

/// The subnets of a network whose addresses are noted: with IPv6 the link-local one, too, which all networks have in common.
fn subnets(network: &Network) -> Vec<IpNet> {
    if !network.notes_addresses() {
        return Vec::new();
    }
    let mut nets: Vec<IpNet> = network.gateways.iter().map(IpNet::trunc).collect();
    if nets.iter().any(|net| net.addr().is_ipv6()) {
        nets.push(link_local_net());
    }
    nets
}

fn there(nft: &Nft, set: &str, element: &Element) -> Result<bool, DatapathError> {
    let found = nft.element(Family::Inet, TABLE, set, element);
    Ok(found.map_err(|error| kernel("ask who has flows", error))?.is_some())
}

/// The subnets of which it is noted who has flows.
fn noting(
    nft: &Nft,
    network: Option<&Network>,
    attachment: &Attachment,
) -> Result<Vec<IpNet>, DatapathError> {
    let mut nets = Vec::new();
    if let Some(network) = network.filter(|_| attachment.kind != Kind::Chained) {
        for net in subnets(network) {
            let (set, mark) = stocked(net);
            if there(nft, set, &mark)? {
                nets.push(net);
            }
        }
    }
    Ok(nets)
}

/// Which addresses of a sandbox tracked flows may be about.
struct Suspects {
    ips: BTreeMap<IpAddr, Part>,
    // Those of them that are in sets for it, and in which.
    noted: Vec<(IpAddr, Part)>,
}

fn suspects(
    nft: &Nft,
    network: Option<&Network>,
    attachment: &Attachment,
) -> Result<Suspects, DatapathError> {
    let mut found = Suspects { ips: BTreeMap::new(), noted: Vec::new() };
    let noting = noting(nft, network, attachment)?;
    for ip in attachment.senders() {
        if !noting.iter().any(|net| net.contains(&ip)) {
            found.ips.insert(ip, Part::ANY);
            continue;
        }
        let noted = Part {
            opens: there(nft, opened(ip), &address(ip))?,
            answers: there(nft, answered(ip), &address(ip))?,
        };
        // Whose flows were being ended when that was cut short is no longer said.
        let cut_short = there(nft, ending(ip), &address(ip))?;
        let some = noted.opens || noted.answers;
        if some || cut_short {
            found.noted.push((ip, noted));
        }
        if cut_short || (noted != Part::ANY && there(nft, "crowded", &crowded(ip))?) {
            found.ips.insert(ip, Part::ANY);
        } else if some {
            found.ips.insert(ip, noted);
        }
    }
    Ok(found)
}

/// Those of a sandbox's addresses that may have flows, and which.
pub(super) fn with_flows(
    nft: &Nft,
    count: &Count,
    network: &Network,
    attachment: &Attachment,
) -> Result<BTreeMap<IpAddr, Part>, DatapathError> {
    if count.is_zero() {
        return Ok(BTreeMap::new());
    }
    Ok(suspects(nft, Some(network), attachment)?.ips)
}

/// Ends every flow of a sandbox.
pub(super) fn end(
    nft: &Nft,
    count: &Count,
    network: Option<&Network>,
    attachment: &Attachment,
) -> Result<(), DatapathError> {
    if count.is_zero() {
        return Ok(());
    }
    let Suspects { ips, noted } = suspects(nft, network, attachment)?;
    for (ip, part) in &noted {
        let mark = |batch: &mut Batch| batch.family(Family::Inet).add(ending(*ip), &[address(*ip)]);
        let mut batch = Batch::new(TABLE);
        mark(&mut batch);
        for notes in notes_of(*ip, *part) {
            batch.remove_present(notes, &[address(*ip)]);
        }
        match nft.commit(batch) {
            // Another call ends them, too, and was faster.
            Err(error) if error.errno() == Some(libc::ENOENT) => {
                let mut batch = Batch::new(TABLE);
                mark(&mut batch);
                nft.commit(batch)?;
            }
            result => result?,
        }
    }
    conntrack::end_all(nft, count, &ips, &[], [false; 2])?;
    let mut batch = Batch::new(TABLE);
    for (ip, _) in &noted {
        batch.family(Family::Inet).remove(ending(*ip), &[address(*ip)]);
    }
    Ok(nft.commit(batch)?)
}

/// Ends the flows that were opened to a sandbox's published ports while they were nobody's: they would stay untranslated. A
/// packet that was under way when the rules came may still open one, so the longer after that, the better.
pub(super) fn end_untranslated(
    nft: &Nft,
    count: &Count,
    network: &Network,
    attachment: &Attachment,
) -> Result<(), DatapathError> {
    if attachment.ports.is_empty() || count.is_zero() {
        return Ok(());
    }
    let noting = noting(nft, Some(network), attachment)?;
    let noted = |ip: IpAddr| noting.iter().any(|net| net.contains(&ip));
    let all_noted = attachment.ips().next().is_some() && attachment.ips().all(noted);
    let mut ports = Vec::new();
    for port in &attachment.ports {
        if !all_noted || there(nft, "asked", &port_of(port.protocol.number(), port.host_port))? {
            ports.push(port.clone());
        }
    }
    let published = [false, true].map(|ipv6| attachment.ips().any(|ip| ip.is_ipv6() == ipv6));
    conntrack::end_all(nft, count, &BTreeMap::new(), &ports, published)
}

/// Notes the addresses and ports of what is tracked already, for a network whose rules and routes are there. While a host
/// has a first sandbox on a network and flows of others, that is not worth it.
pub(super) fn take_stock(
    nft: &Nft,
    count: &Count,
    network: &Network,
    is_first: bool,
) -> Result<(), DatapathError> {
    let mut nets = Vec::new();
    for net in subnets(network) {
        let (set, mark) = stocked(net);
        if !there(nft, set, &mark)? {
            nets.push(net);
        }
    }
    let empty = count.is_zero();
    if nets.is_empty() || (is_first && !empty) {
        return Ok(());
    }
    let (mut ips, mut ports) = (BTreeSet::new(), BTreeSet::new());
    if !empty {
        conntrack::each(nft, |flow| {
            let (from, to) = (flow.original.source, flow.reply.source);
            for (ip, notes) in [(from, opened(from)), (to, answered(to))] {
                if nets.iter().any(|net| net.contains(&ip)) {
                    ips.insert((ip, notes));
                }
            }
            ports.extend(untranslated(flow));
        })?;
    }
    if ips.len().max(ports.len()) > MANY {
        return Ok(());
    }
    let mut batch = Batch::new(TABLE);
    batch.family(Family::Inet);
    for (ip, notes) in ips {
        batch.add(notes, &[address(ip)]);
    }
    let ports: Vec<Element> = ports.into_iter().map(|(protocol, port)| port_of(protocol, port)).collect();
    batch.add("asked", &ports);
    for net in nets {
        let (set, mark) = stocked(net);
        batch.add(set, &[mark]);
    }
    match nft.commit(batch) {
        // No room: it is asked again next time, and until then nothing is taken for known.
        Err(error) if error.errno() == Some(libc::ENFILE) => Ok(()),
        result => Ok(result?),
    }
}

/// The port that a flow was opened to, if nobody's translation has it.
fn untranslated(flow: &Flow) -> Option<(u8, u16)> {
    let Flow { original, reply, .. } = flow;
    let with_ports = matches!(original.protocol, 6 | 17 | 132);
    (with_ports && original.destination == reply.source)
        .then_some((original.protocol, original.destination_port))
}

/// Forgets what was noted of a network's addresses.
pub(super) fn forget(nft: &Nft, batch: &mut Batch, network: &Network) -> Result<(), DatapathError> {
    batch.family(Family::Inet);
    let asking = |error| kernel("ask who has flows", error);
    let nets = subnets(network);
    for (marks, notes) in
        [("stocked4", ["opened4", "answered4", "ending4"]), ("stocked6", ["opened6", "answered6", "ending6"])]
    {
        let ours = |key: &Key| key.starts_with().is_some_and(|ip| nets.iter().any(|net| net.contains(&ip)));
        for set in notes {
            let keys = nft.keys(Family::Inet, TABLE, set).map_err(asking)?;
            let gone: Vec<Element> = keys.into_iter().filter(ours).map(Element::key).collect();
            batch.remove(set, &gone);
        }
        // Another network may have the same addresses: they are no longer known of there either.
        let overlaps = |key: &Key| {
            key.starts_with().is_some_and(|ip| {
                nets.iter().any(|net| net.contains(&ip))
                    || key.prefix().is_some_and(|len| {
                        IpNet::new(ip, len).is_ok_and(|other| nets.iter().any(|net| other.contains(net)))
                    })
            })
        };
        let keys = nft.keys(Family::Inet, TABLE, marks).map_err(asking)?;
        let gone: Vec<Element> = keys.into_iter().filter(overlaps).map(Element::key).collect();
        batch.remove(marks, &gone);
    }
    Ok(())
}

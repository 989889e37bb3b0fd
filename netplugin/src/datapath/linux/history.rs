//! Which addresses have flows.
//!
//! To find an address's flows the kernel walks over all that it tracks, some hundred nanoseconds for each. So our rules
//! note, in a set, each address on a bridge of ours that a flow is opened from or to, before the kernel tracks the
//! flow; one question about the set then says whether there is anything to look for. The same holds for ports of the
//! host that flows were opened to while they were nobody's.
//!
//! What was tracked before the rules were there is not noted. So a subnet counts only when its earlier flows were
//! looked through and their addresses noted, too (`stocked`). A note is removed when the address's flows are ended:
//! before that, so that none is lost which comes after, and while they are being ended the address is in `ending`, so
//! that a kill in between loses none either. All of this is in our table, and goes with it when somebody removes that.
//!
//! Where a network's card is on the bridge, or the bridge is not ours, anybody's address may have flows there that the
//! rules do not see, or too many to note: then the kernel is always asked to walk.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::conntrack::{self, Count, Flow};
use super::netlink::kernel;
use super::nft::{Batch, Element, Family, Key, Nft};
use super::rules::TABLE;
use crate::cni::PortMapping;
use crate::datapath::DatapathError;
use crate::network::{Attachment, Kind, Network};

/// More addresses with flows than this, or so many ports, are not written down one by one.
const MANY: usize = 30_000;

fn by_family(ip: IpAddr, v4: &'static str, v6: &'static str) -> &'static str {
    if ip.is_ipv4() { v4 } else { v6 }
}

fn address(ip: IpAddr) -> Element {
    Element::key(Key::new().ip(ip))
}

fn met(ip: IpAddr) -> &'static str {
    by_family(ip, "met4", "met6")
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

/// The subnets of a network whose addresses are noted.
fn subnets(network: &Network) -> Vec<IpNet> {
    if network.notes_addresses() { network.gateways.iter().map(IpNet::trunc).collect() } else { Vec::new() }
}

fn there(nft: &Nft, set: &str, element: &Element) -> Result<bool, DatapathError> {
    let found = nft.element(Family::Inet, TABLE, set, element);
    Ok(found.map_err(|error| kernel("ask who has flows", error))?.is_some())
}

/// What of a sandbox a tracked flow may be about.
struct Suspects {
    ips: BTreeSet<IpAddr>,
    // Those of them that are in a set for it.
    noted: Vec<IpAddr>,
    ports: Vec<PortMapping>,
}

fn suspects(
    nft: &Nft,
    network: Option<&Network>,
    attachment: &Attachment,
    ports: &[PortMapping],
) -> Result<Suspects, DatapathError> {
    let mut found = Suspects { ips: BTreeSet::new(), noted: Vec::new(), ports: Vec::new() };
    let mut noting = Vec::new();
    if let Some(network) = network.filter(|_| attachment.kind != Kind::Chained) {
        for net in subnets(network) {
            let (set, mark) = stocked(net);
            if there(nft, set, &mark)? {
                noting.push(net);
            }
        }
    }
    let mut all_known = attachment.ips().next().is_some();
    for ip in attachment.ips() {
        if !noting.iter().any(|net| net.contains(&ip)) {
            all_known = false;
            found.ips.insert(ip);
        } else if there(nft, met(ip), &address(ip))? || there(nft, ending(ip), &address(ip))? {
            found.noted.push(ip);
            found.ips.insert(ip);
        } else if there(nft, "crowded", &crowded(ip))? {
            found.ips.insert(ip);
        }
    }
    for port in ports {
        if !all_known || there(nft, "asked", &port_of(port.protocol.number(), port.host_port))? {
            found.ports.push(port.clone());
        }
    }
    Ok(found)
}

/// Those of a sandbox's addresses that may have flows.
pub(super) fn with_flows(
    nft: &Nft,
    count: &Count,
    network: &Network,
    attachment: &Attachment,
) -> Result<BTreeSet<IpAddr>, DatapathError> {
    if count.is_zero() {
        return Ok(BTreeSet::new());
    }
    Ok(suspects(nft, Some(network), attachment, &[])?.ips)
}

/// Ends every flow of a sandbox, and those to `ports` of the host.
pub(super) fn end(
    nft: &Nft,
    count: &Count,
    network: Option<&Network>,
    attachment: &Attachment,
    ports: &[PortMapping],
) -> Result<(), DatapathError> {
    if count.is_zero() {
        return Ok(());
    }
    let Suspects { ips, noted, ports } = suspects(nft, network, attachment, ports)?;
    for ip in &noted {
        let mark = |batch: &mut Batch| batch.family(Family::Inet).add(ending(*ip), &[address(*ip)]);
        let mut batch = Batch::new(TABLE);
        mark(&mut batch);
        batch.remove_present(met(*ip), &[address(*ip)]);
        match nft.commit(batch) {
            // An earlier call was cut short behind this.
            Err(error) if error.errno() == Some(libc::ENOENT) => {
                let mut batch = Batch::new(TABLE);
                mark(&mut batch);
                nft.commit(batch)?;
            }
            result => result?,
        }
    }
    let published = [false, true].map(|ipv6| attachment.ips().any(|ip| ip.is_ipv6() == ipv6));
    conntrack::end_all(nft, count, &ips, &ports, published)?;
    let mut batch = Batch::new(TABLE);
    for ip in &noted {
        batch.family(Family::Inet).remove(ending(*ip), &[address(*ip)]);
    }
    Ok(nft.commit(batch)?)
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
            for ip in [flow.original.source, flow.reply.source] {
                if nets.iter().any(|net| net.contains(&ip)) {
                    ips.insert(ip);
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
    for ip in ips {
        batch.add(met(ip), &[address(ip)]);
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
    for (marks, notes) in [("stocked4", ["met4", "ending4"]), ("stocked6", ["met6", "ending6"])] {
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

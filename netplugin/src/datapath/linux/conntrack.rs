//! Tracked flows: finding and ending them.
//!
//! Which addresses have any is noted elsewhere (`history`). All flows of an address are ended by the kernel itself
//! (`CTA_FILTER` with a deletion, Linux 6.9): it passes over
//! empty buckets of its table and compares the rest, so that ten thousand flows of others cost some
//! milliseconds and no memory here. Older kernels refuse that; then flows are listed and ended one by one.
//!
//! Flows are found in `/proc/net/nf_conntrack` where the kernel has it: it walks the table without a lock, passing
//! over empty buckets, where a netlink dump locks each of them (a quarter of a million on a large host, which takes
//! some 20 ms whatever is in it). Each line costs some microseconds, however: where there are many, the dump, which the
//! kernel filters, is faster. It also serves for protocols whose lines do not say all.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;

use super::netlink::kernel;
use super::nft::{Attrs, Nft, find_attribute};
use crate::cni::PortMapping;
use crate::datapath::DatapathError;

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const DUMP: u16 = 0x300;
const ACK: u16 = 0x4;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

// What of a tuple a filter looks at: `CTA_FILTER_F_*` of the kernel's nf_internals.h.
const BY_SOURCE: u32 = 1 << 0;
const BY_DESTINATION: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_DESTINATION_PORT: u32 = 1 << 5;

/// From how many flows on the kernel's filtered dump is faster than reading their lines.
const MANY: u64 = 5_000;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// TCP, UDP, DCCP, SCTP, UDP-Lite: told apart by ports.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// One direction of a tracked flow.
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
    // ICMP: identifier, type, code.
    icmp: (u16, u8, u8),
}

/// A tracked flow: as it was opened, and what its answers look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// As opened.
    pub(super) original: Tuple,
    /// As answered.
    pub(super) reply: Tuple,
    zone: Option<u16>,
}

impl Flow {
    /// Whether one of `ips` takes part in it.
    pub(super) fn involves(&self, ips: &BTreeSet<IpAddr>) -> bool {
        [self.original.source, self.original.destination, self.reply.source, self.reply.destination]
            .iter()
            .any(|ip| ips.contains(ip))
    }
}

/// A line of `/proc/net/nf_conntrack`; `None` for one that does not say all that names the flow.
fn parse_line(line: &str) -> Option<Flow> {
    let mut words = line.split_ascii_whitespace().skip(3);
    let protocol: u8 = words.next()?.parse().ok()?;
    let mut tuples: Vec<Tuple> = Vec::new();
    for word in words {
        let Some((key, value)) = word.split_once('=') else { continue };
        if key == "src" {
            let source: IpAddr = value.parse().ok()?;
            tuples.push(Tuple {
                source,
                destination: source,
                protocol,
                source_port: 0,
                destination_port: 0,
                icmp: (0, 0, 0),
            });
            continue;
        }
        if key.starts_with("zone") {
            return None;
        }
        let Some(tuple) = tuples.last_mut() else { continue };
        match key {
            "dst" => tuple.destination = value.parse().ok()?,
            "sport" => tuple.source_port = value.parse().ok()?,
            "dport" => tuple.destination_port = value.parse().ok()?,
            "id" => tuple.icmp.0 = value.parse().ok()?,
            "type" => tuple.icmp.1 = value.parse().ok()?,
            "code" => tuple.icmp.2 = value.parse().ok()?,
            _ => {}
        }
    }
    if !WITH_PORTS.contains(&protocol) && !matches!(protocol, ICMP | ICMPV6) {
        return None;
    }
    let [original, reply] = tuples[..] else { return None };
    Some(Flow { original, reply, zone: None })
}

fn parse_tuple(buffer: &[u8]) -> Option<Tuple> {
    let (ip, proto) = (find_attribute(buffer, 1)?, find_attribute(buffer, 2)?);
    let address = |v4: u16, v6: u16| {
        let v4 = find_attribute(ip, v4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
        v4.or_else(|| {
            find_attribute(ip, v6).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from)
        })
    };
    let number = |kind: u16| {
        find_attribute(proto, kind).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes)
    };
    let byte = |kind: u16| find_attribute(proto, kind).and_then(<[u8]>::first).copied().unwrap_or(0);
    let protocol = byte(1);
    let first = if protocol == ICMPV6 { 7 } else { 4 };
    Some(Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        protocol,
        source_port: number(2),
        destination_port: number(3),
        icmp: (number(first), byte(first + 1), byte(first + 2)),
    })
}

fn parse(body: &[u8]) -> Option<Flow> {
    let zone = find_attribute(body, ZONE).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes);
    Some(Flow {
        original: parse_tuple(find_attribute(body, TUPLE_ORIG)?)?,
        reply: parse_tuple(find_attribute(body, TUPLE_REPLY)?)?,
        zone,
    })
}

/// How many flows are tracked in the namespace that it was asked in first: one read of a file that stays open.
#[derive(Debug, Default)]
pub(super) struct Count(OnceCell<File>);

impl Count {
    /// Whether nothing is tracked.
    pub(super) fn is_zero(&self) -> bool {
        self.get() == Some(0)
    }

    /// The number; `None` where the kernel does not say.
    fn get(&self) -> Option<u64> {
        if self.0.get().is_none() {
            // It is there as soon as anything is tracked.
            let file = File::open("/proc/sys/net/netfilter/nf_conntrack_count").ok()?;
            // Nobody was faster: a cell is one thread's.
            let _ = self.0.set(file);
        }
        let file = self.0.get()?;
        let mut text = [0; 24];
        let len = file.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(text.get(..len)?).ok()?.trim().parse().ok()
    }
}

/// The tracked flows that `wanted` picks.
pub(super) fn flows(
    nft: &Nft,
    count: &Count,
    wanted: impl Fn(&Flow) -> bool,
) -> Result<Vec<Flow>, DatapathError> {
    if count.get() == Some(0) {
        return Ok(Vec::new());
    }
    // The thread's namespace, which need not be the process's.
    if let Ok(text) = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")
        && let Some(all) = text.lines().map(parse_line).collect::<Option<Vec<_>>>()
    {
        return Ok(all.into_iter().filter(wanted).collect());
    }
    let answers =
        nft.ask(GET, DUMP, [0; 2], |_| ()).map_err(|error| kernel("list the tracked flows", error))?;
    Ok(answers.iter().filter_map(|body| parse(body)).filter(wanted).collect())
}

/// Looks at every tracked flow as it is listed.
pub(super) fn each(nft: &Nft, mut look: impl FnMut(&Flow)) -> Result<(), DatapathError> {
    nft.ask_each(GET, DUMP, [0; 2], |_| (), |body| parse(body).iter().for_each(&mut look))
        .map_err(|error| kernel("list the tracked flows", error))
}

/// Which part an address may have in flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// It opens some.
    pub(super) opens: bool,
    /// It answers some.
    pub(super) answers: bool,
}

impl Part {
    /// Either.
    pub(super) const ANY: Self = Self { opens: true, answers: true };

    /// What the kernel is to look for. Each is a walk over the table: it has no way to say "or".
    fn picks(self, ip: IpAddr) -> impl Iterator<Item = Pick> {
        let sides = [(self.opens, TUPLE_ORIG), (self.answers, TUPLE_REPLY)];
        sides.into_iter().filter(|(has, _)| *has).map(move |(_, tuple)| Pick {
            tuple,
            flags: BY_SOURCE,
            ip: Some(ip),
            ..Pick::any(ip.is_ipv6())
        })
    }
}

/// The tracked flows that one of `ips` opened or answers, as it may, and that `wanted` picks besides.
pub(super) fn flows_of(
    nft: &Nft,
    count: &Count,
    ips: &BTreeMap<IpAddr, Part>,
    wanted: impl Fn(&Flow) -> bool,
) -> Result<Vec<Flow>, DatapathError> {
    let theirs =
        |flow: &Flow| ips.contains_key(&flow.original.source) || ips.contains_key(&flow.reply.source);
    match count.get() {
        Some(0) => return Ok(Vec::new()),
        Some(few) if few < MANY => return flows(nft, count, |flow| theirs(flow) && wanted(flow)),
        _ => {}
    }
    let mut found: Vec<Flow> = Vec::new();
    for (ip, part) in ips {
        for pick in part.picks(*ip) {
            let answers = nft
                .ask(GET, DUMP, pick.head(), |attrs| pick.fill(attrs))
                .map_err(|error| kernel(format!("list the tracked flows of {ip}"), error))?;
            // A kernel that knows no filter lists all.
            let new =
                answers.iter().filter_map(|body| parse(body)).filter(|flow| theirs(flow) && wanted(flow));
            let new: Vec<Flow> = new.filter(|flow| !found.contains(flow)).collect();
            found.extend(new);
        }
    }
    Ok(found)
}

/// Which flows the kernel is to pick.
struct Pick {
    ipv6: bool,
    tuple: u16,
    flags: u32,
    ip: Option<IpAddr>,
    protocol: u8,
    port: u16,
}

impl Pick {
    fn any(ipv6: bool) -> Self {
        Self { ipv6, tuple: TUPLE_ORIG, flags: 0, ip: None, protocol: 0, port: 0 }
    }

    /// Family and version of the message. The version must not be 0: the kernel takes the family for none then, looks at
    /// no address, and picks everything.
    fn head(&self) -> [u8; 2] {
        [if self.ipv6 { 10 } else { 2 }, 1]
    }

    fn fill(&self, attrs: &mut Attrs<'_>) {
        attrs.nest(self.tuple, |tuple| {
            if let Some(address) = self.ip {
                let first = if self.ipv6 { 3 } else { 1 };
                let kind = if self.flags & BY_SOURCE == 0 { first + 1 } else { first };
                tuple.nest(1, |ip| match address {
                    IpAddr::V4(address) => ip.bytes(kind, &address.octets()),
                    IpAddr::V6(address) => ip.bytes(kind, &address.octets()),
                });
            }
            if self.flags & BY_PROTOCOL != 0 {
                tuple.nest(2, |proto| {
                    proto.bytes(1, &[self.protocol]);
                    proto.bytes(3, &self.port.to_be_bytes());
                });
            }
        });
        attrs.nest(FILTER, |filter| filter.bytes(self.tuple, &self.flags.to_ne_bytes()));
    }

    /// Ends what it picks; false if the kernel is too old for that.
    fn end(&self, nft: &Nft) -> Result<bool, DatapathError> {
        match nft.ask(DELETE, ACK, self.head(), |attrs| self.fill(attrs)) {
            Ok(_) => Ok(true),
            // Before Linux 6.9 a tuple that does not say all is no tuple.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(kernel("end tracked flows", error)),
        }
    }
}

/// Forgets a flow: its next packet is judged as if it were the first.
pub(super) fn end(nft: &Nft, flow: &Flow) -> Result<(), DatapathError> {
    let tuple = &flow.original;
    let fill = |attrs: &mut Attrs<'_>| {
        attrs.nest(TUPLE_ORIG, |list| {
            list.nest(1, |ip| match (tuple.source, tuple.destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    ip.bytes(1, &source.octets());
                    ip.bytes(2, &destination.octets());
                }
                (source, destination) => {
                    for (kind, address) in [(3, source), (4, destination)] {
                        if let IpAddr::V6(address) = address {
                            ip.bytes(kind, &address.octets());
                        }
                    }
                }
            });
            list.nest(2, |proto| {
                proto.bytes(1, &[tuple.protocol]);
                if matches!(tuple.protocol, ICMP | ICMPV6) {
                    let first = if tuple.protocol == ICMPV6 { 7 } else { 4 };
                    proto.bytes(first, &tuple.icmp.0.to_be_bytes());
                    proto.bytes(first + 1, &[tuple.icmp.1]);
                    proto.bytes(first + 2, &[tuple.icmp.2]);
                } else {
                    proto.bytes(2, &tuple.source_port.to_be_bytes());
                    proto.bytes(3, &tuple.destination_port.to_be_bytes());
                }
            });
        });
        if let Some(zone) = flow.zone {
            attrs.bytes(ZONE, &zone.to_be_bytes());
        }
    };
    match nft.ask(DELETE, ACK, [if tuple.source.is_ipv4() { 2 } else { 10 }, 0], fill) {
        // It ended by itself in between.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(kernel("end a tracked flow", error)),
        Ok(_) => Ok(()),
    }
}

/// Ends every flow that one of `ips` takes part in, or that was tracked to one of the ports, in the families (IPv4, IPv6)
/// that they are published in, before they were.
pub(super) fn end_all(
    nft: &Nft,
    count: &Count,
    ips: &BTreeMap<IpAddr, Part>,
    ports: &[PortMapping],
    published: [bool; 2],
) -> Result<(), DatapathError> {
    if count.is_zero() || (ips.is_empty() && ports.is_empty()) {
        return Ok(());
    }
    // Who neither opened a flow nor answers it has no part in it.
    let mut picks: Vec<Pick> = ips.iter().flat_map(|(ip, part)| part.picks(*ip)).collect();
    for port in ports {
        let flags = BY_PROTOCOL | BY_DESTINATION_PORT;
        let (flags, families) = match port.host_ip {
            Some(ip) => (flags | BY_DESTINATION, &[ip.is_ipv6()][..]),
            None => (flags, &[false, true][..]),
        };
        for ipv6 in families.iter().filter(|ipv6| published[usize::from(**ipv6)]) {
            let protocol = port.protocol.number();
            let (ip, port) = (port.host_ip, port.host_port);
            picks.push(Pick { flags, ip, protocol, port, ..Pick::any(*ipv6) });
        }
    }
    for pick in &picks {
        if !pick.end(nft)? {
            return end_listed(nft, count, &ips.keys().copied().collect(), ports);
        }
    }
    Ok(())
}

/// The same for kernels that do not pick what to end.
fn end_listed(
    nft: &Nft,
    count: &Count,
    ips: &BTreeSet<IpAddr>,
    ports: &[PortMapping],
) -> Result<(), DatapathError> {
    let to_port = |flow: &Flow| {
        let to = &flow.original;
        ports.iter().any(|port| {
            port.protocol.number() == to.protocol
                && port.host_port == to.destination_port
                && port.host_ip.is_none_or(|ip| ip == to.destination)
        })
    };
    flows(nft, count, |flow| flow.involves(ips) || to_port(flow))?.iter().try_for_each(|flow| end(nft, flow))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_read() {
        let line = "ipv4     2 tcp      6 431999 ESTABLISHED src=10.1.0.2 dst=192.0.2.1 sport=4000 dport=80 \
                    src=10.1.0.9 dst=192.0.2.7 sport=8080 dport=4001 [ASSURED] mark=0 use=2";
        let flow = parse_line(line).unwrap();
        assert_eq!((flow.original.protocol, flow.original.destination_port), (6, 80));
        assert_eq!((flow.reply.source.to_string().as_str(), flow.reply.source_port), ("10.1.0.9", 8080));
        let line = "ipv6     10 icmpv6   58 29 src=fd00::1 dst=fd00::2 type=128 code=0 id=77 [UNREPLIED] \
                    src=fd00::2 dst=fd00::1 type=129 code=0 id=77 mark=0 use=2";
        assert_eq!(parse_line(line).unwrap().original.icmp, (77, 128, 0));
    }

    #[test]
    fn lines_that_do_not_say_all_are_not_guessed_at() {
        for line in [
            "ipv4 2 gre 47 29 src=10.1.0.2 dst=192.0.2.1 srckey=0x1 dstkey=0x2 src=192.0.2.1 dst=10.1.0.2 srckey=0x2 dstkey=0x1",
            "ipv4 2 udp 17 29 src=10.1.0.2 dst=192.0.2.1 sport=1 dport=2 src=192.0.2.1 dst=10.1.0.2 sport=2 dport=1 zone=5 use=2",
            "ipv4 2 udp 17 29 src=10.1.0.2 dst=192.0.2.1 sport=1 dport=2",
            "",
        ] {
            assert_eq!(parse_line(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_line(&line);
            let _ = parse(&bytes);
        }
    }
}

//! A transaction: everything in it happens at one instant, or nothing does.

use std::net::IpAddr;

use ipnet::IpNet;

use super::expr::Rule;
use super::set::{Element, SetSpec, encode_anonymous, encode_bound, encode_hosts, encode_named};
use super::wire::Attrs;

/// The families of our tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4 and IPv6 together.
    Inet = 1,
    /// Frames on bridges.
    Bridge = 7,
}

/// What a base chain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChainType {
    /// Decides.
    Filter,
    /// Translates addresses.
    Nat,
}

/// Where a base chain is called from. The numbers are the same for inet and bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Everything that comes in.
    Prerouting = 0,
    /// What is for the host.
    Input = 1,
    /// What passes through.
    Forward = 2,
    /// What comes from the host.
    Output = 3,
    /// Everything that goes out.
    Postrouting = 4,
}

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// A list of elements must fit an attribute of 64 KiB; the largest element takes less than 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// A transaction under construction.
#[derive(Debug)]
pub(crate) struct Batch {
    family: Family,
    table: &'static str,
    pub(super) buffer: Vec<u8>,
    // What each message does, for errors; the index is its sequence number.
    pub(super) steps: Vec<String>,
    last: usize,
    sets: u32,
}

impl Batch {
    /// A transaction on tables of this name.
    pub(crate) fn new(table: &'static str) -> Self {
        let mut batch =
            Self { family: Family::Inet, table, buffer: Vec::new(), steps: Vec::new(), last: 0, sets: 0 };
        batch.bracket(BATCH_BEGIN);
        // NFNL_BATCH_GENID: zero is any.
        Attrs(&mut batch.buffer).be32(1, 0);
        batch.end_message();
        batch
    }

    /// Only if nothing was changed since the ruleset was of this generation ([`super::Nft::generation`]); otherwise
    /// the kernel refuses all of it with `ERESTART`.
    pub(crate) fn only_at(&mut self, generation: u32) {
        // The attribute's value, behind the message's header of 20 bytes and its own of 4.
        self.buffer[24..28].copy_from_slice(&generation.to_be_bytes());
    }

    /// Following messages are for the table of this family.
    pub(crate) fn family(&mut self, family: Family) -> &mut Self {
        self.family = family;
        self
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.len() <= 1
    }

    fn bracket(&mut self, kind: u16) {
        self.header(kind, REQUEST, 0, NFNL_SUBSYS_NFTABLES);
        self.steps.push(String::new());
    }

    fn header(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        self.last = self.buffer.len();
        let sequence = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        self.buffer.extend_from_slice(&20_u32.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&flags.to_ne_bytes());
        self.buffer.extend_from_slice(&sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&0_u32.to_ne_bytes());
        self.buffer.extend_from_slice(&[family, 0]);
        self.buffer.extend_from_slice(&resource.to_be_bytes());
    }

    fn message(&mut self, kind: u16, flags: u16, step: String, fill: impl FnOnce(&mut Attrs<'_>, &str)) {
        self.header(NFNL_SUBSYS_NFTABLES << 8 | kind, REQUEST | flags, self.family as u8, 0);
        self.steps.push(step);
        let table = self.table;
        fill(&mut Attrs(&mut self.buffer), table);
        self.end_message();
    }

    fn end_message(&mut self) {
        let len = u32::try_from(self.buffer.len() - self.last).unwrap_or(u32::MAX);
        self.buffer[self.last..self.last + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Ends the transaction; the last change is acknowledged when all of it is done.
    pub(super) fn finish(&mut self) {
        let at = self.last + 6;
        let flags = u16::from_ne_bytes([self.buffer[at], self.buffer[at + 1]]) | ACK;
        self.buffer[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        self.bracket(BATCH_END);
    }

    /// Makes the table, which must not exist, with a note that says which rules are in it.
    pub(crate) fn create_table(&mut self, note: &[u8]) {
        self.message(NEWTABLE, CREATE | EXCL, "create table".into(), |attrs, table| {
            attrs.text(1, table);
            attrs.be32(2, 0);
            attrs.bytes(6, note);
        });
    }

    /// Removes the table and all in it; it must exist.
    pub(crate) fn delete_table(&mut self) {
        self.message(DELTABLE, 0, "delete table".into(), |attrs, table| attrs.text(1, table));
    }

    /// Makes a chain unless it is there.
    pub(crate) fn chain(&mut self, name: &str) {
        self.message(NEWCHAIN, CREATE, format!("create chain {name}"), |attrs, table| {
            attrs.text(1, table);
            attrs.text(3, name);
        });
    }

    /// Makes a chain that a hook calls. What falls through it goes on.
    pub(crate) fn base_chain(&mut self, name: &str, kind: ChainType, hook: Hook, priority: i32) {
        self.message(NEWCHAIN, CREATE, format!("create chain {name}"), |attrs, table| {
            attrs.text(1, table);
            attrs.text(3, name);
            attrs.nest(4, |inner| {
                inner.be32(1, hook as u32);
                inner.bytes(2, &priority.to_be_bytes());
            });
            attrs.be32(5, 1); // policy accept
            attrs.text(7, if kind == ChainType::Nat { "nat" } else { "filter" });
        });
    }

    /// Removes a chain; nothing may lead to it.
    pub(crate) fn delete_chain(&mut self, name: &str) {
        self.message(DELCHAIN, 0, format!("delete chain {name}"), |attrs, table| {
            attrs.text(1, table);
            attrs.text(3, name);
        });
    }

    /// Removes the rules of a chain.
    pub(crate) fn flush_chain(&mut self, name: &str) {
        self.message(DELRULE, 0, format!("flush chain {name}"), |attrs, table| {
            attrs.text(1, table);
            attrs.text(2, name);
        });
    }

    /// Appends a rule to a chain.
    pub(crate) fn rule(&mut self, chain: &str, rule: &Rule) {
        self.message(NEWRULE, CREATE | APPEND, append_step(chain), |attrs, table| {
            attrs.text(1, table);
            attrs.text(2, chain);
            attrs.nest(4, |list| list.0.extend_from_slice(&rule.expressions));
        });
    }

    /// How many rules the transaction appends to a chain.
    pub(crate) fn count_rules(&self, chain: &str) -> usize {
        let step = append_step(chain);
        self.steps.iter().filter(|other| **other == step).count()
    }

    /// Makes a set or map unless it is there.
    pub(crate) fn set(&mut self, spec: &SetSpec) {
        self.set_as(spec.name, spec);
    }

    /// Makes a set or map of this kind under another name, unless it is there.
    pub(crate) fn set_as(&mut self, name: &str, spec: &SetSpec) {
        self.sets += 1;
        let id = self.sets;
        self.message(NEWSET, CREATE, format!("create set {name}"), |attrs, table| {
            encode_named(attrs, table, name, spec, id);
        });
    }

    /// Removes a set; nothing may look into it.
    pub(crate) fn delete_set(&mut self, name: &str) {
        self.message(DELSET, 0, format!("delete set {name}"), |attrs, table| {
            attrs.text(1, table);
            attrs.text(2, name);
        });
    }

    fn elements(&mut self, kind: u16, flags: u16, verb: &str, set: &str, elements: &[Element]) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.message(kind, flags, format!("{verb} set {set}"), |attrs, table| {
                attrs.text(1, table);
                attrs.text(2, set);
                attrs.nest(3, |list| {
                    for element in chunk {
                        element.encode(list);
                    }
                });
            });
        }
    }

    /// Adds elements. One that is there already, leading to the same, is fine; leading elsewhere, an error.
    pub(crate) fn add(&mut self, set: &str, elements: &[Element]) {
        self.elements(NEWSETELEM, CREATE, "add to", set, elements);
    }

    /// Removes elements, there or not: adding first what is to go makes removing it succeed, on every kernel.
    pub(crate) fn remove(&mut self, set: &str, elements: &[Element]) {
        self.add(set, elements);
        self.elements(DELSETELEM, 0, "remove from", set, elements);
    }

    /// Removes elements, all of which are there.
    pub(crate) fn remove_present(&mut self, set: &str, elements: &[Element]) {
        self.elements(DELSETELEM, 0, "remove from", set, elements);
    }

    /// Makes of `rule` one or two that go on only if the address in the first registers is within one of `nets`, which
    /// are all of one family. They go into anonymous sets of the same transaction: single addresses into a hash,
    /// which takes them several times faster, ranges into a tree. Single addresses go into the set `hosts` instead,
    /// if one is named, which must not be there.
    pub(crate) fn within(&mut self, rule: &Rule, nets: &[IpNet], hosts_set: Option<&str>) -> Vec<Rule> {
        let ipv6 = nets.first().is_some_and(|net| net.addr().is_ipv6());
        let (hosts, ranges): (Vec<&IpNet>, Vec<&IpNet>) =
            nets.iter().partition(|net| net.prefix_len() == net.max_prefix_len());
        let mut rules = Vec::new();
        if !hosts.is_empty() {
            let mut hosts: Vec<u128> = hosts.into_iter().map(|net| number(net.addr())).collect();
            hosts.sort_unstable();
            hosts.dedup();
            let bounds: Vec<Bound> = hosts.into_iter().map(|address| (address, false)).collect();
            rules.push(match hosts_set {
                Some(name) => self.in_hosts(rule, name, ipv6, &bounds),
                None => self.in_anonymous(rule, ipv6, false, &bounds),
            });
        }
        if !ranges.is_empty() {
            rules.push(self.in_anonymous(rule, ipv6, true, &bounds(ranges.into_iter(), ipv6)));
        }
        rules
    }

    fn in_anonymous(&mut self, rule: &Rule, ipv6: bool, ranges: bool, bounds: &[Bound]) -> Rule {
        self.sets += 1;
        let id = self.sets;
        // The kernel puts a number in place of the %d.
        let name = "__set%d";
        let size = u32::try_from(bounds.len()).unwrap_or(u32::MAX);
        self.message(NEWSET, CREATE, "create an address list".into(), |attrs, table| {
            encode_anonymous(attrs, table, name, ipv6, ranges, size, id);
        });
        self.fill(name, id, ipv6, bounds);
        rule.clone().in_anonymous(name, id)
    }

    fn in_hosts(&mut self, rule: &Rule, name: &str, ipv6: bool, hosts: &[Bound]) -> Rule {
        // Room for later changes; the kernel's table has so many buckets from the start.
        let room = hosts.len() + hosts.len() / 2 + 64;
        let id = self.hosts(name, ipv6, u32::try_from(room).unwrap_or(u32::MAX));
        self.fill(name, id, ipv6, hosts);
        rule.clone().in_set(name)
    }

    fn hosts(&mut self, name: &str, ipv6: bool, room: u32) -> u32 {
        self.sets += 1;
        let id = self.sets;
        self.message(NEWSET, CREATE, format!("create set {name}"), |attrs, table| {
            encode_hosts(attrs, table, name, ipv6, room, id);
        });
        id
    }

    /// Removes a set of single addresses that nothing looks into, there or not: as with elements.
    pub(crate) fn drop_hosts(&mut self, name: &str, ipv6: bool) {
        self.hosts(name, ipv6, 1);
        self.delete_set(name);
    }

    fn fill(&mut self, name: &str, id: u32, ipv6: bool, bounds: &[Bound]) {
        self.buffer.reserve(bounds.len() * BOUND_ROOM);
        for chunk in bounds.chunks(ELEMENTS_PER_MESSAGE) {
            self.message(NEWSETELEM, CREATE, "fill an address list".into(), |attrs, table| {
                attrs.text(1, table);
                attrs.text(2, name);
                attrs.be32(4, id);
                attrs.nest(3, |list| {
                    for (address, end) in chunk {
                        let octets = address.to_be_bytes();
                        encode_bound(list, if ipv6 { &octets } else { &octets[12..] }, *end);
                    }
                });
            });
        }
    }
}

/// Where a range starts, or (true) the first address behind it.
type Bound = (u128, bool);

/// What a bound takes in a message at most.
const BOUND_ROOM: usize = 40;

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn append_step(chain: &str) -> String {
    format!("append a rule to chain {chain}")
}

/// The bounds of the ranges that `nets` make together, in order, neither overlapping nor touching. A range up to the
/// last address of all has no end.
fn bounds<'a>(nets: impl Iterator<Item = &'a IpNet>, ipv6: bool) -> Vec<Bound> {
    let max = if ipv6 { u128::MAX } else { u128::from(u32::MAX) };
    let mut ranges: Vec<(u128, u128)> =
        nets.map(|net| (number(net.network()), number(net.broadcast()))).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if last.1 == max || start <= last.1 + 1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    let mut bounds = Vec::new();
    for (start, end) in merged {
        bounds.push((start, false));
        if end < max {
            bounds.push((end + 1, true));
        }
    }
    bounds
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn touching_and_nested_ranges_become_one() {
        let nets: [IpNet; 4] =
            ["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "255.255.255.0/24"].map(|net| net.parse().unwrap());
        assert_eq!(
            bounds(nets.iter(), false),
            [(0x0a00_0000, false), (0x0b00_0000, true), (0xffff_ff00, false)]
        );
        assert_eq!(bounds([&"::/0".parse().unwrap()].into_iter(), true), [(0, false)]);
    }

    proptest! {
        #[test]
        fn bounds_mean_what_the_nets_mean(nets in proptest::collection::vec((any::<u32>(), 0u8..=32), 1..12), probe: u32, near in 0usize..12, step in -1i64..=1) {
            let nets: Vec<IpNet> = nets.into_iter().map(|(ip, len)| IpNet::new(IpAddr::from(ip.to_be_bytes()), len).unwrap().trunc()).collect();
            let bounds = bounds(nets.iter(), false);
            prop_assert!(bounds.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 != pair[1].1));
            // Random addresses rarely hit an edge: try the edges too.
            let edge = bounds.get(near).map_or(probe, |(edge, _)| u32::try_from(*edge).unwrap());
            for probe in [probe, u32::try_from((i64::from(edge) + step).clamp(0, i64::from(u32::MAX))).unwrap()] {
                let inside = bounds.iter().rev().find(|(start, _)| *start <= u128::from(probe)).is_some_and(|(_, end)| !end);
                prop_assert_eq!(inside, nets.iter().any(|net| net.contains(&IpAddr::from(probe.to_be_bytes()))));
            }
        }
    }
}

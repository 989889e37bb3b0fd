//! Sets and maps, and the keys of their elements.

use std::net::IpAddr;

use ipnet::IpNet;

use super::verdict::Verdict;
use super::wire::Attrs;
use crate::mac::Mac;

/// A part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// An interface's name.
    Ifname,
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// An Ethernet address.
    Ether,
    /// A protocol's number.
    Proto,
    /// A port.
    Port,
    /// A VXLAN network identifier.
    Vni,
}

impl Field {
    fn len(self) -> u32 {
        match self {
            Self::Ifname | Self::Ipv6 => 16,
            Self::Ipv4 => 4,
            Self::Ether => 6,
            Self::Proto => 1,
            Self::Port => 2,
            Self::Vni => 3,
        }
    }

    /// How many four-byte registers it fills.
    pub(crate) fn registers(self) -> u32 {
        self.len().div_ceil(4)
    }

    /// The number nft(8) knows the type by; the kernel keeps it for listing only.
    fn nft_type(self) -> u32 {
        match self {
            // nft(8) knows no type of three bytes, and listing a key with a plain number ends it ("concat_expr_msort_value");
            // so an identifier is listed as the first three octets of an address.
            Self::Ipv4 | Self::Vni => 7,
            Self::Ipv6 => 8,
            Self::Ether => 9,
            Self::Proto => 12,
            Self::Port => 13,
            Self::Ifname => 41,
        }
    }
}

/// What an element of a map leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// Nothing: a set.
    None,
    /// A verdict.
    Verdict(Verdict),
    /// A value.
    Value(Key),
    /// Out of a range, in a set of ranges: this is the first key behind one.
    End,
}

/// What a set is for, besides holding keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetFlags {
    /// Keys are ranges.
    pub(crate) interval: bool,
    /// Each element counts its matches.
    pub(crate) counter: bool,
    /// Elements lead to verdicts.
    pub(crate) verdicts: bool,
    /// Packets add elements ([`super::Rule::note`]), as many as there is room for.
    pub(crate) noting: Option<u32>,
}

/// A set's or map's definition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SetSpec {
    /// Its name.
    pub(crate) name: &'static str,
    /// The parts of its keys.
    pub(crate) key: &'static [Field],
    /// The parts of its values; empty for a set or a verdict map.
    pub(crate) value: &'static [Field],
    /// What it is for.
    pub(crate) flags: SetFlags,
}

fn total_len(fields: &[Field]) -> u32 {
    match fields {
        // A single field has its own length, several are padded to whole registers.
        [one] => one.len(),
        many => many.iter().map(|field| field.registers() * 4).sum(),
    }
}

fn nft_type(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |concat, field| concat << 6 | field.nft_type())
}

// Set attributes and flags of nf_tables.h.
const SET_FLAGS: u16 = 3;
const ANONYMOUS: u32 = 0x1;
const CONSTANT: u32 = 0x2;
const INTERVAL: u32 = 0x4;
/// `NFTA_SET_ELEM_FLAGS`, and `NFT_SET_ELEM_INTERVAL_END`.
const ELEM_FLAGS: u16 = 3;
const INTERVAL_END: u32 = 1;
const MAP: u32 = 0x8;
const EVAL: u32 = 0x20;
const EXPR: u32 = 0x100;

pub(super) fn encode_named(attrs: &mut Attrs<'_>, table: &str, name: &str, spec: &SetSpec, id: u32) {
    let mut flags = 0;
    if spec.flags.interval {
        flags |= INTERVAL;
    }
    if spec.flags.verdicts || !spec.value.is_empty() {
        flags |= MAP;
    }
    if spec.flags.counter {
        flags |= EXPR;
    }
    if spec.flags.noting.is_some() {
        flags |= EVAL;
    }
    attrs.text(1, table);
    attrs.text(2, name);
    attrs.be32(SET_FLAGS, flags);
    attrs.be32(4, nft_type(spec.key));
    attrs.be32(5, total_len(spec.key));
    if spec.flags.verdicts {
        attrs.be32(6, 0xffff_ff00); // NFT_DATA_VERDICT
        attrs.be32(7, 0);
    } else if !spec.value.is_empty() {
        attrs.be32(6, nft_type(spec.value));
        attrs.be32(7, total_len(spec.value));
    }
    if let Some(room) = spec.flags.noting {
        attrs.nest(9, |desc| desc.be32(1, room));
    }
    attrs.be32(10, id);
    if let [Field::Ifname] = spec.key {
        // For nft(8), or it lists names as empty: NFTNL_UDATA_SET_KEYBYTEORDER, 4 bytes, host byte order.
        let mut note = vec![0, 4];
        note.extend_from_slice(&1_u32.to_ne_bytes());
        attrs.bytes(13, &note);
    }
    if spec.flags.counter {
        attrs.nest(17, |expr| {
            expr.text(1, "counter");
            expr.nest(2, |_| ());
        });
    }
}

/// A set of single addresses with a name, and room for so many.
pub(super) fn encode_hosts(attrs: &mut Attrs<'_>, table: &str, name: &str, ipv6: bool, size: u32, id: u32) {
    let field = if ipv6 { Field::Ipv6 } else { Field::Ipv4 };
    attrs.text(1, table);
    attrs.text(2, name);
    attrs.be32(SET_FLAGS, 0);
    attrs.be32(4, field.nft_type());
    attrs.be32(5, field.len());
    attrs.nest(9, |desc| desc.be32(1, size));
    attrs.be32(10, id);
}

/// An anonymous, constant set of addresses or of address ranges: lives and dies with the rule that looks into it.
pub(super) fn encode_anonymous(
    attrs: &mut Attrs<'_>,
    table: &str,
    name: &str,
    ipv6: bool,
    ranges: bool,
    size: u32,
    id: u32,
) {
    let field = if ipv6 { Field::Ipv6 } else { Field::Ipv4 };
    attrs.text(1, table);
    attrs.text(2, name);
    attrs.be32(SET_FLAGS, ANONYMOUS | CONSTANT | if ranges { INTERVAL } else { 0 });
    attrs.be32(4, field.nft_type());
    attrs.be32(5, field.len());
    if !ranges {
        // How many there are: the kernel then takes a table of fixed size.
        attrs.nest(9, |desc| desc.be32(1, size));
    }
    attrs.be32(10, id);
}

/// A key or a value: its parts one after the other, each padded to whole registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Key {
    bytes: Vec<u8>,
    // A lone part keeps its own length.
    lone: Option<usize>,
}

impl Key {
    /// A key as the kernel told it.
    pub(crate) fn told(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), lone: None }
    }

    /// A key without parts yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn part(mut self, part: &[u8]) -> Self {
        self.lone = self.bytes.is_empty().then_some(part.len());
        self.bytes.extend_from_slice(part);
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
        self
    }

    /// An interface's name, zero-padded to 16 bytes.
    pub(crate) fn ifname(self, name: &str) -> Self {
        let mut padded = [0; 16];
        let len = name.len().min(15);
        padded[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.part(&padded)
    }

    /// An IP address.
    pub(crate) fn ip(self, ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => self.part(&ip.octets()),
            IpAddr::V6(ip) => self.part(&ip.octets()),
        }
    }

    /// An Ethernet address.
    pub(crate) fn ether(self, mac: Mac) -> Self {
        self.part(&mac.0)
    }

    /// A protocol's number.
    pub(crate) fn proto(self, number: u8) -> Self {
        self.part(&[number])
    }

    /// A port.
    pub(crate) fn port(self, port: u16) -> Self {
        self.part(&port.to_be_bytes())
    }

    /// A VXLAN network identifier.
    pub(crate) fn vni(self, vni: u32) -> Self {
        self.part(&vni.to_be_bytes()[1..])
    }

    /// The address that it begins with, of the family that its length tells: of an address, or an address and a number.
    pub(crate) fn starts_with(&self) -> Option<IpAddr> {
        match self.bytes() {
            &[a, b, c, d] | &[a, b, c, d, _, _, _, _] => Some([a, b, c, d].into()),
            bytes => <[u8; 16]>::try_from(bytes.get(..16)?).ok().map(IpAddr::from),
        }
    }

    /// The number behind that address.
    pub(crate) fn prefix(&self) -> Option<u8> {
        match self.bytes() {
            [_, _, _, _, len, _, _, _] => Some(*len),
            bytes => bytes.get(16).copied(),
        }
    }

    /// As the kernel wants it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.lone.unwrap_or(self.bytes.len())]
    }
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    /// Its key.
    pub(crate) key: Key,
    /// What it leads to.
    pub(crate) data: Data,
}

impl Element {
    /// An element of a set.
    pub(crate) fn key(key: Key) -> Self {
        Self { key, data: Data::None }
    }

    /// The elements that a range of addresses is in a set of ranges: its first address, and the first behind it.
    pub(crate) fn range(net: &IpNet) -> Vec<Self> {
        let end = match net.broadcast() {
            IpAddr::V4(last) => u32::from(last).checked_add(1).map(|next| IpAddr::V4(next.into())),
            IpAddr::V6(last) => u128::from(last).checked_add(1).map(|next| IpAddr::V6(next.into())),
        };
        let start = Self::key(Key::new().ip(net.network()));
        let end = end.map(|next| Self { key: Key::new().ip(next), data: Data::End });
        [Some(start), end].into_iter().flatten().collect()
    }

    pub(super) fn encode_key(&self, list: &mut Attrs<'_>) {
        list.nest(1, |elem| elem.nest(1, |key| key.bytes(1, self.key.bytes())));
    }

    pub(super) fn encode(&self, list: &mut Attrs<'_>) {
        list.nest(1, |elem| {
            elem.nest(1, |key| key.bytes(1, self.key.bytes()));
            match &self.data {
                Data::None => {}
                Data::End => elem.be32(ELEM_FLAGS, INTERVAL_END),
                Data::Verdict(verdict) => elem.nest(2, |data| verdict.encode(data)),
                Data::Value(value) => elem.nest(2, |data| data.bytes(1, value.bytes())),
            }
        });
    }
}

/// One bound of a range: where it starts, or the first address behind it.
pub(super) fn encode_bound(list: &mut Attrs<'_>, address: &[u8], end: bool) {
    list.nest(1, |elem| {
        elem.nest(1, |key| key.bytes(1, address));
        if end {
            elem.be32(ELEM_FLAGS, INTERVAL_END);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_padded_unless_alone() {
        assert_eq!(Key::new().port(80).bytes(), [0, 80]);
        assert_eq!(Key::new().proto(6).port(80).bytes(), [6, 0, 0, 0, 0, 80, 0, 0]);
        let mac = "02:00:00:00:00:01".parse().unwrap();
        assert_eq!(Key::new().ifname("a").ether(mac).bytes().len(), 24);
        assert_eq!(total_len(&[Field::Ifname, Field::Ether]), 24);
        assert_eq!(total_len(&[Field::Ether]), 6);
    }
}

//! Rules, as lists of expressions over registers.

use super::set::Field;
use super::verdict::Verdict;
use super::wire::Attrs;

// Attribute kinds of nf_tables.h. An expression is NFTA_LIST_ELEM { NFTA_EXPR_NAME, NFTA_EXPR_DATA { ... } }.
const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;

/// `NFT_REG32_00`: registers of four bytes, sixteen of them.
const REG32: u32 = 8;

/// `NFT_META_*`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meta {
    /// Name of the interface the packet came by.
    Iifname = 6,
    /// Name of the interface it leaves by.
    Oifname = 7,
    /// Address family of the packet.
    Nfproto = 15,
    /// Transport protocol, behind all IPv6 extension headers.
    L4proto = 16,
}

/// Where a payload's offset counts from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Base {
    /// The Ethernet header.
    Link = 0,
    /// The ARP, IPv4 or IPv6 header.
    Network = 1,
    /// The transport's header.
    Transport = 2,
}

/// A rule under construction: matches, then statements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rule {
    pub(super) expressions: Vec<u8>,
}

impl Rule {
    /// A rule that matches everything.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn push(mut self, name: &str, data: impl FnOnce(&mut Attrs<'_>)) -> Self {
        Attrs(&mut self.expressions).nest(LIST_ELEM, |elem| {
            elem.text(EXPR_NAME, name);
            elem.nest(EXPR_DATA, data);
        });
        self
    }

    /// Loads something about the packet into register `reg` (counted in four-byte registers).
    pub(crate) fn meta(self, key: Meta, reg: u32) -> Self {
        self.push("meta", |data| {
            data.be32(1, REG32 + reg);
            data.be32(2, key as u32);
        })
    }

    /// Loads bytes of the packet. A packet too short for them does not match.
    pub(crate) fn payload(self, base: Base, offset: u32, len: u32, reg: u32) -> Self {
        self.push("payload", |data| {
            data.be32(1, REG32 + reg);
            data.be32(2, base as u32);
            data.be32(3, offset);
            data.be32(4, len);
        })
    }

    /// Loads the connection's state (key 0) or status (key 2), in host byte order.
    fn ct(self, key: u32) -> Self {
        self.push("ct", |data| {
            data.be32(1, REG32);
            data.be32(2, key);
        })
    }

    fn cmp(self, op: u32, reg: u32, value: &[u8]) -> Self {
        self.push("cmp", |data| {
            data.be32(1, REG32 + reg);
            data.be32(2, op);
            data.nest(3, |inner| inner.bytes(DATA_VALUE, value));
        })
    }

    /// Goes on only if the register begins with `value`.
    pub(crate) fn equal(self, reg: u32, value: &[u8]) -> Self {
        self.cmp(0, reg, value)
    }

    /// Goes on only if it does not.
    pub(crate) fn not_equal(self, reg: u32, value: &[u8]) -> Self {
        self.cmp(1, reg, value)
    }

    fn any_bit(self, mask: u32) -> Self {
        self.push("bitwise", |data| {
            data.be32(1, REG32);
            data.be32(2, REG32);
            data.be32(3, 4);
            data.nest(4, |inner| inner.bytes(DATA_VALUE, &mask.to_ne_bytes()));
            data.nest(5, |inner| inner.bytes(DATA_VALUE, &[0; 4]));
        })
        .not_equal(0, &[0; 4])
    }

    /// Connection state: established.
    pub(crate) fn ct_established(self) -> Self {
        self.ct(0).any_bit(0x2)
    }

    /// Connection state: related to another, by an error message or by what a helper read in that.
    pub(crate) fn ct_related(self) -> Self {
        self.ct(0).any_bit(0x4)
    }

    /// Connection state: new.
    pub(crate) fn ct_new(self) -> Self {
        self.ct(0).any_bit(0x8)
    }

    /// Connection state: invalid.
    pub(crate) fn ct_invalid(self) -> Self {
        self.ct(0).any_bit(0x1)
    }

    /// The connection's destination was translated.
    pub(crate) fn ct_dnat(self) -> Self {
        self.ct(2).any_bit(1 << 5)
    }

    /// An IPv4 packet, or an IPv6 one, in a table of both.
    pub(crate) fn family(self, ipv6: bool) -> Self {
        self.meta(Meta::Nfproto, 0).equal(0, &[if ipv6 { 10 } else { 2 }])
    }

    /// The Ethernet frame's type.
    pub(crate) fn ether_type(self, value: u16) -> Self {
        self.payload(Base::Link, 12, 2, 0).equal(0, &value.to_be_bytes())
    }

    /// The Ethernet frame is for a group (multicast or broadcast).
    pub(crate) fn group_frame(self) -> Self {
        self.payload(Base::Link, 0, 1, 0).any_bit(u32::from_ne_bytes([1, 0, 0, 0]))
    }

    /// The transport protocol.
    pub(crate) fn l4proto(self, value: u8) -> Self {
        self.meta(Meta::L4proto, 0).equal(0, &[value])
    }

    /// The transport's destination port.
    pub(crate) fn dport(self, first: u16, last: u16) -> Self {
        let rule = self.payload(Base::Transport, 2, 2, 0);
        if first == last {
            return rule.equal(0, &first.to_be_bytes());
        }
        // 5: greater or equal; 3: less or equal. Network byte order compares as bytes.
        rule.cmp(5, 0, &first.to_be_bytes()).cmp(3, 0, &last.to_be_bytes())
    }

    fn lookup(self, set: &str, set_id: Option<u32>, inverted: bool, verdict_map: bool) -> Self {
        self.push("lookup", |data| {
            data.text(1, set);
            data.be32(2, REG32);
            if verdict_map {
                data.be32(3, 0);
            }
            if let Some(id) = set_id {
                data.be32(4, id);
            }
            if inverted {
                data.be32(5, 1);
            }
        })
    }

    /// Goes on only if what the registers hold is in a set.
    pub(crate) fn in_set(self, set: &str) -> Self {
        self.lookup(set, None, false, false)
    }

    /// Goes on only if it is not.
    pub(crate) fn not_in_set(self, set: &str) -> Self {
        self.lookup(set, None, true, false)
    }

    /// Goes on only if it is in the anonymous set made under this id in the same transaction.
    pub(super) fn in_anonymous(self, name: &str, id: u32) -> Self {
        self.lookup(name, Some(id), false, false)
    }

    /// Does what a verdict map says for what the registers hold; goes on if it says nothing.
    pub(crate) fn verdict_map(self, map: &str) -> Self {
        self.lookup(map, None, false, true)
    }

    /// Adds what the registers hold to a set, unless it is there; goes on unless the set is full.
    pub(crate) fn note(self, set: &str) -> Self {
        self.push("dynset", |data| {
            data.text(1, set);
            data.be32(3, 0); // NFT_DYNSET_OP_ADD
            data.be32(4, REG32);
        })
    }

    /// The packet's destination is an address of this host.
    pub(crate) fn local_destination(self) -> Self {
        self.push("fib", |data| {
            data.be32(1, REG32);
            data.be32(2, 3); // NFT_FIB_RESULT_ADDRTYPE
            data.be32(3, 2); // NFTA_FIB_F_DADDR
        })
        .equal(0, &2_u32.to_ne_bytes()) // RTN_LOCAL
    }

    /// Translates the destination to what `map` says for what the registers hold: address, then port.
    pub(crate) fn dnat_by(self, map: &str, ipv6: bool) -> Self {
        let port = REG32 + if ipv6 { 4 } else { 1 };
        self.push("lookup", |data| {
            data.text(1, map);
            data.be32(2, REG32);
            data.be32(3, REG32);
        })
        .push("nat", |data| {
            data.be32(1, 1); // NFT_NAT_DNAT
            data.be32(2, if ipv6 { 10 } else { 2 });
            data.be32(3, REG32);
            data.be32(4, REG32);
            data.be32(5, port);
            data.be32(6, port);
            data.be32(7, 3); // NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED
        })
    }

    /// Translates the source to the address of the interface the packet leaves by.
    pub(crate) fn masquerade(self) -> Self {
        self.push("masq", |_| ())
    }

    /// Ends the rule.
    pub(crate) fn verdict(self, verdict: &Verdict) -> Self {
        self.push("immediate", |data| {
            data.be32(1, 0); // NFT_REG_VERDICT
            data.nest(2, |inner| verdict.encode(inner));
        })
    }

    /// Ends the rule: drop.
    pub(crate) fn drop(self) -> Self {
        self.verdict(&Verdict::Drop)
    }

    /// Ends the rule: accept.
    pub(crate) fn accept(self) -> Self {
        self.verdict(&Verdict::Accept)
    }

    /// Ends the rule: jump.
    pub(crate) fn jump(self, chain: &str) -> Self {
        self.verdict(&Verdict::Jump(chain.to_owned()))
    }

    /// Ends the rule: goto.
    pub(crate) fn goto(self, chain: &str) -> Self {
        self.verdict(&Verdict::Goto(chain.to_owned()))
    }

    /// Loads the interface's name into the first registers, for a set whose key begins with it; what follows in
    /// the key goes to register [`Field::Ifname`]'s width.
    pub(crate) fn iifname(self) -> Self {
        self.meta(Meta::Iifname, 0)
    }

    /// As [`Rule::iifname`], for the interface the packet leaves by.
    pub(crate) fn oifname(self) -> Self {
        self.meta(Meta::Oifname, 0)
    }

    /// Loads bytes behind an interface's name.
    pub(crate) fn and_payload(self, base: Base, offset: u32, len: u32) -> Self {
        self.payload(base, offset, len, Field::Ifname.registers())
    }
}

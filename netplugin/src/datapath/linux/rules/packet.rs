//! What rules of every chain look at: protocols by their numbers, messages by their types.

use crate::datapath::linux::nft::{Base, Batch, Rule};

// EtherTypes, and protocol numbers of IANA's registry.
pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;
pub(super) const ICMPV6: u8 = 58;

// Types of ICMPv6 messages: RFC 4861, section 4, and RFC 2710, section 3.
pub(super) const ROUTER_SOLICITATION: u8 = 133;
pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
pub(super) const REDIRECT: u8 = 137;
pub(super) const MLD_QUERY: u8 = 130;

/// Appends rules to a chain.
pub(super) fn append(batch: &mut Batch, chain: &str, rules: &[Rule]) {
    for rule in rules {
        batch.rule(chain, rule);
    }
}

/// Goes on only for ICMP or `ICMPv6` messages of a type.
pub(super) fn icmp_type(rule: Rule, value: u8) -> Rule {
    rule.payload(Base::Transport, 0, 1, 0).equal(0, &[value])
}

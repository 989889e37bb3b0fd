//! The rules that are the same on every host.

use super::flows::{flows, notes, translation};
use super::frames::frames;
use super::{BRIDGE_SETS, INET_SETS};
use crate::datapath::linux::nft::{Base, Batch, Family, Rule};

/// What the tables carry as a note: rules of another note were made by another version of this program and are
/// replaced as a whole.
pub(crate) const NOTE: &[u8] = b"skep-cni rules 5";

pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;
pub(super) const ICMPV6: u8 = 58;

pub(super) const ROUTER_SOLICITATION: u8 = 133;
pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
pub(super) const REDIRECT: u8 = 137;
pub(super) const MLD_QUERY: u8 = 130;

/// Makes the tables, which must not exist, with all chains and sets that do not depend on networks.
pub(crate) fn create_base(batch: &mut Batch) {
    batch.family(Family::Bridge).create_table(NOTE);
    for spec in &BRIDGE_SETS {
        batch.set(spec);
    }
    frames(batch);
    batch.family(Family::Inet).create_table(NOTE);
    for spec in &INET_SETS {
        batch.set(spec);
    }
    flows(batch);
    notes(batch);
    translation(batch);
}

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

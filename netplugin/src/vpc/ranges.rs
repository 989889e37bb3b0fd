//! Which addresses of the network's subnets a node may give out.
//!
//! A subnet is cut into equal blocks, a power of two of them. The first holds the gateway and is nobody's; block N is
//! that of the node with number N. So two nodes never give out the same address, whatever they know of each other.
//!
//! Where groups are declared, a subnet is cut into as many equal slots first, and each of these into blocks. Slot 0 is for
//! sandboxes of no group, and slot N for the group with number N: one range for a group's members on all nodes, those
//! to come as well, of which no node's coming or going changes anything.

use std::net::IpAddr;

use ipnet::IpNet;

use super::declaration::Declaration;
use super::{DeclarationError, wrong};
use crate::ipam::{address, number};

/// What a node may give out of one subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The subnet.
    pub subnet: IpNet,
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
}

/// Bits that numbers from 0 to `max` take.
fn bits_of(max: u16) -> u32 {
    16 - max.leading_zeros()
}

/// How many nodes a network gets room for unless somebody says: half of the smallest subnet's bits that groups leave, so that
/// /16 is 255 nodes with 256 addresses each and /24 is 15 nodes with 16.
pub fn default_max_nodes(subnets: &[IpNet], max_groups: u16) -> u16 {
    let bits = |net: &IpNet| {
        u32::from(net.max_prefix_len() - net.prefix_len()).saturating_sub(bits_of(max_groups)) / 2
    };
    let bits = subnets.iter().map(bits).min().unwrap_or(1);
    (1 << bits.clamp(1, 12)) - 1
}

/// Checks that every node can have addresses.
pub(super) fn check(subnets: &[IpNet], max_groups: u16, max_nodes: u16) -> Result<(), DeclarationError> {
    if subnets.is_empty() {
        return Err(wrong("subnets", "is empty"));
    }
    if !(1..=4095).contains(&max_nodes) {
        return Err(wrong("maxNodes", format!("{max_nodes} is not between 1 and 4095")));
    }
    if max_groups > 4095 {
        return Err(wrong("maxGroups", format!("{max_groups} is not between 0 and 4095")));
    }
    for (n, net) in subnets.iter().enumerate() {
        let at = format!("subnets[{n}]");
        if *net != net.trunc() {
            return Err(wrong(at, format!("{net} has host bits: {} was meant?", net.trunc())));
        }
        if let Some(other) = subnets[..n].iter().find(|other| other.contains(net) || net.contains(*other)) {
            return Err(wrong(at, format!("{net} overlaps {other}")));
        }
        let bits = u32::from(net.max_prefix_len() - net.prefix_len());
        if bits < bits_of(max_groups) + bits_of(max_nodes) + 2 {
            let (groups, or) = match max_groups {
                0 => (String::new(), String::new()),
                groups => (format!("{groups} groups on "), ", maxGroups".to_owned()),
            };
            let why = format!(
                "{net} has no room for {groups}{max_nodes} nodes with at least 4 addresses each: \
                 take a larger subnet or a smaller maxNodes{or}"
            );
            return Err(wrong(at, why));
        }
    }
    Ok(())
}

impl Declaration {
    /// The addresses that the node with number `id` may give out to sandboxes of no group, one range for each subnet.
    pub fn ranges(&self, id: u16) -> Result<Vec<Block>, DeclarationError> {
        self.ranges_for(0, id)
    }

    /// The addresses that the node with number `id` may give out to sandboxes of the group with number `group` (0: of
    /// none), one range for each subnet.
    pub fn ranges_for(&self, group: u16, id: u16) -> Result<Vec<Block>, DeclarationError> {
        let range = |subnet: &IpNet| {
            let bits = u32::from(subnet.max_prefix_len() - subnet.prefix_len());
            let nodes = bits_of(self.max_nodes);
            // A number that is too large would be in another's part.
            let fits = bits_of(group) <= bits_of(self.max_groups) && bits_of(id) <= nodes;
            let size = 1_u128.checked_shl(bits.checked_sub(bits_of(self.max_groups) + nodes)?)?;
            let base = subnet.network();
            let first = ((u128::from(group) << nodes) | u128::from(id)).checked_mul(size).filter(|_| fits)?;
            // The subnet's last address is the broadcast address.
            let last = (first + size - 1).min(number(subnet.broadcast()) - number(base) - 1);
            Some(Block { subnet: *subnet, start: address(base, first)?, end: address(base, last)? })
        };
        self.subnets
            .iter()
            .map(|subnet| {
                range(subnet).ok_or_else(|| wrong("subnets", format!("{subnet} has no block {id}")))
            })
            .collect()
    }

    /// The addresses that members of the group with number `group` have, on whatever node: one range of each subnet.
    pub fn group_ranges(&self, group: u16) -> Result<Vec<IpNet>, DeclarationError> {
        let slots = bits_of(self.max_groups);
        let slot = |subnet: &IpNet| {
            let prefix = subnet.prefix_len().checked_add(u8::try_from(slots).ok()?)?;
            let bits = u32::from(subnet.max_prefix_len().checked_sub(prefix)?);
            let first = u128::from(group).checked_mul(1_u128.checked_shl(bits)?)?;
            IpNet::new(address(subnet.network(), first)?, prefix).ok().filter(|_| bits_of(group) <= slots)
        };
        self.subnets
            .iter()
            .map(|subnet| {
                slot(subnet)
                    .ok_or_else(|| wrong("subnets", format!("{subnet} has no part for group {group}")))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    use crate::vpc::testing;

    fn declaration(subnets: &[&str], max_nodes: u16) -> Declaration {
        with_groups(subnets, 0, max_nodes)
    }

    fn with_groups(subnets: &[&str], max_groups: u16, max_nodes: u16) -> Declaration {
        testing::declaration(json!({
            "subnets": subnets, "maxGroups": max_groups, "maxNodes": max_nodes,
            "nodes": [{"name": "a", "id": 1, "address": "192.0.2.1"}],
        }))
        .unwrap()
    }

    fn text(declaration: &Declaration, id: u16) -> String {
        let blocks = declaration.ranges(id).unwrap();
        blocks.iter().map(|block| format!("{}-{}", block.start, block.end)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn blocks_are_what_one_would_draw() {
        let wide = declaration(&["10.1.0.0/16", "fd01::/64"], 255);
        assert_eq!(text(&wide, 1), "10.1.1.0-10.1.1.255 fd01::100:0:0:0-fd01::1ff:ffff:ffff:ffff");
        assert_eq!(text(&wide, 255), "10.1.255.0-10.1.255.254 fd01::ff00:0:0:0-fd01::ffff:ffff:ffff:fffe");
        let narrow = declaration(&["192.0.2.0/24"], 15);
        assert_eq!(text(&narrow, 1), "192.0.2.16-192.0.2.31");
        let nets = ["10.1.0.0/16", "10.2.0.0/24", "fd01::/64"].map(|net| net.parse::<IpNet>().unwrap());
        assert_eq!([0, 7].map(|groups| default_max_nodes(&nets[..1], groups)), [255, 63]);
        assert_eq!([0, 7].map(|groups| default_max_nodes(&nets[1..], groups)), [15, 3]);
    }

    #[test]
    fn a_group_is_one_range_for_all_nodes() {
        let vpc = with_groups(&["10.1.0.0/16", "fd01::/64"], 7, 63);
        let of = |group| {
            let nets = vpc.group_ranges(group).unwrap();
            nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(1), "10.1.32.0/19 fd01::2000:0:0:0/67");
        assert_eq!(of(7), "10.1.224.0/19 fd01::e000:0:0:0/67");
        assert_eq!(text(&vpc, 2), "10.1.1.0-10.1.1.127 fd01::100:0:0:0-fd01::17f:ffff:ffff:ffff");
        let block = vpc.ranges_for(1, 2).unwrap()[0];
        assert_eq!(
            (block.start.to_string(), block.end.to_string()),
            ("10.1.33.0".into(), "10.1.33.127".into())
        );
    }

    proptest! {
        #[test]
        fn no_two_nodes_share_an_address_and_nobody_has_the_gateways(
            len in 8_u8..=24, max_nodes in 1_u16..=4095, a in 1_u16..=4095, b in 1_u16..=4095,
        ) {
            let net: IpNet = IpNet::new("10.0.0.0".parse().unwrap(), len).unwrap().trunc();
            prop_assume!(check(&[net], 0, max_nodes).is_ok());
            let (a, b) = (a % max_nodes + 1, b % max_nodes + 1);
            let vpc = declaration(&[&net.to_string()], max_nodes);
            let (first, second) = (vpc.ranges(a).unwrap()[0], vpc.ranges(b).unwrap()[0]);
            prop_assert!(first.start <= first.end && net.contains(&first.start) && net.contains(&first.end));
            prop_assert!(a == b || first.end < second.start || second.end < first.start);
            prop_assert!(first.start > address(net.network(), 1).unwrap());
            prop_assert!(first.end < net.broadcast());
        }

        #[test]
        fn groups_and_nodes_share_no_address_and_a_groups_range_is_all_of_its_blocks(
            ipv6: bool, len in 4_u8..=22, max_groups in 1_u16..=300, max_nodes in 1_u16..=300,
            groups in (any::<u16>(), any::<u16>()), nodes in (any::<u16>(), any::<u16>()),
        ) {
            let (base, len) = if ipv6 { ("fd00::", len + 100) } else { ("10.0.0.0", len) };
            let net: IpNet = IpNet::new(base.parse().unwrap(), len).unwrap().trunc();
            prop_assume!(check(&[net], max_groups, max_nodes).is_ok());
            let vpc = with_groups(&[&net.to_string()], max_groups, max_nodes);
            let gateway = address(net.network(), 1).unwrap();
            let block = |group: u16, node: u16| {
                let (group, node) = (group % (max_groups + 1), node % max_nodes + 1);
                let block = vpc.ranges_for(group, node).unwrap()[0];
                assert!(block.start <= block.end && net.contains(&block.start) && block.end < net.broadcast());
                assert!(!(block.start..=block.end).contains(&gateway));
                // Of all groups it is in its own's range, as a whole, and in no other's.
                for other in (1..=max_groups).filter(|other| *other == group || *other % 7 == 0) {
                    let slot = vpc.group_ranges(other).unwrap()[0];
                    assert_eq!(slot.contains(&block.start), other == group);
                    assert_eq!(slot.contains(&block.end), other == group);
                    assert!(!slot.contains(&gateway) && net.contains(&slot));
                }
                ((group, node), block)
            };
            let ((one, a), (other, b)) = (block(groups.0, nodes.0), block(groups.1, nodes.1));
            prop_assert_eq!(one == other, !(a.end < b.start || b.end < a.start));
            // Nothing of the range is left over: from the block of number 0, which is nobody's, to that of the highest number.
            let slot = vpc.group_ranges(1).unwrap()[0];
            let [zero, first] = [0, 1].map(|node| number(vpc.ranges_for(1, node).unwrap()[0].start));
            prop_assert_eq!(zero, number(slot.network()));
            prop_assert_eq!(number(slot.broadcast()) + 1 - zero, (first - zero) << bits_of(max_nodes));
        }
    }
}

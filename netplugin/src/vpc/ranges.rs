//! Which addresses of the network's subnets a node may give out.
//!
//! A subnet is cut into equal blocks, a power of two of them. The first holds the gateway and is nobody's; block N is
//! that of the node with number N. So two nodes never give out the same address, whatever they know of each other.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Declaration, DeclarationError, wrong};
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

/// Bits of the host's part of an address that say which block it is in.
fn block_bits(max_nodes: u16) -> u32 {
    // Numbers from 0 to `max_nodes`.
    16 - max_nodes.leading_zeros()
}

/// How many nodes a network gets room for unless somebody says: half of the smallest subnet's bits, so that /16 is 255
/// nodes with 256 addresses each and /24 is 15 nodes with 16.
pub fn default_max_nodes(subnets: &[IpNet]) -> u16 {
    let bits = subnets.iter().map(|net| (net.max_prefix_len() - net.prefix_len()) / 2).min().unwrap_or(1);
    (1 << bits.clamp(1, 12)) - 1
}

/// Checks that every node can have addresses.
pub(super) fn check(subnets: &[IpNet], max_nodes: u16) -> Result<(), DeclarationError> {
    if subnets.is_empty() {
        return Err(wrong("subnets", "is empty"));
    }
    if !(1..=4095).contains(&max_nodes) {
        return Err(wrong("maxNodes", format!("{max_nodes} is not between 1 and 4095")));
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
        if bits < block_bits(max_nodes) + 2 {
            let why = format!(
                "{net} has no room for {max_nodes} nodes with at least 4 addresses each: \
                 take a larger subnet or a smaller maxNodes"
            );
            return Err(wrong(at, why));
        }
    }
    Ok(())
}

impl Declaration {
    /// The addresses that the node with number `id` may give out, one range for each subnet.
    pub fn ranges(&self, id: u16) -> Result<Vec<Block>, DeclarationError> {
        let range = |subnet: &IpNet| {
            let bits = u32::from(subnet.max_prefix_len() - subnet.prefix_len());
            let size = 1_u128.checked_shl(bits.checked_sub(block_bits(self.max_nodes))?)?;
            let base = subnet.network();
            let first = u128::from(id).checked_mul(size)?;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn declaration(subnets: &[&str], max_nodes: u16) -> Declaration {
        let value = serde_json::json!({
            "version": 1, "name": "vpc", "revision": 1, "vni": 1, "subnets": subnets, "maxNodes": max_nodes,
            "nodes": [{"name": "a", "id": 1, "address": "192.0.2.1"}],
        });
        Declaration::parse(&serde_json::to_vec(&value).unwrap()).unwrap()
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
        assert_eq!(default_max_nodes(&["10.1.0.0/16".parse().unwrap()]), 255);
        assert_eq!(default_max_nodes(&["10.1.0.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()]), 15);
    }

    proptest! {
        #[test]
        fn no_two_nodes_share_an_address_and_nobody_has_the_gateways(
            len in 8_u8..=24, max_nodes in 1_u16..=4095, a in 1_u16..=4095, b in 1_u16..=4095,
        ) {
            let net: IpNet = IpNet::new("10.0.0.0".parse().unwrap(), len).unwrap().trunc();
            prop_assume!(check(&[net], max_nodes).is_ok());
            let (a, b) = (a % max_nodes + 1, b % max_nodes + 1);
            let vpc = declaration(&[&net.to_string()], max_nodes);
            let (first, second) = (vpc.ranges(a).unwrap()[0], vpc.ranges(b).unwrap()[0]);
            prop_assert!(first.start <= first.end && net.contains(&first.start) && net.contains(&first.end));
            prop_assert!(a == b || first.end < second.start || second.end < first.start);
            prop_assert!(first.start > address(net.network(), 1).unwrap());
            prop_assert!(first.end < net.broadcast());
        }
    }
}

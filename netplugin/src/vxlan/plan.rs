//! From a declaration to one node's links.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use super::{Mode, Node, Vpc, VpcError};
use crate::mac::{Mac, digest_hex};

/// A VXLAN link of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The node's own underlay address.
    pub local: IpAddr,
    /// Where frames to unknown and group addresses go, and who may send.
    pub flood_to: Vec<IpAddr>,
    /// Ethernet addresses known to be behind a peer.
    pub stations: Vec<(Mac, IpAddr)>,
    /// Mode `mesh`: this end's address of the pair's /30.
    pub peer_address: Option<IpNet>,
}

/// A peer, and the addresses (ours, theirs) by which we reach it.
type Path<'a> = (&'a Node, (IpAddr, IpAddr));

/// The number of the pair of two ids: depends on nothing else, is unique, and is below that of every pair with a
/// higher id.
fn pair(a: u16, b: u16) -> u32 {
    let (low, high) = (u32::from(a.min(b)), u32::from(a.max(b)));
    (high - 1) * high.saturating_sub(2) / 2 + (low - 1)
}

/// The highest pair number a declaration uses.
pub(super) fn highest_pair(vpc: &Vpc) -> u32 {
    let mut ids: Vec<u16> = vpc.nodes.iter().filter_map(|node| node.id).collect();
    ids.sort_unstable();
    match ids[..] {
        [.., a, b] => pair(a, b),
        _ => 0,
    }
}

impl Vpc {
    /// The links `local` must have: each a port of the network's bridge, and no frame goes from one to another.
    /// `network` is the network's name: links are named after it.
    pub fn plan(&self, network: &str, local: &Node) -> Result<Vec<Link>, VpcError> {
        let peers = self.nodes.iter().filter(|node| node.name != local.name);
        let paths = peers
            .map(|peer| {
                local.path_to(peer).map(|path| (peer, path)).ok_or_else(|| VpcError::Field {
                    field: "nodes".to_owned(),
                    why: format!("`{}` and `{}` have no address family in common", local.name, peer.name),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        match self.mode {
            Mode::Flood => Ok(self.flood(network, &paths)),
            Mode::Mesh => self.mesh(network, local, &paths),
        }
    }

    fn stations_behind(&self, peers: &[Path<'_>]) -> Vec<(Mac, IpAddr)> {
        self.stations
            .iter()
            .filter_map(|station| {
                let (_, (_, remote)) = peers.iter().find(|(peer, _)| peer.name == station.node)?;
                Some((station.mac, *remote))
            })
            .collect()
    }

    fn flood(&self, network: &str, paths: &[Path<'_>]) -> Vec<Link> {
        // A link's socket speaks one family only.
        let mut families: BTreeMap<bool, Vec<Path<'_>>> = BTreeMap::new();
        for path in paths {
            families.entry(path.1.0.is_ipv6()).or_default().push(*path);
        }
        families
            .into_iter()
            .map(|(ipv6, paths)| Link {
                name: link_name(network, if ipv6 { "6" } else { "4" }),
                vni: self.vni,
                port: self.port,
                local: paths[0].1.0,
                flood_to: paths.iter().map(|(_, (_, remote))| *remote).collect(),
                stations: self.stations_behind(&paths),
                peer_address: None,
            })
            .collect()
    }

    fn mesh(&self, network: &str, local: &Node, paths: &[Path<'_>]) -> Result<Vec<Link>, VpcError> {
        let id = |node: &Node| {
            node.id.ok_or_else(|| VpcError::Field {
                field: "nodes".to_owned(),
                why: format!("`{}` has no id", node.name),
            })
        };
        let own = id(local)?;
        paths
            .iter()
            .map(|path| {
                let (peer, (from, to)) = *path;
                let number = pair(own, id(peer)?);
                let vni =
                    self.vni.checked_add(number).filter(|vni| *vni <= super::MAX_VNI).ok_or_else(|| {
                        VpcError::Field {
                            field: "vni".to_owned(),
                            why: format!("pair number {number} is past 24 bits"),
                        }
                    })?;
                Ok(Link {
                    name: link_name(network, &peer.name),
                    vni,
                    port: self.port,
                    local: from,
                    flood_to: vec![to],
                    stations: self.stations_behind(&[*path]),
                    peer_address: self.peer_address(number, own < id(peer)?),
                })
            })
            .collect()
    }

    fn peer_address(&self, number: u32, lower: bool) -> Option<IpNet> {
        let IpNet::V4(net) = self.peer_network? else { return None };
        let host = u32::from(net.network()).checked_add(number.checked_mul(4)?)?.checked_add(if lower {
            1
        } else {
            2
        })?;
        Ipv4Net::new(Ipv4Addr::from(host), 30).ok().map(IpNet::V4)
    }
}

fn link_name(network: &str, what: &str) -> String {
    format!("skx{}", digest_hex(&["vxlan", network, what], 6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn vpc(mode: Mode, ids: &[u16]) -> Vpc {
        Vpc {
            vni: 100,
            mode,
            port: 4789,
            nodes: ids
                .iter()
                .map(|id| Node {
                    name: format!("n{id}"),
                    address: Ipv4Addr::from(0xc000_0200 + u32::from(*id)).into(),
                    alternate: None,
                    id: Some(*id),
                })
                .collect(),
            node: None,
            peer_network: (mode == Mode::Mesh).then(|| "10.0.0.0/8".parse().unwrap()),
            stations: Vec::new(),
        }
    }

    #[test]
    fn flood_reaches_every_peer_by_one_link() {
        let vpc = vpc(Mode::Flood, &[1, 2, 3]);
        vpc.validate().unwrap();
        let plan = vpc.plan("a", &vpc.nodes[1]).unwrap();
        assert_eq!(plan.len(), 1);
        assert_eq!(plan[0].flood_to, [vpc.nodes[0].address, vpc.nodes[2].address]);
        assert!(plan[0].name.len() <= 15);
    }

    #[test]
    fn families_may_be_mixed_where_each_two_have_one_in_common() {
        let mut vpc = vpc(Mode::Flood, &[1, 2, 3]);
        assert_eq!(vpc.overhead(), 50);
        vpc.nodes[0].alternate = Some("2001:db8::1".parse().unwrap());
        vpc.nodes[1].alternate = Some("2001:db8::2".parse().unwrap());
        vpc.nodes[2].address = "2001:db8::3".parse().unwrap();
        vpc.validate().unwrap();
        assert_eq!(vpc.overhead(), 70);
        let links = vpc.plan("a", &vpc.nodes[0]).unwrap();
        assert_eq!(links.len(), 2);
        assert_eq!(
            (links[0].local, links[1].local),
            (vpc.nodes[0].address, "2001:db8::1".parse::<IpAddr>().unwrap())
        );
        vpc.nodes[1].alternate = None;
        assert!(
            vpc.validate().unwrap_err().to_string().contains("`n3` has no address of a family that `n2` has")
        );
    }

    #[test]
    fn mesh_goes_past_one_octet() {
        let ids: Vec<u16> = (1..=40).collect();
        let vpc = vpc(Mode::Mesh, &ids);
        vpc.validate().unwrap();
        let mut nets = BTreeSet::new();
        let mut vnis = BTreeSet::new();
        for node in &vpc.nodes {
            for link in vpc.plan("a", node).unwrap() {
                nets.insert(link.peer_address.unwrap().trunc());
                vnis.insert(link.vni);
            }
        }
        assert_eq!((nets.len(), vnis.len()), (40 * 39 / 2, 40 * 39 / 2));
        assert!(nets.iter().any(|net| net.to_string().starts_with("10.0.12.")));
    }

    #[test]
    fn a_peer_network_that_is_too_small_is_refused() {
        let mut vpc = vpc(Mode::Mesh, &[1, 2, 3, 4]);
        vpc.peer_network = Some("10.0.0.0/28".parse().unwrap());
        assert!(vpc.validate().is_err());
        vpc.peer_network = Some("10.0.0.0/27".parse().unwrap());
        vpc.validate().unwrap();
    }

    proptest! {
        #[test]
        fn pairs_are_unique_and_symmetric(a in 1u16..4096, b in 1u16..4096, c in 1u16..4096, d in 1u16..4096) {
            prop_assume!(a != b && c != d);
            prop_assert_eq!(pair(a, b), pair(b, a));
            let same = (a.min(b), a.max(b)) == (c.min(d), c.max(d));
            prop_assert_eq!(pair(a, b) == pair(c, d), same);
        }

        #[test]
        fn both_ends_of_a_mesh_agree_and_a_new_node_disturbs_nobody(ids in proptest::collection::btree_set(1u16..4096, 2..8), new in 1u16..4096) {
            prop_assume!(!ids.contains(&new));
            let mut ids: Vec<u16> = ids.into_iter().collect();
            let mut before = vpc(Mode::Mesh, &ids);
            before.peer_network = None;
            ids.push(new);
            let mut after = vpc(Mode::Mesh, &ids);
            after.peer_network = None;
            for node in &before.nodes {
                let old = before.plan("a", node).unwrap();
                let now = after.plan("a", node).unwrap();
                prop_assert!(old.iter().all(|link| now.contains(link)));
                for link in &old {
                    let peer = before.nodes.iter().find(|peer| peer.address == link.flood_to[0]).unwrap();
                    let back = before.plan("a", peer).unwrap();
                    prop_assert!(back.iter().any(|other| other.vni == link.vni && other.flood_to == [node.address]));
                }
            }
        }
    }
}

//! A network stretched over several hosts by VXLAN: what each node must have.
//!
//! Pure computation: [`Vpc`] is what somebody declared, [`Vpc::plan`] is what one node makes of it. The datapath
//! makes it so.
//!
//! - `flood`: one VNI for the network. A node has one VXLAN link per address family of its peers (one in the usual
//!   case); frames to unknown or group addresses go to every peer (head-end replication).
//! - `mesh`: one VNI and one link per pair of nodes, as CBSD's VPC does it. A pair's number depends on the two
//!   nodes' ids only, so that a new node disturbs nobody.
//!
//! In both modes no frame that came from a VXLAN link leaves by another (split horizon), so there are no loops
//! with any number of nodes.

mod plan;

pub use plan::Link;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::mac::Mac;

/// How nodes are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One VNI, a list of peers.
    #[default]
    Flood,
    /// A VNI per pair.
    Mesh,
}

/// A host of the VPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its address in the underlay.
    pub address: IpAddr,
    /// Its address of the other family, where it has one: two nodes need a family in common, and use IPv4 if they
    /// have both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alternate: Option<IpAddr>,
    /// Its number in the VPC, 1 to 4095; never used again for another node. Needed by `mesh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
}

/// An end of which everybody may know where it is: saves the flooding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Station {
    /// Its Ethernet address.
    pub mac: Mac,
    /// The node it is behind.
    pub node: String,
    /// Its IP address, for a neighbour entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
}

/// The declaration of a stretched network: the same file on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vpc {
    /// The VXLAN network identifier; in mode `mesh` the first of a block.
    pub vni: u32,
    /// How nodes are joined.
    #[serde(default)]
    pub mode: Mode,
    /// The UDP port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// The hosts.
    pub nodes: Vec<Node>,
    /// Which of them this host is; none means the one whose address the host has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Mode `mesh`: the network the pairs' /30 addresses come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_network: Option<IpNet>,
    /// Ends known beforehand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stations: Vec<Station>,
}

pub(crate) fn default_port() -> u16 {
    4789
}

/// Why a declaration is not usable.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VpcError {
    /// A field breaks a rule.
    #[error("vxlan.{field}: {why}")]
    Field {
        /// Where in the declaration.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// The host is none of the nodes.
    #[error("vxlan.nodes: this host has the address of none of them, and vxlan.node names none")]
    NotANode,
}

/// VNIs are 24 bits.
const MAX_VNI: u32 = (1 << 24) - 1;
/// With 4095 nodes a mesh has 8,382,465 pairs: still within 24 bits.
const MAX_ID: u16 = 4095;

impl Vpc {
    /// Checks what can be checked without knowing the host.
    pub fn validate(&self) -> Result<(), VpcError> {
        let wrong = |field: &str, why: String| Err(VpcError::Field { field: field.to_owned(), why });
        if !(1..=MAX_VNI).contains(&self.vni) {
            return wrong("vni", format!("{} is not between 1 and {MAX_VNI}", self.vni));
        }
        if self.port == 0 {
            return wrong("port", "0 is no port".to_owned());
        }
        if self.nodes.is_empty() {
            return wrong("nodes", "is empty".to_owned());
        }
        for (n, node) in self.nodes.iter().enumerate() {
            let at = format!("nodes[{n}]");
            if node.alternate.is_some_and(|ip| ip.is_ipv4() == node.address.is_ipv4()) {
                return wrong(&format!("{at}.alternate"), "is of the same family as address".to_owned());
            }
            if node.address.is_unspecified() || node.address.is_multicast() || node.address.is_loopback() {
                return wrong(&format!("{at}.address"), format!("{} is not a host's address", node.address));
            }
            for other in &self.nodes[..n] {
                if other.name == node.name {
                    return wrong(&format!("{at}.name"), format!("`{}` is there twice", node.name));
                }
                if let Some(ip) = node.addresses().find(|ip| other.addresses().any(|taken| taken == *ip)) {
                    return wrong(&format!("{at}.address"), format!("{ip} is there twice"));
                }
                if node.path_to(other).is_none() {
                    let why = format!("`{}` has no address of a family that `{}` has", node.name, other.name);
                    return wrong(&at, why);
                }
                if other.id.is_some() && other.id == node.id {
                    return wrong(&format!("{at}.id"), format!("{} is there twice", node.id.unwrap_or(0)));
                }
            }
            match (self.mode, node.id) {
                (Mode::Mesh, None) => {
                    return wrong(&format!("{at}.id"), "is missing, and mode mesh needs it".to_owned());
                }
                (_, Some(id)) if !(1..=MAX_ID).contains(&id) => {
                    return wrong(&format!("{at}.id"), format!("{id} is not between 1 and {MAX_ID}"));
                }
                _ => {}
            }
        }
        if let Some(name) = &self.node
            && self.find(name).is_none()
        {
            return wrong("node", format!("`{name}` is none of the nodes"));
        }
        for (n, station) in self.stations.iter().enumerate() {
            if self.find(&station.node).is_none() {
                return wrong(
                    &format!("stations[{n}].node"),
                    format!("`{}` is none of the nodes", station.node),
                );
            }
        }
        self.validate_mesh()
    }

    fn validate_mesh(&self) -> Result<(), VpcError> {
        let Some(peer_network) = self.peer_network else { return Ok(()) };
        let wrong = |why: String| Err(VpcError::Field { field: "peerNetwork".to_owned(), why });
        let IpNet::V4(net) = peer_network else {
            return wrong("is not an IPv4 network".to_owned());
        };
        if self.mode != Mode::Mesh {
            return wrong("is there, but mode is not mesh".to_owned());
        }
        let highest = plan::highest_pair(self);
        let room = 1_u64 << (32 - net.prefix_len());
        if (u64::from(highest) + 1) * 4 > room {
            return wrong(format!("{net} has no room for pair number {highest} (a /30 each)"));
        }
        Ok(())
    }

    /// The node called `name`.
    pub fn find(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Which node this host is, given its addresses.
    pub fn local(&self, addresses: &[IpAddr]) -> Result<&Node, VpcError> {
        match &self.node {
            Some(name) => self.find(name),
            None => self.nodes.iter().find(|node| node.addresses().any(|ip| addresses.contains(&ip))),
        }
        .ok_or(VpcError::NotANode)
    }

    /// The bytes that VXLAN takes from the underlay's MTU, for every sandbox of the network: 50 when all nodes reach
    /// each other over IPv4, 70 as soon as two of them need IPv6.
    pub fn overhead(&self) -> u32 {
        let needs_ipv6 = self.nodes.iter().enumerate().any(|(n, node)| {
            self.nodes[..n].iter().any(|other| node.path_to(other).is_some_and(|(from, _)| from.is_ipv6()))
        });
        if needs_ipv6 || self.nodes.iter().all(|node| node.addresses().all(|ip| ip.is_ipv6())) {
            70
        } else {
            50
        }
    }
}

impl Node {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.address).chain(self.alternate)
    }

    /// The addresses, ours and theirs, by which two nodes reach each other.
    pub fn path_to(&self, other: &Self) -> Option<(IpAddr, IpAddr)> {
        [false, true].into_iter().find_map(|ipv6| {
            let of = |node: &Self| node.addresses().find(|ip| ip.is_ipv6() == ipv6);
            of(self).zip(of(other))
        })
    }
}

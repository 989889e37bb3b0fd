//! What somebody declared: a network, its nodes, its groups.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::SshDestination;
use crate::policy::GroupName;
use crate::vxlan::{Mode, Node, Station, Vpc};

/// A host of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its number, 1 to `maxNodes`: which block of the subnets is its own. Never used again for another node.
    pub id: u16,
    /// Its address in the underlay.
    pub address: IpAddr,
    /// Its address of the other family, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alternate: Option<IpAddr>,
    /// Where `skep net sync` finds it; none means root at `address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshDestination>,
}

impl Member {
    /// Where `skep net sync` finds it.
    pub fn destination(&self) -> String {
        self.ssh.as_ref().map_or_else(|| format!("root@{}", self.address), ToString::to_string)
    }
}

/// A group of the network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// Its number, 1 to `maxGroups`: which part of the subnets is its own. Never used again for another group.
    pub id: u16,
}

/// A network over several hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Declaration {
    /// Format of the file.
    pub version: u32,
    /// The network's name.
    pub name: String,
    /// Counts the changes: a node does not go back to a lower one.
    pub revision: u64,
    /// The VXLAN network identifier; in mode `mesh` the first of a block.
    pub vni: u32,
    /// How nodes are joined.
    #[serde(default)]
    pub mode: Mode,
    /// The UDP port.
    #[serde(default = "crate::vxlan::default_port")]
    pub port: u16,
    /// Mode `mesh`: the network the pairs' /30 addresses come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_network: Option<IpNet>,
    /// The sandboxes' subnets, at most one of each family or several: a sandbox gets an address of each.
    pub subnets: Vec<IpNet>,
    /// How many nodes there can ever be: the subnets are cut into so many blocks, and one for the gateway.
    pub max_nodes: u16,
    /// The hosts.
    pub nodes: Vec<Member>,
    /// Numbers of nodes that left: their addresses may still be remembered somewhere.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub retired: BTreeSet<u16>,
    /// How many groups of sandboxes there can ever be: the subnets are cut into so many parts more, each for all nodes. 0
    /// means that groups are not declared, and each node knows its own members of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_groups: u16,
    /// The groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// Groups that were removed: the numbers are kept for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired_groups: Vec<Group>,
    /// Ends known beforehand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stations: Vec<Station>,
    /// Further fields of the plugin's configuration: `policy`, `ipMasq`, `mtu`, `dns`, ...
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's way")]
fn is_zero(number: &u16) -> bool {
    *number == 0
}

impl Declaration {
    /// The format this code writes.
    pub const VERSION: u32 = 1;

    /// The part about VXLAN, as node `local` has it.
    pub fn vpc(&self, local: Option<&str>) -> Vpc {
        let node = |member: &Member| Node {
            name: member.name.clone(),
            address: member.address,
            alternate: member.alternate,
            id: Some(member.id),
        };
        Vpc {
            vni: self.vni,
            mode: self.mode,
            port: self.port,
            nodes: self.nodes.iter().map(node).collect(),
            node: local.map(str::to_owned),
            peer_network: self.peer_network,
            stations: self.stations.clone(),
        }
    }

    /// The node called `name`.
    pub fn find(&self, name: &str) -> Option<&Member> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

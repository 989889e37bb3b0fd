//! What somebody declared: a network, its nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{DeclarationError, Group, SshDestination, conflist, ranges, wrong};
use crate::cni::check_name;
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

/// A node's name is a word of a command that a shell reads.
fn check_node_name(field: &str, name: &str) -> Result<(), DeclarationError> {
    let ok = (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'));
    if ok {
        return Ok(());
    }
    Err(wrong(
        field,
        format!(
            "`{}` is not a letter or digit followed by at most 62 letters, digits, `_`, `.`, `-`",
            name.escape_debug()
        ),
    ))
}

impl Declaration {
    /// The format this code writes.
    pub const VERSION: u32 = 1;

    /// Reads and checks a declaration.
    pub fn parse(text: &[u8]) -> Result<Self, DeclarationError> {
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let declaration: Self = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            DeclarationError::Json { field: error.path().to_string(), why: error.inner().to_string() }
        })?;
        // What follows it would be lost with the next change.
        deserializer
            .end()
            .map_err(|error| DeclarationError::Json { field: ".".to_owned(), why: error.to_string() })?;
        declaration.validate()?;
        Ok(declaration)
    }

    /// The file's text.
    pub fn to_text(&self) -> Result<String, DeclarationError> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|error| DeclarationError::Json { field: ".".to_owned(), why: error.to_string() })
    }

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

    /// Checks what can be checked without knowing the host.
    pub fn validate(&self) -> Result<(), DeclarationError> {
        if self.version != Self::VERSION {
            let why = format!(
                "is {}, this program knows format {} (another release's?)",
                self.version,
                Self::VERSION
            );
            return Err(wrong("version", why));
        }
        check_name(&self.name).map_err(|why| wrong("name", why))?;
        for (n, node) in self.nodes.iter().enumerate() {
            check_node_name(&format!("nodes[{n}].name"), &node.name)?;
            if !(1..=self.max_nodes).contains(&node.id) {
                let why = format!("{} is not between 1 and maxNodes, {}", node.id, self.max_nodes);
                return Err(wrong(format!("nodes[{n}].id"), why));
            }
            if self.retired.contains(&node.id) {
                let why = format!("{} was another node's: take a number that was never used", node.id);
                return Err(wrong(format!("nodes[{n}].id"), why));
            }
        }
        self.vpc(None).validate()?;
        ranges::check(&self.subnets, self.max_groups, self.max_nodes)?;
        self.check_groups()?;
        for field in ["cniVersion", "name", "type", "ipam", "vxlan", "uplink", "prevResult", "runtimeConfig"]
        {
            if self.config.contains_key(field) {
                return Err(wrong(format!("config.{field}"), "follows from the declaration"));
            }
        }
        if self.config.get("policy").is_some_and(|policy| policy.get("groups").is_some()) {
            return Err(wrong("config.policy.groups", "follows from the declaration"));
        }
        let Some(first) = self.nodes.first() else { return Ok(()) };
        conflist::parse(&conflist::plugin_config(self, first, None)?)?;
        Ok(())
    }

    /// A number that no node has or had.
    fn next_id(&self) -> Result<u16, DeclarationError> {
        let used = |id: &u16| self.retired.contains(id) || self.nodes.iter().any(|node| node.id == *id);
        (1..=self.max_nodes).find(|id| !used(id)).ok_or_else(|| {
            wrong("maxNodes", format!("all {} numbers are, or were, some node's", self.max_nodes))
        })
    }

    /// Adds a node, which gets a number that was never used.
    pub fn add_node(&mut self, node: &NewNode) -> Result<(), DeclarationError> {
        let id = self.next_id()?;
        self.nodes.push(Member {
            name: node.name.clone(),
            id,
            address: node.address,
            alternate: node.alternate,
            ssh: node.ssh.clone(),
        });
        Ok(())
    }

    /// Removes a node; its number is never used again.
    pub fn remove_node(&mut self, name: &str) -> Result<(), DeclarationError> {
        let at = self
            .nodes
            .iter()
            .position(|node| node.name == name)
            .ok_or_else(|| wrong("nodes", format!("`{}` is none of them", name.escape_debug())))?;
        if let Some(n) = self.stations.iter().position(|station| station.node == name) {
            return Err(wrong(format!("stations[{n}]"), format!("is behind `{name}`")));
        }
        self.retired.insert(self.nodes.remove(at).id);
        Ok(())
    }

    /// The node that has one of a host's addresses, or the one called `name`, which must have one.
    pub fn local(&self, name: Option<&str>, addresses: &[IpAddr]) -> Result<&Member, DeclarationError> {
        let here = |node: &&Member| {
            std::iter::once(node.address).chain(node.alternate).any(|ip| addresses.contains(&ip))
        };
        let not = |why: String| DeclarationError::NotANode { network: self.name.clone(), why };
        match name {
            None => self
                .nodes
                .iter()
                .find(here)
                .ok_or_else(|| not("this host has the address of none of its nodes".to_owned())),
            Some(name) => {
                let node = self.find(name).ok_or_else(|| not(format!("`{name}` is none of its nodes")))?;
                Some(node).filter(here).ok_or_else(|| {
                    not(format!("this host has not the address {} of node `{name}`", node.address))
                })
            }
        }
    }

    /// Whether everything that live sandboxes rely on is the same in another revision: their addresses, and who
    /// may give them out.
    pub fn keeps_addresses_of(&self, earlier: &Self) -> Result<(), DeclarationError> {
        if self.subnets != earlier.subnets {
            return Err(wrong("subnets", "cannot change while the network has sandboxes"));
        }
        if self.max_nodes != earlier.max_nodes {
            return Err(wrong("maxNodes", "cannot change while the network has sandboxes"));
        }
        self.keeps_groups_of(earlier)?;
        for (n, node) in self.nodes.iter().enumerate() {
            if let Some(before) = earlier.find(&node.name)
                && before.id != node.id
            {
                return Err(wrong(
                    format!("nodes[{n}].id"),
                    format!("of `{}` was {} and cannot change", node.name, before.id),
                ));
            }
        }
        Ok(())
    }
}

/// A node to be added: `NAME=ADDRESS[,ADDRESS][,ssh=DESTINATION]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its address of the other family.
    pub alternate: Option<IpAddr>,
    /// Where ssh finds it.
    pub ssh: Option<SshDestination>,
}

impl FromStr for NewNode {
    type Err = DeclarationError;

    fn from_str(text: &str) -> Result<Self, DeclarationError> {
        let bad = |why: String| wrong("node", format!("`{}`: {why}", text.escape_debug()));
        let (name, rest) = text
            .split_once('=')
            .ok_or_else(|| bad("is not NAME=ADDRESS[,ADDRESS][,ssh=DESTINATION]".to_owned()))?;
        check_node_name("node", name)?;
        let (mut addresses, mut ssh) = (Vec::new(), None);
        for part in rest.split(',') {
            if let Some(destination) = part.strip_prefix("ssh=") {
                ssh = Some(destination.parse()?);
            } else {
                addresses.push(part.parse::<IpAddr>().map_err(|_| bad(format!("`{part}` is no address")))?);
            }
        }
        match addresses[..] {
            [address] => Ok(Self { name: name.to_owned(), address, alternate: None, ssh }),
            [address, alternate] => {
                Ok(Self { name: name.to_owned(), address, alternate: Some(alternate), ssh })
            }
            _ => Err(bad("has not one address, or one of each family".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn declaration(more: Value) -> Result<Declaration, DeclarationError> {
        let mut value = json!({
            "version": 1, "name": "vpc", "revision": 1, "vni": 100, "subnets": ["10.1.0.0/16"], "maxNodes": 255,
            "nodes": [{"name": "a", "id": 1, "address": "192.0.2.1"},
                      {"name": "b", "id": 2, "address": "192.0.2.2", "alternate": "2001:db8::2"},
                      {"name": "c", "id": 3, "address": "192.0.2.3", "ssh": "admin@c.example"}],
        });
        let Value::Object(more) = more else { panic!() };
        value.as_object_mut().unwrap().extend(more);
        Declaration::parse(&serde_json::to_vec(&value).unwrap())
    }

    #[test]
    fn mistakes_name_the_field() {
        for (more, want) in [
            (json!({"name": "../x"}), "name: "),
            (json!({"version": 2}), "version: is 2"),
            (json!({"vni": 0}), "vxlan.vni"),
            (json!({"subnets": []}), "subnets: "),
            (json!({"subnets": ["10.1.2.3/16"]}), "subnets[0]: "),
            (json!({"subnets": ["10.1.0.0/28"]}), "subnets[0]: "),
            (json!({"subnets": ["10.1.0.0/16", "10.1.128.0/17"]}), "subnets[1]: "),
            (json!({"maxNodes": 2}), "nodes[2].id: "),
            (json!({"maxNodes": 0}), "nodes[0].id: "),
            (json!({"retired": [2]}), "nodes[1].id: 2 was another node's"),
            (json!({"config": {"ipam": {}}}), "config.ipam"),
            (json!({"config": {"ipMask": true}}), "config: ipMask: is unknown"),
            (json!({"config": {"mtu": 5}}), "config: mtu"),
            (json!({"nodes": [{"name": "a;b", "id": 1, "address": "192.0.2.1"}]}), "nodes[0].name"),
            (json!({"nodes": [{"name": "a", "id": 1, "address": "x"}]}), "nodes[0].address"),
            (
                json!({"nodes": [{"name": "a", "id": 1, "address": "192.0.2.1", "ssh": "-oProxyCommand=x"}]}),
                "nodes[0].ssh",
            ),
            (
                json!({"nodes": [{"name": "a", "id": 1, "address": "192.0.2.1"}, {"name": "b", "id": 1, "address": "192.0.2.2"}]}),
                "nodes[1].id",
            ),
        ] {
            let error = declaration(more.clone()).unwrap_err().to_string();
            assert!(error.contains(want), "{more}: {error}");
        }
        let text = declaration(json!({})).unwrap().to_text().unwrap() + "{}";
        assert!(Declaration::parse(text.as_bytes()).is_err());
    }

    #[test]
    fn numbers_are_never_used_again() {
        let mut vpc = declaration(json!({})).unwrap();
        vpc.remove_node("b").unwrap();
        vpc.add_node(&"d=192.0.2.4".parse().unwrap()).unwrap();
        assert_eq!(vpc.find("d").unwrap().id, 4);
        vpc.validate().unwrap();
        assert!(vpc.remove_node("b").is_err());
        let mut small = declaration(json!({"maxNodes": 3})).unwrap();
        small.remove_node("a").unwrap();
        assert!(small.add_node(&"d=192.0.2.4".parse().unwrap()).is_err());
    }

    #[test]
    fn nodes_are_written_in_short() {
        let node: NewNode = "b=192.0.2.2,2001:db8::2,ssh=admin@b".parse().unwrap();
        assert_eq!(node.alternate.unwrap().to_string(), "2001:db8::2");
        for bad in ["b", "b=", "b=x", "=192.0.2.1", "b=192.0.2.1,ssh=-x", "b=1.2.3.4,1.2.3.5,1.2.3.6"] {
            assert!(bad.parse::<NewNode>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_is_the_node_whose_address_it_has() {
        let vpc = declaration(json!({})).unwrap();
        let ips = ["2001:db8::2".parse().unwrap()];
        assert_eq!(vpc.local(None, &ips).unwrap().name, "b");
        assert_eq!(vpc.local(Some("b"), &ips).unwrap().name, "b");
        assert!(vpc.local(Some("a"), &ips).is_err() && vpc.local(None, &[]).is_err());
    }

    proptest! {
        #[test]
        fn any_input_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[a-z0-9@:/=,.-]{0,40}") {
            let _ = Declaration::parse(&bytes);
            let _ = text.parse::<NewNode>();
            let _ = text.parse::<SshDestination>();
        }

        #[test]
        fn a_declaration_survives_being_written(vni in 1_u32..1 << 24, revision: u64, max_nodes in 3_u16..1000) {
            let vpc = declaration(json!({"vni": vni, "revision": revision, "maxNodes": max_nodes, "config": {"ipMasq": true}})).unwrap();
            prop_assert_eq!(Declaration::parse(vpc.to_text().unwrap().as_bytes()).unwrap(), vpc);
        }
    }
}

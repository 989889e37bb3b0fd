//! The hosts of a network: who may be one, comes, goes, and which of them this host is.

use std::net::IpAddr;
use std::str::FromStr;

use super::declaration::{Declaration, Member};
use super::{DeclarationError, SshDestination, wrong};

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
    /// Checks names and numbers.
    pub(super) fn check_nodes(&self) -> Result<(), DeclarationError> {
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
    use serde_json::json;

    use crate::vpc::testing::declaration;

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
}

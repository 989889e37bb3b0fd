//! Which hosts were given a network from here, so that those that are removed from it can be told.
//!
//! The declaration says who its nodes are; who was one, and has the network still, it does not. So `sync` writes each node
//! down before it is given the declaration, and strikes it off when it has left. A network's file goes with the network.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::files::{read, write};
use super::{Declaration, DeclarationError, Directory, Member};
use crate::network::{StateError, create_dir, remove};

/// The hosts that were given a network.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    version: u32,
    /// In the order they were given it.
    nodes: Vec<Member>,
}

const VERSION: u32 = 1;

impl Known {
    /// Adds nodes; one that is known by its number has moved.
    fn add(&mut self, nodes: &[&Member]) {
        self.nodes.retain(|known| nodes.iter().all(|node| node.id != known.id));
        self.nodes.extend(nodes.iter().copied().cloned());
    }

    /// Those that are no nodes any more. A host that is one under another name is none of them.
    fn gone(&self, declaration: &Declaration) -> Vec<Member> {
        let addresses =
            |node: &Member| [Some(node.address), node.alternate].into_iter().flatten().collect::<Vec<_>>();
        let stays = |known: &Member| {
            declaration.nodes.iter().any(|node| {
                node.id == known.id || addresses(node).iter().any(|one| addresses(known).contains(one))
            })
        };
        self.nodes.iter().filter(|known| !stays(known)).cloned().collect()
    }
}

impl Directory {
    fn known_path(&self, name: &str) -> PathBuf {
        self.subdirectory("known").join(format!("{name}.json"))
    }

    fn known(&self, name: &str) -> Result<Known, DeclarationError> {
        let path = self.known_path(name);
        let Some(text) = read(&path)? else { return Ok(Known::default()) };
        let wrong = |why: String| StateError::Format { path: path.clone(), why };
        let known: Known = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        match known.version {
            VERSION => Ok(known),
            other => {
                Err(wrong(format!("is of version {other}, this program knows version {VERSION}")).into())
            }
        }
    }

    fn save_known(&self, name: &str, known: &Known) -> Result<(), DeclarationError> {
        let path = self.known_path(name);
        if known.nodes.is_empty() {
            return Ok(remove(&path)?);
        }
        create_dir(&self.subdirectory("known"))?;
        let text = serde_json::to_vec_pretty(&Known { version: VERSION, nodes: known.nodes.clone() });
        Ok(write(
            &path,
            &text.map_err(|error| StateError::Format { path: path.clone(), why: error.to_string() })?,
        )?)
    }

    /// Writes down that these nodes are given the declaration now; the hosts that were given one and are no nodes of it any
    /// more.
    pub fn will_know(
        &self,
        declaration: &Declaration,
        nodes: &[&Member],
    ) -> Result<Vec<Member>, DeclarationError> {
        let _lock = self.lock()?;
        let mut known = self.known(&declaration.name)?;
        known.add(nodes);
        self.save_known(&declaration.name, &known)?;
        Ok(known.gone(declaration))
    }

    /// Strikes hosts off: they have left, or will never be heard of again. Those of `names` that were not on the list.
    pub fn forget<'a>(&self, network: &str, names: &[&'a str]) -> Result<Vec<&'a str>, DeclarationError> {
        let _lock = self.lock()?;
        let mut known = self.known(network)?;
        let strangers =
            names.iter().filter(|name| known.nodes.iter().all(|node| node.name != **name)).copied().collect();
        known.nodes.retain(|node| !names.contains(&node.name.as_str()));
        self.save_known(network, &known)?;
        Ok(strangers)
    }

    /// Forgets all of a network's. The lock is held.
    pub(super) fn forget_all(&self, network: &str) -> Result<(), StateError> {
        remove(&self.known_path(network))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u16, address: &str) -> Member {
        Member { name: format!("n{id}"), id, address: address.parse().unwrap(), alternate: None, ssh: None }
    }

    #[test]
    fn who_was_given_a_network_and_left_is_known_until_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new().at(Some(dir.path().to_owned()), None);
        let mut declaration = Declaration::parse(
            br#"{"version": 1, "name": "vpc", "revision": 1, "vni": 5, "subnets": ["10.1.0.0/16"], "maxNodes": 255,
                "nodes": [{"name": "n1", "id": 1, "address": "192.0.2.1"}, {"name": "n2", "id": 2, "address": "192.0.2.2"},
                          {"name": "n3", "id": 3, "address": "192.0.2.3"}]}"#,
        )
        .unwrap();
        let (two, three) = (member(2, "192.0.2.2"), member(3, "192.0.2.3"));
        assert_eq!(directory.will_know(&declaration, &[&two, &three]).unwrap(), []);
        // The second is declared again under another name and number; the third is not.
        declaration.nodes.truncate(1);
        declaration.nodes.push(member(4, "192.0.2.2"));
        for _ in 0..2 {
            assert_eq!(directory.will_know(&declaration, &[]).unwrap(), std::slice::from_ref(&three));
        }
        assert_eq!(directory.forget("vpc", &["n3", "n9"]).unwrap(), ["n9"]);
        assert_eq!(directory.will_know(&declaration, &[]).unwrap(), []);
        directory.forget_all("vpc").unwrap();
        assert!(!directory.known_path("vpc").exists());
        std::fs::write(directory.known_path("vpc"), r#"{"version": 2, "nodes": []}"#).unwrap();
        assert!(directory.will_know(&declaration, &[]).unwrap_err().to_string().contains("version 2"));
    }
}

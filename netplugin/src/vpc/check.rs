//! Reading a declaration, and whether it can be what it says.

use super::declaration::Declaration;
use super::{DeclarationError, conflist, ranges, wrong};
use crate::cni::check_name;

impl Declaration {
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
        self.check_nodes()?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    use crate::vpc::testing::declaration;
    use crate::vpc::{NewNode, SshDestination};

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

//! The CNI configuration of one node.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::DeclarationError;
use super::declaration::{Declaration, Member};
use super::ranges::Block;
use crate::cni::{ConfigError, NetConf};

/// The version of the specification that every runtime in use knows.
const CNI_VERSION: &str = "1.0.0";

/// The plugin's configuration on `node`. With a `file`, VXLAN is read from there at each call: a change reaches the
/// next sandbox whatever the runtime remembers of its configuration.
pub fn plugin_config(
    declaration: &Declaration,
    node: &Member,
    file: Option<&Path>,
) -> Result<Value, DeclarationError> {
    let ranges_for = |group: u16| -> Result<Vec<Value>, DeclarationError> {
        let blocks = declaration.ranges_for(group, node.id)?;
        let set = |block: &Block| json!([{"subnet": block.subnet, "rangeStart": block.start, "rangeEnd": block.end}]);
        Ok(blocks.iter().map(set).collect())
    };
    let mut ipam = json!({"type": "skep", "ranges": ranges_for(0)?});
    let mut groups = Map::new();
    for group in &declaration.groups {
        let name = group.name.as_str();
        ipam["groups"][name] = json!(ranges_for(group.id)?);
        groups.insert(name.to_owned(), json!(declaration.group_ranges(group.id)?));
    }
    let vxlan = match file {
        Some(file) => json!({"file": file}),
        None => json!(declaration.vpc(Some(&node.name))),
    };
    let mut plugin = json!({
        "type": "skep-cni",
        "capabilities": {
            "portMappings": true, "bandwidth": true, "ips": true, "mac": true, "dns": true,
            "io.kubernetes.cri.pod-annotations": true,
        },
        "ipam": ipam,
        "vxlan": vxlan,
    });
    if let Value::Object(fields) = &mut plugin {
        fields.extend(declaration.config.clone());
        if declaration.max_groups > 0
            && let Some(policy) = fields.entry("policy").or_insert_with(|| json!({})).as_object_mut()
        {
            policy.insert("groups".to_owned(), Value::Object(groups));
        }
        fields.insert("cniVersion".to_owned(), json!(CNI_VERSION));
        fields.insert("name".to_owned(), json!(declaration.name));
    }
    Ok(plugin)
}

/// The list that runtimes read from their directory of configurations.
pub fn conflist(declaration: &Declaration, node: &Member, file: &Path) -> Result<Value, DeclarationError> {
    let mut plugin = plugin_config(declaration, node, Some(file))?;
    if let Value::Object(fields) = &mut plugin {
        // Those of the list hold.
        fields.remove("cniVersion");
        fields.remove("name");
    }
    Ok(json!({"cniVersion": CNI_VERSION, "name": declaration.name, "plugins": [plugin]}))
}

/// Reads a configuration made by [`plugin_config`].
pub(super) fn parse(config: &Value) -> Result<NetConf, ConfigError> {
    NetConf::parse(config.to_string().as_bytes())
}

//! The CNI configuration of one node.

use std::path::Path;

use serde_json::{Value, json};

use super::{Declaration, DeclarationError, Member};
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
    let ranges: Vec<Value> = declaration
        .ranges(node.id)?
        .iter()
        .map(|block| json!([{"subnet": block.subnet, "rangeStart": block.start, "rangeEnd": block.end}]))
        .collect();
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
        "ipam": {"type": "skep", "ranges": ranges},
        "vxlan": vxlan,
    });
    if let Value::Object(fields) = &mut plugin {
        fields.extend(declaration.config.clone());
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

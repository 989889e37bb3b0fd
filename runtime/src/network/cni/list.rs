//! Network configuration lists, and what each plugin of one is told: pure.

use serde_json::{Map, Value, json};
use skep_cni::cni::CniVersion;

/// A network configuration makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// No JSON.
    #[error("{0}")]
    Json(String),
    /// A field is missing or makes no sense.
    #[error("{field}: {reason}")]
    Field {
        /// Which.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn field(field: impl Into<String>, reason: impl Into<String>) -> ListError {
    ListError::Field { field: field.into(), reason: reason.into() }
}

/// A network: the plugins that make an interface on it, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkList {
    name: String,
    version: CniVersion,
    disable_check: bool,
    plugins: Vec<Plugin>,
    source: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Plugin {
    /// Its file's name.
    kind: String,
    configuration: Map<String, Value>,
}

/// A name that is part of paths and of environment variables.
pub(super) fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

impl NetworkList {
    /// Reads a list, or the configuration of a single plugin, which is a list of one.
    pub fn parse(text: &[u8]) -> Result<Self, ListError> {
        Self::read(serde_json::from_slice(text).map_err(|error| ListError::Json(error.to_string()))?)
    }

    /// Like [`NetworkList::parse`], of JSON that was read already.
    pub fn read(source: Value) -> Result<Self, ListError> {
        let object = source.as_object().ok_or_else(|| field("configuration", "is not an object"))?;
        let name = text(object, "name", "")?;
        if !is_word(&name) {
            return Err(field(
                "name",
                format!("`{name}` is not a letter or digit, then those, `_`, `.`, `-`"),
            ));
        }
        let single = [source.clone()];
        let plugins = match object.get("plugins") {
            Some(Value::Array(plugins)) if plugins.is_empty() => {
                return Err(field(
                    "plugins",
                    "is empty; plugins of a directory of their own are not looked for",
                ));
            }
            Some(Value::Array(plugins)) => plugins.as_slice(),
            Some(_) => return Err(field("plugins", "is not a list")),
            None if object.contains_key("type") => &single,
            None => return Err(field("plugins", "is missing")),
        };
        Ok(Self {
            version: version(object)?,
            disable_check: flag(object, "disableCheck")?,
            plugins: plugins
                .iter()
                .enumerate()
                .map(|(number, plugin)| Plugin::read(plugin, number))
                .collect::<Result<_, _>>()?,
            name,
            source,
        })
    }

    /// The network's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version of the specification that its plugins are spoken to in.
    pub fn version(&self) -> CniVersion {
        self.version
    }

    /// The names of its plugins, in the order of ADD.
    pub fn plugins(&self) -> impl DoubleEndedIterator<Item = &str> + ExactSizeIterator {
        self.plugins.iter().map(|plugin| plugin.kind.as_str())
    }

    /// Whether one of its plugins has the capability.
    pub fn has_capability(&self, name: &str) -> bool {
        self.plugins.iter().any(|plugin| declares(plugin.configuration.get("capabilities"), name))
    }

    /// Whether sandboxes hear the IPv6 routers of the network and have routes from them (skep-cni's `acceptRA`), which no
    /// result says.
    pub fn hears_routers(&self) -> bool {
        let asked = |plugin: &Plugin| plugin.configuration.get("acceptRA") == Some(&Value::Bool(true));
        self.plugins.iter().any(|plugin| plugin.kind == "skep-cni" && asked(plugin))
    }

    /// The JSON it was read from.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// Whether its plugins can be asked for CHECK, which 0.4.0 has introduced.
    pub fn can_check(&self) -> bool {
        !self.disable_check && self.version >= CniVersion::V0_4_0
    }

    /// Whether DEL is given what ADD answered.
    pub fn result_for_delete(&self) -> bool {
        self.version >= CniVersion::V0_4_0
    }

    /// What plugin `number` is given on its standard input (section 3, "Deriving request configuration from plugin
    /// configuration"): of `capabilities` those that it has.
    pub fn request(
        &self,
        number: usize,
        capabilities: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Value {
        let Some(plugin) = self.plugins.get(number) else { return Value::Null };
        let mut request = plugin.configuration.clone();
        let declared = request.remove("capabilities");
        for key in
            ["plugins", "cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "prevResult"]
        {
            request.remove(key);
        }
        request.insert("cniVersion".into(), json!(self.version.as_str()));
        request.insert("name".into(), json!(self.name));
        let wanted: Map<String, Value> = capabilities
            .iter()
            .filter(|(key, _)| declares(declared.as_ref(), key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if wanted.is_empty() {
            request.remove("runtimeConfig");
        } else {
            request.insert("runtimeConfig".into(), Value::Object(wanted));
        }
        if let Some(previous) = previous {
            request.insert("prevResult".into(), previous.clone());
        }
        Value::Object(request)
    }
}

fn declares(capabilities: Option<&Value>, name: &str) -> bool {
    capabilities.and_then(|all| all.get(name)).and_then(Value::as_bool) == Some(true)
}

impl Plugin {
    fn read(value: &Value, number: usize) -> Result<Self, ListError> {
        let at = format!("plugins[{number}].");
        let configuration =
            value.as_object().ok_or_else(|| field(at.trim_end_matches('.'), "is not an object"))?.clone();
        let kind = text(&configuration, "type", &at)?;
        // It is looked for in directories, and nowhere else.
        if !is_word(&kind) {
            return Err(field(format!("{at}type"), format!("`{kind}` is no plugin's name")));
        }
        if !matches!(configuration.get("capabilities"), None | Some(Value::Null | Value::Object(_))) {
            return Err(field(format!("{at}capabilities"), "is not an object"));
        }
        Ok(Self { kind, configuration })
    }
}

fn text(object: &Map<String, Value>, key: &str, at: &str) -> Result<String, ListError> {
    match object.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        None | Some(Value::Null | Value::String(_)) => Err(field(format!("{at}{key}"), "is missing")),
        Some(_) => Err(field(format!("{at}{key}"), "is not a text")),
    }
}

/// Some write it as a text.
fn flag(object: &Map<String, Value>, key: &str) -> Result<bool, ListError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) => {
            text.to_lowercase().parse().map_err(|_| field(key, format!("`{text}` is neither true nor false")))
        }
        Some(_) => Err(field(key, "is neither true nor false")),
    }
}

/// The newest of the versions that the list names and that are known here.
fn version(object: &Map<String, Value>) -> Result<CniVersion, ListError> {
    let known = |text: &str| text.parse::<CniVersion>().ok();
    let one = match object.get("cniVersion") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.as_str()),
        Some(_) => return Err(field("cniVersion", "is not a text")),
    };
    let several = match object.get("cniVersions") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(all)) => all
            .iter()
            .map(|version| version.as_str().ok_or_else(|| field("cniVersions", "is not a list of texts")))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(field("cniVersions", "is not a list")),
    };
    if one.is_none() && several.is_empty() {
        return Err(field("cniVersion", "is missing: 0.3.0 to 1.1.0"));
    }
    let all: Vec<&str> = several.into_iter().chain(one).collect();
    all.iter().copied().filter_map(known).max().ok_or_else(|| {
        field("cniVersion", format!("{} is not supported: 0.3.0 to 1.1.0 are", all.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list() -> Value {
        json!({ "cniVersion": "1.0.0", "name": "dbnet", "disableCheck": "true", "plugins": [
            { "type": "bridge", "bridge": "cni0", "ipam": { "type": "host-local" }, "capabilities": { "ips": true, "mac": false } },
            { "type": "portmap", "capabilities": { "portMappings": true }, "runtimeConfig": { "mine": 1 } }
        ] })
    }

    #[test]
    fn a_plugin_gets_its_own_fields_the_lists_and_what_it_can() {
        let list = NetworkList::read(list()).unwrap();
        assert_eq!((list.name(), list.plugins().collect::<Vec<_>>()), ("dbnet", vec!["bridge", "portmap"]));
        assert!(!list.can_check());
        let capabilities =
            json!({ "portMappings": [{ "hostPort": 8080 }], "ips": ["10.0.0.1"], "mac": "02::" });
        let capabilities = capabilities.as_object().unwrap();
        assert_eq!(
            list.request(0, capabilities, None),
            json!({ "cniVersion": "1.0.0", "name": "dbnet", "type": "bridge", "bridge": "cni0",
                "ipam": { "type": "host-local" }, "runtimeConfig": { "ips": ["10.0.0.1"] } })
        );
        let previous = json!({ "ips": [] });
        assert_eq!(
            list.request(1, capabilities, Some(&previous)),
            json!({ "cniVersion": "1.0.0", "name": "dbnet", "type": "portmap", "prevResult": { "ips": [] },
                "runtimeConfig": { "portMappings": [{ "hostPort": 8080 }] } })
        );
        // What the runtime fills in is not the configuration's to say.
        assert_eq!(list.request(1, &Map::new(), None).get("runtimeConfig"), None);
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let text = br#"{"cniVersion":"0.3.1","name":"lo","type":"loopback"}"#;
        let list = NetworkList::parse(text).unwrap();
        assert_eq!(
            list.request(0, &Map::new(), None),
            json!({"cniVersion":"0.3.1","name":"lo","type":"loopback"})
        );
        assert!(!list.can_check() && !list.result_for_delete());
    }

    #[test]
    fn the_newest_version_that_both_know_is_spoken() {
        let spoken = |versions: Value| {
            let mut list = list();
            list["cniVersion"] = versions[0].clone();
            list["cniVersions"] = versions[1].clone();
            NetworkList::read(list).map(|list| list.version().as_str())
        };
        assert_eq!(spoken(json!(["0.4.0", ["0.4.0", "1.1.0", "9.0.0"]])), Ok("1.1.0"));
        assert_eq!(spoken(json!([null, ["1.0.0"]])), Ok("1.0.0"));
        for bad in [json!(["0.2.0", null]), json!([null, null]), json!([1, null]), json!(["1.0.0", "x"])] {
            assert!(spoken(bad).unwrap_err().to_string().starts_with("cniVersion"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let told = |change: fn(&mut Value)| {
            let mut list = list();
            change(&mut list);
            NetworkList::read(list).unwrap_err().to_string()
        };
        assert!(told(|list| list["name"] = json!("../x")).starts_with("name: "));
        assert!(told(|list| list["plugins"] = json!([])).starts_with("plugins: is empty"));
        assert!(told(|list| list["plugins"][1]["type"] = json!("/bin/sh")).starts_with("plugins[1].type: "));
        assert!(told(|list| list["plugins"][0] = json!(1)).starts_with("plugins[0]: "));
        assert!(told(|list| list["plugins"][0]["capabilities"] = json!([])).contains("capabilities"));
        assert!(told(|list| list["disableCheck"] = json!("maybe")).starts_with("disableCheck: "));
        assert!(NetworkList::parse(b"{").unwrap_err().to_string().contains("line 1"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\]{}\",:a-zV0-9./ ]{0,80}") {
            let _ = NetworkList::parse(text.as_bytes());
        }
    }
}

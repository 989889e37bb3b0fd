//! Results: what ADD prints, what a delegated plugin prints, and what comes back as `prevResult`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::CniVersion;
use crate::mac::Mac;

/// Why a result cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ResultError {
    /// A field is missing or of the wrong kind.
    #[error("{field}: {why}")]
    Field {
        /// Where in the result.
        field: String,
        /// What is wrong with it.
        why: String,
    },
}

/// An interface named in a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// Its MTU in bytes (1.1.0).
    pub mtu: Option<u32>,
    /// The namespace it is in, or none when it is the host's.
    pub sandbox: Option<String>,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The address with its prefix.
    pub address: IpNet,
    /// The gateway of that subnet.
    pub gateway: Option<IpAddr>,
    /// Which of the result's interfaces has it.
    pub interface: Option<usize>,
}

/// A route of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By whom; none means the gateway of the address of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU along it in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// MSS to advertise in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route with nothing but its destination and gateway.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    /// A route to what is on the link.
    pub fn on_link(dst: IpNet) -> Self {
        Self { scope: Some(Self::LINK), ..Self::new(dst, None) }
    }

    /// Whether no gateway is meant, not even that of an address.
    pub fn is_on_link(&self) -> bool {
        self.gw.is_none() && self.scope == Some(Self::LINK)
    }

    /// `RT_SCOPE_LINK` of rtnetlink(7), whose scopes the specification counts by.
    const LINK: u8 = 253;
}

/// Resolver settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// Addresses of resolvers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A result, in the newest version's terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddResult {
    /// The interfaces made, the host's and the container's.
    pub interfaces: Vec<Interface>,
    /// The addresses given.
    pub ips: Vec<IpConfig>,
    /// The routes made.
    pub routes: Vec<Route>,
    /// Resolver settings; the runtime applies them.
    pub dns: Dns,
}

impl AddResult {
    /// The result as JSON of the given version.
    pub fn to_json(&self, version: CniVersion) -> Value {
        let newest = version >= CniVersion::V1_1_0;
        let interfaces = self.interfaces.iter().map(|interface| {
            let mut map = Map::new();
            map.insert("name".into(), json!(interface.name));
            insert(&mut map, "mac", interface.mac.map(|mac| mac.to_string()));
            insert(&mut map, "mtu", interface.mtu.filter(|_| newest));
            insert(&mut map, "sandbox", interface.sandbox.as_ref());
            Value::Object(map)
        });
        let ips = self.ips.iter().map(|ip| {
            let mut map = Map::new();
            if version < CniVersion::V1_0_0 {
                map.insert("version".into(), json!(if ip.address.addr().is_ipv4() { "4" } else { "6" }));
            }
            insert(&mut map, "interface", ip.interface);
            map.insert("address".into(), json!(ip.address.to_string()));
            insert(&mut map, "gateway", ip.gateway.map(|gateway| gateway.to_string()));
            Value::Object(map)
        });
        let routes = self.routes.iter().map(|route| {
            let route = if newest { route.clone() } else { Route::new(route.dst, route.gw) };
            json!(route)
        });
        json!({
            "cniVersion": version.as_str(),
            "interfaces": interfaces.collect::<Vec<_>>(),
            "ips": ips.collect::<Vec<_>>(),
            "routes": routes.collect::<Vec<_>>(),
            "dns": self.dns,
        })
    }

    /// Reads a result of any version from 0.3.0 on.
    pub fn from_json(value: &Value) -> Result<Self, ResultError> {
        let object = value.as_object().ok_or_else(|| field("result", "is not an object"))?;
        let interfaces = list(object, "interfaces")?
            .iter()
            .enumerate()
            .map(|(n, value)| interface(value, &format!("interfaces[{n}]")))
            .collect::<Result<Vec<_>, _>>()?;
        let ips = list(object, "ips")?
            .iter()
            .enumerate()
            .map(|(n, value)| ip(value, &format!("ips[{n}]"), interfaces.len()))
            .collect::<Result<Vec<_>, _>>()?;
        let routes = list(object, "routes")?
            .iter()
            .enumerate()
            .map(|(n, value)| route(value, &format!("routes[{n}]")))
            .collect::<Result<Vec<_>, _>>()?;
        let dns = match object.get("dns") {
            None | Some(Value::Null) => Dns::default(),
            Some(value) => dns(value)?,
        };
        Ok(Self { interfaces, ips, routes, dns })
    }
}

fn insert<T: Serialize>(map: &mut Map<String, Value>, key: &str, value: Option<T>) {
    if let Some(value) = value {
        map.insert(key.into(), json!(value));
    }
}

fn field(field: &str, why: &str) -> ResultError {
    ResultError::Field { field: field.to_owned(), why: why.to_owned() }
}

fn list<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], ResultError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(field(key, "is not a list")),
    }
}

fn text<'a>(value: &'a Value, key: &str, at: &str) -> Result<Option<&'a str>, ResultError> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(field(&format!("{at}.{key}"), "is not a text")),
    }
}

fn number(value: &Value, key: &str, at: &str) -> Result<Option<u32>, ResultError> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(number) => number
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| field(&format!("{at}.{key}"), "is not a number of 32 bits")),
    }
}

fn parsed<T: std::str::FromStr>(value: &Value, key: &str, at: &str) -> Result<Option<T>, ResultError>
where
    T::Err: std::fmt::Display,
{
    text(value, key, at)?
        .map(|text| {
            text.parse().map_err(|error| field(&format!("{at}.{key}"), &format!("`{text}`: {error}")))
        })
        .transpose()
}

/// Other plugins' resolver settings: what they say beyond the specification is none of ours, as everywhere in a result.
fn dns(value: &Value) -> Result<Dns, ResultError> {
    let object = value.as_object().ok_or_else(|| field("dns", "is not an object"))?;
    let texts = |key: &str| {
        let wrong = || field(&format!("dns.{key}"), "has something that is not a text");
        list(object, key)
            .map_err(|_| field(&format!("dns.{key}"), "is not a list"))?
            .iter()
            .map(|text| text.as_str().map(ToOwned::to_owned).ok_or_else(wrong))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(Dns {
        nameservers: texts("nameservers")?,
        domain: text(value, "domain", "dns")?.map(ToOwned::to_owned),
        search: texts("search")?,
        options: texts("options")?,
    })
}

fn interface(value: &Value, at: &str) -> Result<Interface, ResultError> {
    Ok(Interface {
        name: text(value, "name", at)?.ok_or_else(|| field(&format!("{at}.name"), "is missing"))?.to_owned(),
        // Other kinds of interfaces have addresses of other kinds, or all zeros; nothing is done with them here.
        mac: text(value, "mac", at)?.and_then(|mac| mac.parse().ok()),
        mtu: number(value, "mtu", at)?,
        sandbox: text(value, "sandbox", at)?.map(ToOwned::to_owned),
    })
}

fn ip(value: &Value, at: &str, interfaces: usize) -> Result<IpConfig, ResultError> {
    let interface = number(value, "interface", at)?.map(|n| n as usize);
    if interface.is_some_and(|n| n >= interfaces) {
        return Err(field(&format!("{at}.interface"), "is beyond the list of interfaces"));
    }
    Ok(IpConfig {
        address: parsed(value, "address", at)?
            .ok_or_else(|| field(&format!("{at}.address"), "is missing"))?,
        gateway: parsed(value, "gateway", at)?,
        interface,
    })
}

fn route(value: &Value, at: &str) -> Result<Route, ResultError> {
    Ok(Route {
        dst: parsed(value, "dst", at)?.ok_or_else(|| field(&format!("{at}.dst"), "is missing"))?,
        gw: parsed(value, "gw", at)?,
        mtu: number(value, "mtu", at)?,
        advmss: number(value, "advmss", at)?,
        priority: number(value, "priority", at)?,
        table: number(value, "table", at)?,
        scope: number(value, "scope", at)?.and_then(|scope| u8::try_from(scope).ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> AddResult {
        AddResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: Some("02:00:00:00:00:01".parse().unwrap()),
                mtu: Some(1450),
                sandbox: Some("/run/netns/a".into()),
            }],
            ips: vec![IpConfig {
                address: "10.1.0.5/16".parse().unwrap(),
                gateway: Some("10.1.0.1".parse().unwrap()),
                interface: Some(0),
            }],
            routes: vec![Route::new("0.0.0.0/0".parse().unwrap(), None)],
            dns: Dns { nameservers: vec!["10.1.0.1".into()], ..Dns::default() },
        }
    }

    #[test]
    fn every_version_reads_back() {
        for version in CniVersion::ALL {
            let json = sample().to_json(version);
            let back = AddResult::from_json(&json).unwrap();
            let mut want = sample();
            if version < CniVersion::V1_1_0 {
                want.interfaces[0].mtu = None;
            }
            assert_eq!(back, want);
            assert_eq!(json["ips"][0].get("version").is_some(), version < CniVersion::V1_0_0);
        }
    }

    #[test]
    fn what_other_plugins_say_beyond_the_specification_is_passed_over() {
        let json = json!({"cniVersion": "1.0.0", "extra": 1,
            "interfaces": [{"name": "eth0", "pciID": "0000:00:01.0", "socketPath": ""},
                {"name": "tun0", "mac": "00:00:00:00:00:00"}, {"name": "ip6tnl0", "mac": "20:01:0d:b8::"}],
            "ips": [{"address": "10.1.0.5/16", "interface": 0, "lease": 3600}],
            "routes": [{"dst": "0.0.0.0/0", "onlink": true}],
            "dns": {"nameservers": ["10.1.0.1"], "search": null, "domain": "", "policies": ["tcp"]}});
        let result = AddResult::from_json(&json).unwrap();
        assert_eq!(result.dns, Dns { nameservers: vec!["10.1.0.1".into()], ..Dns::default() });
        assert_eq!((result.interfaces.len(), result.ips.len(), result.routes.len()), (3, 1, 1));
    }

    #[test]
    fn errors_name_the_field() {
        for (json, want) in [
            (json!({"dns": []}), "dns"),
            (json!({"dns": {"search": "a"}}), "dns.search"),
            (json!({"dns": {"nameservers": [1]}}), "dns.nameservers"),
            (json!({"ips": [{"address": "10.0.0.1"}]}), "ips[0].address"),
            (json!({"ips": [{"address": "10.0.0.1/8", "interface": 3}]}), "ips[0].interface"),
            (json!({"interfaces": [{}]}), "interfaces[0].name"),
            (json!({"routes": {}}), "routes"),
            (json!([]), "result"),
        ] {
            let ResultError::Field { field, .. } = AddResult::from_json(&json).unwrap_err();
            assert_eq!(field, want);
        }
    }

    proptest! {
        #[test]
        fn broken_json_never_panics(text in "[\\[\\]{}\",:a-z0-9./ ]{0,80}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = AddResult::from_json(&value);
            }
        }
    }
}

//! The network configuration on standard input.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config_error::{ConfigError, wrong};
use super::env::check_ifname;
use super::groups::check_groups;
use super::runtime_config::{Bandwidth, CniArgs};
use super::{AddResult, CniVersion, Dns, RuntimeConfig};
use crate::ipam::IpamConfig;
use crate::mac::digest_hex;
use crate::policy::NetworkPolicy;
use crate::vxlan::Vpc;

/// What joins the bridge to the world outside, besides routing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// A network card of the host to put on the bridge: sandboxes get addresses of the network outside.
    pub nic: Option<String>,
    /// Whether sandboxes hear the IPv6 routers behind that card.
    pub accept_ra: bool,
    /// The network is stretched over several hosts.
    pub vpc: Option<Vpc>,
}

/// A configuration that was read and checked.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the configuration, with its name")]
pub struct NetConf {
    /// The version the caller speaks.
    pub version: CniVersion,
    /// The network's name.
    pub name: String,
    /// The bridge's name.
    pub bridge: String,
    /// The MTU in bytes; none means what the underlay carries.
    pub mtu: Option<u32>,
    /// Whether the bridge gets the gateway's address.
    pub is_gateway: bool,
    /// Whether sandboxes get a default route by the gateway.
    pub is_default_gateway: bool,
    /// Whether what leaves for other networks gets the host's address.
    pub ip_masq: bool,
    /// Whether the bridge stays when its last sandbox is gone.
    pub keep_bridge: bool,
    /// Where addresses come from.
    pub ipam: IpamConfig,
    /// Resolver settings.
    pub dns: Dns,
    /// What holds for every sandbox of the network.
    pub policy: NetworkPolicy,
    /// The world outside.
    pub uplink: Uplink,
    /// Where our files are; none means the system's default.
    pub data_dir: Option<PathBuf>,
    /// The result of the plugin before us in a chain, or of our own ADD (CHECK, DEL).
    pub prev_result: Option<AddResult>,
    /// The same as it came, to be handed on.
    pub prev_raw: Option<Value>,
    /// What the runtime filled in.
    pub runtime: RuntimeConfig,
    /// GC: what shall stay, as (container, interface); none where the runtime says nothing of it.
    pub valid_attachments: Option<Vec<(String, String)>>,
    /// The whole of it as it came, for a delegated plugin.
    pub raw: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the configuration, with its name")]
struct Raw {
    cni_version: Option<String>,
    #[serde(default)]
    name: String,
    #[serde(rename = "type")]
    _type: Option<Value>,
    bridge: Option<String>,
    #[serde(default)]
    mtu: u32,
    #[serde(default = "yes")]
    is_gateway: bool,
    #[serde(default = "yes")]
    is_default_gateway: bool,
    #[serde(default)]
    ip_masq: bool,
    #[serde(default)]
    keep_bridge: bool,
    ipam: Option<Value>,
    #[serde(default)]
    dns: Dns,
    #[serde(default)]
    policy: NetworkPolicy,
    vxlan: Option<Value>,
    uplink: Option<String>,
    #[serde(rename = "acceptRA", default)]
    accept_ra: bool,
    data_dir: Option<PathBuf>,
    prev_result: Option<Value>,
    #[serde(default)]
    runtime_config: RuntimeConfig,
    #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "attachments")]
    valid_attachments: Option<Vec<RawAttachment>>,
    // Fields of the specification that are the runtime's business.
    args: Option<RawArgs>,
    #[serde(rename = "capabilities")]
    _capabilities: Option<Value>,
    #[serde(rename = "disableCheck")]
    _disable_check: Option<Value>,
    #[serde(rename = "disableGC")]
    _disable_gc: Option<Value>,
    #[serde(rename = "loadOnlyInlinedPlugins")]
    _inlined: Option<Value>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// `args`, of which everybody takes what they know.
#[derive(Deserialize, Default)]
#[serde(default)]
struct RawArgs {
    cni: Option<CniArgs>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// libcni writes an empty list as null, and leaves the field out where its caller has none.
fn attachments<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Vec<RawAttachment>>, D::Error> {
    Option::<Vec<RawAttachment>>::deserialize(input).map(|list| Some(list.unwrap_or_default()))
}

fn yes() -> bool {
    true
}

/// The version named by `input`, however broken the rest is: an error must be told in it.
pub(super) fn version_of(input: &[u8]) -> CniVersion {
    serde_json::from_slice::<Value>(input)
        .ok()
        .and_then(|value| value.get("cniVersion")?.as_str()?.parse().ok())
        .unwrap_or(CniVersion::LATEST)
}

fn path_of(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    match error.path().to_string() {
        path if path == "." => "configuration".to_owned(),
        path => path,
    }
}

impl NetConf {
    /// The same for a DEL. A configuration that was changed for the worse since the ADD does not keep a container: the records
    /// know what was made, and it says where they are.
    pub(super) fn parse_for_removal(input: &[u8]) -> Result<Self, ConfigError> {
        Self::parse(input).or_else(|error| {
            let Ok(Value::Object(mut fields)) = serde_json::from_slice(input) else { return Err(error) };
            fields.retain(|name, value| match name.as_str() {
                "cniVersion" | "name" | "type" | "dataDir" => true,
                // Our own allocator's addresses are in the records, another plugin's are its own to take back.
                "ipam" => value["type"] != "skep",
                _ => false,
            });
            let least = Self::parse(&serde_json::to_vec(&fields).unwrap_or_default()).map_err(|_| error)?;
            Ok(Self { raw: input.to_vec(), ..least })
        })
    }

    /// Reads and checks a configuration. Nothing outside `input` is looked at, but a VPC's file.
    pub fn parse(input: &[u8]) -> Result<Self, ConfigError> {
        let mut value: Value = serde_json::from_slice(input).map_err(|error| ConfigError::Json {
            field: "configuration".to_owned(),
            why: error.to_string(),
        })?;
        forget_nulls(&mut value);
        let raw: Raw = serde_path_to_error::deserialize(value)
            .map_err(|error| ConfigError::Json { field: path_of(&error), why: error.inner().to_string() })?;
        // The specification: no version means 0.1.0, which is older than anything we speak.
        let version: CniVersion = raw.cni_version.as_deref().unwrap_or("0.1.0").parse()?;
        if let Some((key, value)) = raw.others.iter().find(|(key, _)| !key.contains(['.', '/'])) {
            let value = value.to_string().chars().take(100).collect();
            return Err(ConfigError::Unknown { field: key.clone(), value });
        }
        check_name(&raw.name).map_err(|why| wrong("name", why))?;
        let bridge = match raw.bridge {
            Some(name) => {
                check_ifname(&name).map_err(|why| wrong("bridge", format!("`{name}` {why}")))?;
                name
            }
            None => default_bridge(&raw.name),
        };
        let uplink = Uplink {
            nic: uplink_nic(raw.uplink, &bridge)?,
            vpc: raw.vxlan.map(vpc).transpose()?,
            accept_ra: raw.accept_ra,
        };
        if uplink.accept_ra && uplink.nic.is_none() {
            return Err(wrong("acceptRA", "is about the routers behind an uplink, of which there is none"));
        }
        if uplink.nic.is_some() && uplink.vpc.is_some() {
            // Two nodes with a card each on the same wire would be a loop.
            return Err(wrong("uplink", "and vxlan exclude each other"));
        }
        let ipam = IpamConfig::parse(raw.ipam.as_ref())?;
        check_groups(&raw.policy, &ipam)?;
        let lists = [&raw.policy.egress, &raw.policy.ingress];
        if let Some(why) = raw.policy.wrong(lists, uplink.vpc.is_some()) {
            return Err(wrong("policy", why));
        }
        let mut runtime = raw.runtime_config;
        runtime.ask(&raw.args.and_then(|args| args.cni).unwrap_or_default());
        runtime.forget_repeated_ports();
        runtime.bandwidth = runtime.bandwidth.map(Bandwidth::settled);
        check_mtu(raw.mtu, &ipam)?;
        check_ports(&runtime)?;
        if let Some(dir) = &raw.data_dir
            && !dir.is_absolute()
        {
            return Err(wrong("dataDir", format!("`{}` is not an absolute path", dir.display())));
        }
        Ok(Self {
            version,
            bridge,
            mtu: Some(raw.mtu).filter(|mtu| *mtu != 0),
            is_gateway: raw.is_gateway,
            is_default_gateway: raw.is_default_gateway,
            ip_masq: raw.ip_masq,
            keep_bridge: raw.keep_bridge,
            ipam,
            dns: raw.dns,
            policy: raw.policy,
            uplink,
            data_dir: raw.data_dir,
            prev_result: raw.prev_result.as_ref().map(AddResult::from_json).transpose()?,
            prev_raw: raw.prev_result,
            runtime,
            valid_attachments: raw
                .valid_attachments
                .map(|list| list.into_iter().map(|one| (one.container_id, one.ifname)).collect()),
            raw: input.to_vec(),
            name: raw.name,
        })
    }
}

/// To runtimes and plugins written in Go a field that is `null` is one that is not there, and they write such fields: containerd
/// for a pod without annotations. A list of attachments is another matter: see `attachments`.
fn forget_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| !value.is_null() || name == VALID_ATTACHMENTS);
            fields.values_mut().for_each(forget_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_nulls),
        _ => {}
    }
}

/// Which attachments a runtime still has, for GC.
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// The rule the specification has for a network's name; it also becomes a file's name.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is missing or empty".to_owned());
    }
    let ok = name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'));
    if ok {
        return Ok(());
    }
    Err(format!("`{name}` is not a letter or digit followed by at most 127 letters, digits, `_`, `.`, `-`"))
}

pub(crate) fn default_bridge(network: &str) -> String {
    let plain = format!("skb-{network}");
    if check_ifname(&plain).is_ok() { plain } else { format!("skb-{}", digest_hex(&["bridge", network], 5)) }
}

fn uplink_nic(nic: Option<String>, bridge: &str) -> Result<Option<String>, ConfigError> {
    let Some(nic) = nic.filter(|nic| !nic.is_empty()) else { return Ok(None) };
    check_ifname(&nic).map_err(|why| wrong("uplink", format!("`{nic}` {why}")))?;
    if nic == bridge {
        return Err(wrong("uplink", format!("`{nic}` is the bridge itself")));
    }
    Ok(Some(nic))
}

/// `vxlan` is the declaration itself, or `{"file": path}` of one that all nodes share.
fn vpc(value: Value) -> Result<Vpc, ConfigError> {
    let json = |field: String, why: String| ConfigError::Json { field, why };
    let vpc: Vpc = if let Some(file) = value.get("file") {
        let file = file.as_str().ok_or_else(|| wrong("vxlan.file", "is not a text"))?;
        if value.as_object().is_some_and(|map| map.len() > 1) {
            return Err(wrong("vxlan.file", "stands alone: the rest is in the file"));
        }
        let text = std::fs::read(file)
            .map_err(|error| wrong("vxlan.file", format!("`{file}` cannot be read: {error}")))?;
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&text))
            .map_err(|error| json(format!("{file}: {}", error.path()), error.inner().to_string()))?
    } else {
        serde_path_to_error::deserialize(value)
            .map_err(|error| json(format!("vxlan.{}", error.path()), error.inner().to_string()))?
    };
    vpc.validate()?;
    Ok(vpc)
}

fn check_mtu(mtu: u32, ipam: &IpamConfig) -> Result<(), ConfigError> {
    // What FreeBSD's kernel takes (IF_MINMTU of net/if.h, Linux takes 68), and what RFC 8200, section 5, asks for; Linux and
    // FreeBSD both carry up to 65535 on a tap or veth.
    let (least, why) = if ipam.gives_ipv6() { (1280, " (IPv6)") } else { (72, "") };
    if mtu != 0 && !(least..=65535).contains(&mtu) {
        return Err(wrong("mtu", format!("{mtu} is not between {least}{why} and 65535")));
    }
    Ok(())
}

fn check_ports(runtime: &RuntimeConfig) -> Result<(), ConfigError> {
    for (n, port) in runtime.port_mappings.iter().enumerate() {
        if port.host_port == 0 || port.container_port == 0 {
            return Err(wrong(
                "runtimeConfig.portMappings",
                format!("{port} to {}: port 0", port.container_port),
            ));
        }
        if runtime.port_mappings[..n].iter().any(|other| other.collides(port)) {
            return Err(wrong("runtimeConfig.portMappings", format!("{port} is there twice")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::runtime_config::RuntimeDns;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(value: &Value) -> Result<NetConf, ConfigError> {
        NetConf::parse(&serde_json::to_vec(value).unwrap())
    }

    fn base(more: Value) -> Value {
        let mut value = json!({"cniVersion": "1.0.0", "name": "pods", "type": "skep-cni"});
        let Value::Object(more) = more else { panic!() };
        value.as_object_mut().unwrap().extend(more);
        value
    }

    #[test]
    fn defaults() {
        let conf = parse(&base(json!({}))).unwrap();
        assert_eq!(conf.bridge, "skb-pods");
        assert!(conf.is_gateway && conf.is_default_gateway && !conf.ip_masq);
        assert_eq!(conf.policy, NetworkPolicy::default());
        let long = base(json!({"name": "a-name-that-is-long"}));
        assert!(parse(&long).unwrap().bridge.len() <= 15);
    }

    #[test]
    fn mistakes_name_the_field() {
        for (more, want) in [
            (json!({"name": ""}), "name: "),
            (json!({"name": "../x"}), "name: "),
            (json!({"bridge": "a/b"}), "bridge: "),
            (json!({"mtu": 71}), "mtu: 71 is not between 72 and"),
            (
                json!({"mtu": 1279, "ipam": {"type": "skep", "subnet": "fd01::/64"}}),
                "mtu: 1279 is not between 1280 (IPv6) and",
            ),
            (json!({"mtu": "x"}), "mtu: "),
            (json!({"ipMask": true}), "ipMask: is unknown; its value is true"),
            (json!({"policy": {"egress": {"alow": []}}}), "policy.egress"),
            (json!({"policy": {"egress": {"allow": ["10.0.0.0/99"]}}}), "policy.egress.allow[0]"),
            (json!({"policy": {"denyAll": true}}), "policy"),
            (
                json!({"vxlan": {"vni": 1, "nodes": [{"name": "a", "address": "192.0.2.1"}]}, "policy": {"ingress": {"deny": [{"group": "web"}]}}}),
                "policy: denies group `web`",
            ),
            (json!({"ipam": {"type": "skep", "subnet": "x"}}), "ipam.subnet"),
            (json!({"dataDir": "x"}), "dataDir: "),
            (json!({"uplink": "skb-pods"}), "uplink: "),
            (json!({"acceptRA": true}), "acceptRA: "),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 1}]}}),
                "runtimeConfig.portMappings",
            ),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 5, "containerPort": 1}, {"hostPort": 5, "containerPort": 2}]}}),
                "runtimeConfig.portMappings",
            ),
            (json!({"runtimeConfig": {"mac": "01:00:00:00:00:00"}}), "runtimeConfig.mac"),
            (json!({"prevResult": {"ips": [{"address": "x"}]}}), "prevResult.ips[0].address"),
            (json!({"cniVersion": "0.2.0"}), "cniVersion `0.2.0`"),
            (json!({"vxlan": {"vni": 0, "nodes": [{"name": "a", "address": "192.0.2.1"}]}}), "vxlan.vni"),
        ] {
            let error = parse(&base(more.clone())).unwrap_err().to_string();
            assert!(error.contains(want), "{more}: {error}");
        }
        let none = parse(&json!({"name": "x", "type": "y"})).unwrap_err();
        assert!(matches!(none, ConfigError::Version(_)));
    }

    #[test]
    fn an_empty_list_of_attachments_may_be_null() {
        let list = |more| parse(&base(more)).unwrap().valid_attachments;
        assert_eq!(list(json!({})), None);
        assert_eq!(list(json!({"cni.dev/valid-attachments": null})), Some(Vec::new()));
        assert_eq!(
            list(json!({"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "b"}]})),
            Some(vec![("a".to_owned(), "b".to_owned())])
        );
    }

    #[test]
    fn what_is_null_is_not_there() {
        // containerd's configuration for a pod without annotations, ports and limits.
        let conf = parse(&base(json!({"mtu": null, "policy": null, "ipam": null, "prevResult": null, "typo": null, "dns": null,
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": null, "portMappings": null, "bandwidth": null, "mac": null,
                "ips": null, "dns": {"Servers": null, "Searches": null}}})))
        .unwrap();
        assert!(conf.prev_result.is_none() && conf.ipam == IpamConfig::None);
        let runtime = RuntimeConfig { dns: Some(RuntimeDns::default()), ..RuntimeConfig::default() };
        assert_eq!(conf.runtime, runtime);
        let port = json!({"hostPort": 80, "containerPort": 80, "hostIP": null, "protocol": null});
        let conf = parse(&base(json!({"runtimeConfig": {"portMappings": [port]}}))).unwrap();
        assert_eq!(conf.runtime.port_mappings[0].to_string(), "*:80/tcp");
    }

    #[test]
    fn a_port_that_is_asked_for_twice_is_one() {
        // As Docker's habit is: of all IPv4 addresses, and of all IPv6 addresses.
        let port = |ip: &str, to: u16| json!({"hostPort": 80, "containerPort": to, "hostIP": ip});
        let ports = |ports: Value| parse(&base(json!({"runtimeConfig": {"portMappings": ports}})));
        let conf = ports(json!([port("0.0.0.0", 80), port("::", 80), port("", 80)])).unwrap();
        assert_eq!(conf.runtime.port_mappings.len(), 1);
        assert!(ports(json!([port("0.0.0.0", 80), port("::", 81)])).is_err());
    }

    #[test]
    fn a_capability_goes_before_args() {
        let asks = |more| {
            let runtime = parse(&base(more)).unwrap().runtime;
            let ips: Vec<String> = runtime.ips.iter().map(|ip| ip.0.to_string()).collect();
            (ips.join(" "), runtime.mac.map(|mac| mac.to_string()).unwrap_or_default())
        };
        let args = json!({"cni": {"ips": ["10.1.0.7/24", "fd01::7"], "mac": "02:00:00:00:00:07", "labels": []}, "x": 1});
        assert_eq!(asks(json!({"args": args})), ("10.1.0.7 fd01::7".into(), "02:00:00:00:00:07".into()));
        let capabilities = json!({"ips": ["10.1.0.8"], "mac": "02:00:00:00:00:08"});
        let both = json!({"args": args, "runtimeConfig": capabilities});
        // Of the other family nobody else speaks.
        assert_eq!(asks(both), ("10.1.0.8 fd01::7".into(), "02:00:00:00:00:08".into()));
        assert_eq!(asks(json!({"args": {"cni": null}})), Default::default());
        assert!(parse(&base(json!({"args": {"cni": {"mac": "no"}}}))).is_err());
    }

    #[test]
    fn keys_of_a_namespace_are_somebody_elses() {
        parse(&base(
            json!({"example.org/x": 1, "capabilities": {"mac": true}, "args": {}, "disableCheck": true}),
        ))
        .unwrap();
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}\",:a-zA-Z0-9./ -]{0,120}") {
            let _ = NetConf::parse(&bytes);
            let _ = NetConf::parse(text.as_bytes());
            let _ = version_of(&bytes);
        }

        #[test]
        fn no_value_of_a_known_field_makes_it_panic(key in prop::sample::select(vec!["name", "bridge", "mtu", "ipam", "policy", "vxlan", "runtimeConfig", "prevResult", "dns", "uplink"]), text in "[\\[\\]{}\",:a-z0-9./ ]{0,60}") {
            let value = serde_json::from_str::<Value>(&text).unwrap_or(Value::String(text));
            let _ = parse(&base(json!({ key: value })));
        }
    }
}

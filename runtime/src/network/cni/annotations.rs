//! What a pod asks of its network by annotations: pure.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::AnnotationError;

/// Networks to be attached to, separated by commas, or [`NONE`].
pub(super) const NETWORKS: &str = "org.skep.networks";
/// Ports to be published: `[HOSTIP:]HOST:CONTAINER[/PROTOCOL]`, separated by commas.
const PORTS: &str = "org.skep.ports";
/// Addresses wanted, separated by commas.
const IPS: &str = "org.skep.ips";
/// The Ethernet address wanted.
const MAC: &str = "org.skep.mac";
/// No network.
pub(super) const NONE: &str = "none";

// nerdctl's `pkg/labels`: it hands its labels over as annotations.
/// A JSON list of networks' names.
pub(super) const NERDCTL_NETWORKS: &str = "nerdctl/networks";
const NERDCTL_PORTS: &str = "nerdctl/ports";
const NERDCTL_IPS: [&str; 2] = ["nerdctl/ip", "nerdctl/ip6"];
const NERDCTL_MAC: &str = "nerdctl/mac-address";
// Kubernetes' traffic shaping.
const BANDWIDTH: [(&str, &str); 2] =
    [("kubernetes.io/ingress-bandwidth", "ingress"), ("kubernetes.io/egress-bandwidth", "egress")];
/// The capability of plugins that read annotations.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// go-cni's `PortMapping`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NerdctlPort {
    host_port: u16,
    container_port: u16,
    protocol: String,
    #[serde(rename = "HostIP", default)]
    host_ip: String,
}

/// What plugins are told in `runtimeConfig`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Wishes {
    /// About one interface: with several networks, that on the first.
    pub(super) first: Map<String, Value>,
    /// About each of them.
    pub(super) all: Map<String, Value>,
    /// Of `first` what must not be ignored by a network that cannot do it, with the annotation that asks for it.
    pub(super) needed: Vec<(&'static str, &'static str)>,
}

/// Reads the annotations.
pub(super) fn wishes<S: BuildHasher>(
    annotations: &HashMap<String, String, S>,
) -> Result<Wishes, AnnotationError> {
    let mut wishes = Wishes::default();
    let get = |key: &'static str| {
        annotations.get(key).map(String::as_str).filter(|value| !value.is_empty()).map(|value| (key, value))
    };
    let mut first = |capability: &'static str, key: &'static str, value: Value| {
        wishes.first.insert(capability.to_owned(), value);
        wishes.needed.push((capability, key));
    };
    if let Some((key, value)) = get(PORTS) {
        let ports: Result<Vec<Value>, _> = list(value).map(port).collect();
        first("portMappings", key, Value::Array(ports.map_err(|reason| wrong(key, value, reason))?));
    } else if let Some((key, value)) = get(NERDCTL_PORTS) {
        let ports: Option<Vec<NerdctlPort>> =
            serde_json::from_str(value).map_err(|error| wrong(key, value, error.to_string()))?;
        if let Some(ports) = ports.filter(|ports| !ports.is_empty()) {
            let ports = ports.into_iter().map(|port| {
                mapping(port.host_port, port.container_port, &port.protocol.to_lowercase(), &port.host_ip)
            });
            first("portMappings", key, ports.collect());
        }
    }
    if let Some((key, value)) = get(IPS) {
        let ips: Result<Vec<Value>, _> = list(value).map(ip).collect();
        first("ips", key, Value::Array(ips.map_err(|reason| wrong(key, value, reason))?));
    } else {
        let named: Vec<_> = NERDCTL_IPS.into_iter().filter_map(get).collect();
        let ips = named.iter().map(|(key, value)| ip(value).map_err(|reason| wrong(key, value, reason)));
        let ips: Vec<Value> = ips.collect::<Result<_, _>>()?;
        if let Some((key, _)) = named.first() {
            first("ips", key, Value::Array(ips));
        }
    }
    if let Some((key, value)) = get(MAC).or_else(|| get(NERDCTL_MAC)) {
        let bytes: Vec<_> = value.split(':').map(|byte| (byte.len(), u8::from_str_radix(byte, 16))).collect();
        if bytes.len() != 6 || bytes.iter().any(|(length, byte)| *length != 2 || byte.is_err()) {
            return Err(wrong(key, value, "is no Ethernet address".into()));
        }
        first("mac", key, json!(value));
    }
    let mut bandwidth = Map::new();
    for ((key, value), way) in BANDWIDTH.into_iter().filter_map(|(key, way)| Some((get(key)?, way))) {
        let rate =
            quantity(value).ok_or_else(|| wrong(key, value, "is no rate in bits per second".into()))?;
        bandwidth.insert(format!("{way}Rate"), json!(rate));
        bandwidth.insert(format!("{way}Burst"), json!(rate));
    }
    if !bandwidth.is_empty() {
        wishes.all.insert("bandwidth".into(), Value::Object(bandwidth));
    }
    if !annotations.is_empty() {
        let all: Map<String, Value> =
            annotations.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        wishes.all.insert(POD_ANNOTATIONS.into(), Value::Object(all));
    }
    Ok(wishes)
}

/// The networks that [`NETWORKS`] names; none of them for [`NONE`].
pub(super) fn networks(value: &str) -> Result<Vec<String>, AnnotationError> {
    if value == NONE {
        return Ok(Vec::new());
    }
    let names: Vec<String> = list(value).map(str::to_owned).collect();
    let twice = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name));
    match twice {
        _ if names.iter().any(String::is_empty) => Err(wrong(NETWORKS, value, "has an empty name".into())),
        Some((_, name)) => Err(wrong(NETWORKS, value, format!("has {name} twice"))),
        None => Ok(names),
    }
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim)
}

fn wrong(key: &str, value: &str, reason: String) -> AnnotationError {
    AnnotationError::Value { key: key.to_owned(), value: value.to_owned(), reason }
}

fn ip(text: &str) -> Result<Value, String> {
    let ip: IpAddr = text.parse().map_err(|_| format!("{text:?} is no IP address"))?;
    Ok(json!(ip.to_string()))
}

fn mapping(host: u16, container: u16, protocol: &str, ip: &str) -> Value {
    let mut mapping = json!({ "hostPort": host, "containerPort": container, "protocol": protocol });
    if !ip.is_empty() {
        mapping["hostIP"] = json!(ip);
    }
    mapping
}

fn port(text: &str) -> Result<Value, String> {
    let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    if !["tcp", "udp", "sctp"].contains(&protocol) {
        return Err(format!("{text:?}: the protocol is tcp, udp or sctp"));
    }
    let form = || format!("{text:?} is not [HOSTIP:]HOST:CONTAINER[/PROTOCOL]");
    let (rest, container) = ports.rsplit_once(':').ok_or_else(form)?;
    let (ip, host) = rest.rsplit_once(':').unwrap_or(("", rest));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(form);
    let ip = match ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().map_err(|_| form())?.to_string(),
        None if ip.is_empty() => String::new(),
        None => ip.parse::<std::net::Ipv4Addr>().map_err(|_| form())?.to_string(),
    };
    Ok(mapping(number(host)?, number(container)?, protocol, &ip))
}

/// Kubernetes' quantities as far as rates use them: `10M`, `1.5G`, `4Mi`, `1000000`.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: f64 = match unit {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        _ => return None,
    };
    let rate = number.parse::<f64>().ok()? * factor;
    // Kubernetes' own limits: 1 kbit/s to 1 Pbit/s.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within the range that is checked"
    )]
    (1e3..=1e15).contains(&rate).then_some(rate as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Wishes, AnnotationError> {
        let all: HashMap<String, String> =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        wishes(&all)
    }

    #[test]
    fn ports_are_spelled_as_people_do() {
        let wishes =
            read(&[("org.skep.ports", "8080:80, 127.0.0.1:53:5353/udp,[::1]:443:8443/tcp")]).unwrap();
        assert_eq!(
            wishes.first["portMappings"],
            json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
                { "hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "127.0.0.1" },
                { "hostPort": 443, "containerPort": 8443, "protocol": "tcp", "hostIP": "::1" }])
        );
        assert_eq!(wishes.needed, [("portMappings", "org.skep.ports")]);
        for bad in ["80", "80:x", "0:1", "70000:1", "a:1:2", "::1:1:2", "1:2/icmp", "1:2,"] {
            let error = read(&[("org.skep.ports", bad)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("annotation org.skep.ports: `{bad}`: ")), "{error}");
        }
    }

    #[test]
    fn nerdctls_labels_are_known() {
        let wishes = read(&[
            (
                "nerdctl/ports",
                r#"[{"HostPort":8080,"ContainerPort":80,"Protocol":"TCP","HostIP":"0.0.0.0"}]"#,
            ),
            ("nerdctl/ip", "10.4.0.9"),
            ("nerdctl/ip6", ""),
            ("nerdctl/mac-address", "02:00:00:00:00:09"),
        ])
        .unwrap();
        assert_eq!(
            Value::Object(wishes.first),
            json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0" }],
                "ips": ["10.4.0.9"], "mac": "02:00:00:00:00:09" })
        );
        assert_eq!(read(&[("nerdctl/ports", "null")]).unwrap().first, Map::new());
        assert!(read(&[("nerdctl/ports", "[1]")]).unwrap_err().to_string().contains("nerdctl/ports"));
        // Skep's own say the last word.
        let own = read(&[("nerdctl/ip", "10.4.0.9"), ("org.skep.ips", "10.4.0.7,fd00::7")]).unwrap();
        assert_eq!(own.first["ips"], json!(["10.4.0.7", "fd00::7"]));
        for (key, bad) in
            [("org.skep.ips", "10.4.0.7/24"), ("org.skep.mac", "02:00"), ("org.skep.mac", "2:0:0:0:0:9")]
        {
            assert!(read(&[(key, bad)]).unwrap_err().to_string().contains(bad));
        }
    }

    #[test]
    fn kubernetes_annotations_are_known() {
        let wishes =
            read(&[("kubernetes.io/egress-bandwidth", "1.5M"), ("network.skep.org/group", "web")]).unwrap();
        assert_eq!(wishes.all["bandwidth"], json!({ "egressRate": 1_500_000, "egressBurst": 1_500_000 }));
        assert_eq!(wishes.all["io.kubernetes.cri.pod-annotations"]["network.skep.org/group"], "web");
        for bad in ["fast", "1", "-1M", "1Q", "1.2.3M"] {
            assert!(read(&[("kubernetes.io/ingress-bandwidth", bad)]).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_are_named_once_each() {
        assert_eq!(networks("a, b").unwrap(), ["a", "b"]);
        assert_eq!(networks("none").unwrap(), Vec::<String>::new());
        assert!(networks("a,,b").is_err() && networks("a,a").is_err() && networks("").is_err());
    }

    proptest! {
        #[test]
        fn any_port_is_read_or_refused(text in "[0-9:./a-z\\[\\]]{0,30}") {
            let _ = port(&text);
            let _ = quantity(&text);
        }
    }
}

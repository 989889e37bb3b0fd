//! `runtimeConfig`: what the runtime fills in for the capabilities a configuration declares.
//!
//! The conventions spell fields as `hostPort`. containerd and nerdctl (by their library go-cni) write `HostPort`, and
//! `null` for an empty list: to plugins written in Go that is the same, so it is to us.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::mac::Mac;

/// A transport protocol of a port map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[serde(alias = "TCP")]
    Tcp,
    /// UDP.
    #[serde(alias = "UDP")]
    Udp,
    /// SCTP.
    #[serde(alias = "SCTP")]
    Sctp,
}

impl Protocol {
    /// The number in an IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the host that leads into the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMapping {
    /// The host's port.
    #[serde(alias = "HostPort")]
    pub host_port: u16,
    /// The sandbox's port.
    #[serde(alias = "ContainerPort")]
    pub container_port: u16,
    /// The transport.
    #[serde(default = "tcp", alias = "Protocol")]
    pub protocol: Protocol,
    /// The host's address it is bound to; none means every address of the host.
    #[serde(
        rename = "hostIP",
        alias = "HostIP",
        default,
        deserialize_with = "optional_ip",
        skip_serializing_if = "Option::is_none"
    )]
    pub host_ip: Option<IpAddr>,
}

fn tcp() -> Protocol {
    Protocol::Tcp
}

/// Runtimes write an empty text or an unspecified address for "every address".
fn optional_ip<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let ip: IpAddr =
        text.parse().map_err(|_| serde::de::Error::custom(format!("`{text}` is not an IP address")))?;
    Ok(Some(ip).filter(|ip| !ip.is_unspecified()))
}

/// A list, or `null` for an empty one.
fn list<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl PortMapping {
    /// Whether both would claim the same port of the same address.
    pub fn collides(&self, other: &Self) -> bool {
        let same_address = match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        same_address && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}/{}", self.host_port, self.protocol),
            Some(ip) => write!(f, "{ip}:{}/{}", self.host_port, self.protocol),
            None => write!(f, "*:{}/{}", self.host_port, self.protocol),
        }
    }
}

/// Limits on what an interface carries. Rates in bits per second, bursts in bits; 0 means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bandwidth {
    /// Towards the sandbox, bits per second.
    #[serde(alias = "IngressRate")]
    pub ingress_rate: u64,
    /// Towards the sandbox, bits.
    #[serde(alias = "IngressBurst")]
    pub ingress_burst: u64,
    /// From the sandbox, bits per second.
    #[serde(alias = "EgressRate")]
    pub egress_rate: u64,
    /// From the sandbox, bits.
    #[serde(alias = "EgressBurst")]
    pub egress_burst: u64,
}

impl Bandwidth {
    /// Where nobody says a burst, containerd's CRI plugin writes the largest number of 32 bits, and kubelets that called plugins
    /// themselves wrote that of 31: half a gigabyte would pass before the limit is felt, and a queue as long would stand
    /// behind it.
    const NOBODY_SAYS: [u64; 3] = [0, (1 << 31) - 1, (1 << 32) - 1];

    /// The same with bursts of a tenth of a second where nobody says any.
    pub(super) fn settled(self) -> Self {
        let burst = |burst, rate| if Self::NOBODY_SAYS.contains(&burst) { rate / 10 } else { burst };
        Self {
            ingress_burst: burst(self.ingress_burst, self.ingress_rate),
            egress_burst: burst(self.egress_burst, self.egress_rate),
            ..self
        }
    }
}

/// Resolver settings as the `dns` capability spells them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RuntimeDns {
    /// Addresses of resolvers.
    #[serde(alias = "Servers", deserialize_with = "list")]
    pub servers: Vec<String>,
    /// Search list.
    #[serde(alias = "Searches", deserialize_with = "list")]
    pub searches: Vec<String>,
    /// Resolver options.
    #[serde(alias = "Options", deserialize_with = "list")]
    pub options: Vec<String>,
}

/// The capabilities this plugin acts on. Others are left to the plugins of the chain that know them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// Capability `portMappings`.
    #[serde(deserialize_with = "list")]
    pub port_mappings: Vec<PortMapping>,
    /// Capability `bandwidth`.
    pub bandwidth: Option<Bandwidth>,
    /// Capability `ips`: the addresses wanted.
    #[serde(deserialize_with = "list")]
    pub ips: Vec<IpOrNet>,
    /// Capability `mac`: the Ethernet address wanted.
    pub mac: Option<Mac>,
    /// Capability `dns`.
    pub dns: Option<RuntimeDns>,
    /// Capability `io.kubernetes.cri.pod-annotations`.
    #[serde(rename = "io.kubernetes.cri.pod-annotations")]
    pub annotations: BTreeMap<String, String>,
}

/// What somebody asks for by `args.cni` of the configuration (CNI's conventions, '"args" in network config'; the Ethernet
/// address is the bridge plugin's addition to them).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct CniArgs {
    #[serde(deserialize_with = "list")]
    ips: Vec<IpOrNet>,
    mac: Option<Mac>,
}

impl RuntimeConfig {
    /// Asks for what `args` do, where no capability says otherwise.
    pub(super) fn ask(&mut self, args: &CniArgs) {
        let more: Vec<IpAddr> = args.ips.iter().map(|ip| ip.0).collect();
        self.ips = self.wanted_ips(&more).into_iter().map(IpOrNet).collect();
        self.mac = self.mac.or(args.mac);
    }

    /// The addresses wanted, and those of `more` of whose family nobody wants one yet: nerdctl asks for IPv4 by `CNI_ARGS` and
    /// for IPv6 by the capability.
    pub fn wanted_ips(&self, more: &[IpAddr]) -> Vec<IpAddr> {
        let wanted: Vec<IpAddr> = self.ips.iter().map(|ip| ip.0).collect();
        let new = |ip: &&IpAddr| wanted.iter().all(|other| other.is_ipv4() != ip.is_ipv4());
        let more: Vec<IpAddr> = more.iter().filter(new).copied().collect();
        [wanted, more].concat()
    }

    /// A mapping that is there more than once is one: who publishes on `0.0.0.0` and on `::` says twice that it is every address.
    pub(super) fn forget_repeated_ports(&mut self) {
        let mut ports: Vec<PortMapping> = Vec::new();
        for port in self.port_mappings.drain(..) {
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        self.port_mappings = ports;
    }
}

/// An address, with or without a prefix (runtimes write both).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpOrNet(pub IpAddr);

impl<'de> Deserialize<'de> for IpOrNet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<IpNet>()
            .map(|net| net.addr())
            .or_else(|_| text.parse())
            .map(Self)
            .map_err(|_| serde::de::Error::custom(format!("`{text}` is not an IP address")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_spellings_are_understood() {
        let config: RuntimeConfig = serde_json::from_str(
            r#"{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"TCP","hostIP":"0.0.0.0"},
                {"hostPort":81,"containerPort":81,"hostIP":"192.0.2.1"},{"hostPort":82,"containerPort":82,"hostIP":""}],
               "ips":["10.0.0.9/24","fd00::9"],"mac":"02:00:00:00:00:01","somebodyElses":true}"#,
        )
        .unwrap();
        assert_eq!(config.port_mappings[0].host_ip, None);
        assert_eq!(config.port_mappings[1].protocol, Protocol::Tcp);
        assert!(config.port_mappings[1].host_ip.is_some() && config.port_mappings[2].host_ip.is_none());
        assert_eq!(config.ips.len(), 2);
    }

    #[test]
    fn what_go_cni_writes_is_read_as_what_the_conventions_say() {
        let read = |text: &str| serde_json::from_str::<RuntimeConfig>(text).unwrap();
        let by_go_cni = read(
            r#"{"portMappings":[{"HostPort":80,"ContainerPort":8080,"Protocol":"udp","HostIP":"192.0.2.1"}],
                "bandwidth":{"IngressRate":1,"IngressBurst":2,"EgressRate":3,"EgressBurst":4},"ips":null,
                "dns":{"Servers":["192.0.2.53"],"Searches":null,"Options":["ndots:5"]}}"#,
        );
        let by_convention = read(
            r#"{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"udp","hostIP":"192.0.2.1"}],
                "bandwidth":{"ingressRate":1,"ingressBurst":2,"egressRate":3,"egressBurst":4},
                "dns":{"servers":["192.0.2.53"],"options":["ndots:5"]}}"#,
        );
        assert_eq!(by_go_cni, by_convention);
        assert_eq!(by_go_cni.dns.unwrap().servers, ["192.0.2.53"]);
        assert_eq!(read(r#"{"portMappings":null}"#), RuntimeConfig::default());
    }

    #[test]
    fn a_burst_that_nobody_says_is_a_tenth_of_a_second() {
        // As containerd writes it for `kubernetes.io/egress-bandwidth: 8M`.
        let asked = |burst| {
            Bandwidth { egress_rate: 8_000_000, egress_burst: burst, ..Bandwidth::default() }.settled()
        };
        for unsaid in [0, 2_147_483_647, 4_294_967_295] {
            assert_eq!(asked(unsaid).egress_burst, 800_000);
        }
        assert_eq!(asked(2_147_483_648).egress_burst, 2_147_483_648);
        assert_eq!((asked(1).egress_burst, asked(1).ingress_burst), (1, 0));
    }

    #[test]
    fn a_port_of_every_address_collides_with_one_of_any() {
        let map = |ip: Option<&str>| PortMapping {
            host_port: 80,
            container_port: 1,
            protocol: Protocol::Tcp,
            host_ip: ip.map(|ip| ip.parse().unwrap()),
        };
        assert!(map(None).collides(&map(Some("192.0.2.1"))));
        assert!(map(Some("192.0.2.1")).collides(&map(Some("192.0.2.1"))));
        assert!(!map(Some("192.0.2.1")).collides(&map(Some("192.0.2.2"))));
    }
}

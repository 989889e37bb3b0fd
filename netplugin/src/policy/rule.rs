//! One entry of a list, as written and as understood.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};

use super::error::PolicyError;
use super::flow::Flow;

/// The name of a group of sandboxes on one network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(String);

impl GroupName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for GroupName {
    type Error = PolicyError;

    fn try_from(name: String) -> Result<Self, PolicyError> {
        let ok = (1..=63).contains(&name.len())
            && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'));
        if ok { Ok(Self(name)) } else { Err(PolicyError::Group(name)) }
    }
}

impl From<GroupName> for String {
    fn from(name: GroupName) -> Self {
        name.0
    }
}

/// The other end a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Anybody, of both families.
    Any,
    /// An address range (host bits cleared).
    Net(IpNet),
    /// The members of a group on the same network.
    Group(GroupName),
}

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// Lowest.
    pub first: u16,
    /// Highest.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };
}

impl FromStr for PortRange {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let bad = || PolicyError::Ports(text.to_owned());
        let port = |text: &str| {
            // parse() alone would take "+80".
            if text.bytes().all(|c| c.is_ascii_digit()) {
                text.parse::<u16>().map_err(|_| bad())
            } else {
                Err(bad())
            }
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        if first > last { Err(bad()) } else { Ok(Self { first, last }) }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// A protocol a rule may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP over IPv4 and `ICMPv6` over IPv6.
    Icmp,
}

impl Transport {
    /// The protocol number it has under an address family.
    pub fn number(self, ipv6: bool) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp => {
                if ipv6 {
                    58
                } else {
                    1
                }
            }
        }
    }
}

/// An entry of an allow or deny list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawRule")]
pub struct Rule {
    /// The other end.
    pub peer: Peer,
    /// The protocol; none means every one.
    pub transport: Option<Transport>,
    /// The destination ports; empty means every one.
    pub ports: Vec<PortRange>,
}

impl Rule {
    /// Everything to or from a range.
    pub fn net(net: IpNet) -> Self {
        Self { peer: Peer::Net(net.trunc()), transport: None, ports: Vec::new() }
    }

    /// Whether the rule speaks of `flow`.
    pub fn matches(&self, flow: &Flow, in_group: &dyn Fn(&GroupName, IpAddr) -> bool) -> bool {
        let peer = match &self.peer {
            Peer::Any => true,
            Peer::Net(net) => net.contains(&flow.peer),
            Peer::Group(group) => in_group(group, flow.peer),
        };
        peer && self.transport.is_none_or(|transport| transport.number(flow.peer.is_ipv6()) == flow.protocol)
            && (self.ports.is_empty()
                || self.ports.iter().any(|range| (range.first..=range.last).contains(&flow.port)))
    }
}

/// A rule as it is written: `"10.0.0.0/8"`, or an object.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum RawRule {
    /// A range, an address or `any`.
    Short(String),
    /// The long form.
    Long(LongRule),
}

/// The long form of a rule.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LongRule {
    /// A range or an address; this or `group`, or neither for anybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    cidr: Option<String>,
    /// A group.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    /// A protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Transport>,
    /// Ports and ranges of ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<RawPort>,
}

/// `80` or `"80"` or `"80-90"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum RawPort {
    Number(u16),
    Text(String),
}

fn parse_net(text: &str) -> Result<IpNet, PolicyError> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map(|net| net.trunc())
        .map_err(|_| PolicyError::Cidr(text.to_owned()))
}

impl TryFrom<RawRule> for Rule {
    type Error = PolicyError;

    fn try_from(raw: RawRule) -> Result<Self, PolicyError> {
        let long = match raw {
            RawRule::Short(text) if text == "any" => LongRule::default(),
            RawRule::Short(text) => LongRule { cidr: Some(text), ..LongRule::default() },
            RawRule::Long(long) => long,
        };
        let peer = match (long.cidr, long.group) {
            (Some(_), Some(_)) => return Err(PolicyError::TwoPeers),
            (Some(cidr), None) => Peer::Net(parse_net(&cidr)?),
            (None, Some(group)) => Peer::Group(group.try_into()?),
            (None, None) => Peer::Any,
        };
        let ports = long
            .ports
            .into_iter()
            .map(|port| match port {
                RawPort::Number(port) => Ok(PortRange { first: port, last: port }),
                RawPort::Text(text) => text.parse(),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if !ports.is_empty() && matches!(long.protocol, None | Some(Transport::Icmp)) {
            return Err(PolicyError::PortsWithoutProtocol);
        }
        Ok(Self { peer, transport: long.protocol, ports })
    }
}

/// A short text that is not on the heap.
struct Line {
    bytes: [u8; 64],
    len: usize,
}

impl Line {
    /// A range, as its `Display` has it. A third of a change of a long list, of what is not the kernel's, was formatting octets.
    fn of(net: &IpNet) -> Option<Self> {
        let mut line = Self { bytes: [0; 64], len: 0 };
        let IpNet::V4(net) = net else {
            write!(line, "{net}").ok()?;
            return Some(line);
        };
        for (octet, end) in net.addr().octets().into_iter().zip(*b".../") {
            line.number(octet);
            line.push(end);
        }
        line.number(net.prefix_len());
        Some(line)
    }

    /// At most the fourteen digits and four signs of an IPv4 range are pushed: there is room.
    fn push(&mut self, byte: u8) {
        if let Some(at) = self.bytes.get_mut(self.len) {
            *at = byte;
            self.len += 1;
        }
    }

    fn number(&mut self, number: u8) {
        if number >= 100 {
            self.push(b'0' + number / 100);
        }
        if number >= 10 {
            self.push(b'0' + number / 10 % 10);
        }
        self.push(b'0' + number % 10);
    }

    fn text(&self) -> &str {
        str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (cidr, group) = match &self.peer {
            // Lists of thousands of addresses are written at run time: nothing is put on the heap for each.
            Peer::Net(net) if self.transport.is_none() => {
                return match Line::of(net) {
                    Some(line) => serializer.serialize_str(line.text()),
                    None => serializer.collect_str(net),
                };
            }
            Peer::Any => (None, None),
            Peer::Net(net) => (Some(net.to_string()), None),
            Peer::Group(group) => (None, Some(group.as_str().to_owned())),
        };
        let ports = self.ports.iter().map(|range| RawPort::Text(range.to_string())).collect();
        LongRule { cidr, group, protocol: self.transport, ports }.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(json: &str) -> Result<Rule, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn both_forms_are_read() {
        assert_eq!(parse(r#""10.1.2.3/8""#).unwrap(), Rule::net("10.0.0.0/8".parse().unwrap()));
        assert_eq!(parse(r#""10.1.2.3""#).unwrap(), Rule::net("10.1.2.3/32".parse().unwrap()));
        assert_eq!(parse(r#""any""#).unwrap().peer, Peer::Any);
        let rule = parse(r#"{"cidr":"fd00::/8","protocol":"udp","ports":[53,"1000-2000"]}"#).unwrap();
        assert_eq!(rule.ports[1], PortRange { first: 1000, last: 2000 });
    }

    #[test]
    fn mistakes_are_refused() {
        for bad in [
            r#""10.0.0.0/33""#,
            r#""everybody""#,
            r#"{"cidr":"10.0.0.0/8","group":"a"}"#,
            r#"{"ports":[80]}"#,
            r#"{"protocol":"icmp","ports":[80]}"#,
            r#"{"protocol":"tcp","ports":["90-80"]}"#,
            r#"{"protocol":"tcp","ports":["+80"]}"#,
            r#"{"protocol":"tcp","ports":[65536]}"#,
            r#"{"protocol":"gre"}"#,
            r#"{"cird":"10.0.0.0/8"}"#,
            r#"{"group":"a b"}"#,
            r#"{"group":""}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_rule_survives_being_written(addr: Option<u128>, len in 0u8..=128, first: u16, last: u16, tcp: bool) {
            let net = |addr: u128| Peer::Net(IpNet::new(IpAddr::from(addr.to_be_bytes()), len).unwrap().trunc());
            let rule = Rule {
                peer: addr.map_or(Peer::Any, net),
                transport: tcp.then_some(Transport::Tcp),
                ports: tcp.then_some(PortRange { first: first.min(last), last: first.max(last) }).into_iter().collect(),
            };
            let text = serde_json::to_string(&rule).unwrap();
            prop_assert_eq!(serde_json::from_str::<Rule>(&text).unwrap(), rule);
        }

        #[test]
        fn a_range_is_written_as_it_is_shown(v4: u32, v6: u128, len in 0u8..=32) {
            let (v4, v6) = (IpAddr::from(v4.to_be_bytes()), IpAddr::from(v6.to_be_bytes()));
            for net in [IpNet::new(v4, len).unwrap(), IpNet::new(v6, len * 4).unwrap()] {
                let line = Line::of(&net).unwrap();
                prop_assert_eq!(line.text(), net.to_string());
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = text.parse::<PortRange>();
            let _ = parse_net(&text);
        }
    }
}

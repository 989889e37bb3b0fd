//! `ipam` of a configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::IpamError;
use crate::cni::Route;
use crate::policy::GroupName;

/// A range of addresses of one subnet that may be given out. Spelled as host-local's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRange", into = "RawRange")]
pub struct Range {
    /// The subnet (host bits cleared).
    pub subnet: IpNet,
    /// First address that may be given out.
    pub start: IpAddr,
    /// Last one.
    pub end: IpAddr,
    /// The subnet's gateway; never given out.
    pub gateway: IpAddr,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawRange {
    subnet: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    range_start: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    range_end: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

/// An address as a number.
pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// The address `offset` after `base`, of the same family.
pub(crate) fn address(base: IpAddr, offset: u128) -> Option<IpAddr> {
    let number = number(base).checked_add(offset)?;
    match base {
        IpAddr::V4(_) => u32::try_from(number).ok().map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(_) => Some(IpAddr::V6(number.into())),
    }
}

impl TryFrom<RawRange> for Range {
    type Error = String;

    fn try_from(raw: RawRange) -> Result<Self, String> {
        let subnet = raw.subnet.trunc();
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(format!("subnet {subnet} is too small: it has no address besides its gateway's"));
        }
        let lowest = address(subnet.network(), 1).ok_or("subnet has no first address")?;
        // IPv6 has no broadcast address, but its last ones are reserved anycast only by convention: keep the
        // same shape for both families and leave the last one out.
        let highest = address(subnet.network(), number(subnet.broadcast()) - number(subnet.network()) - 1)
            .ok_or("subnet has no last address")?;
        let inside = |name: &str, ip: Option<IpAddr>, default: IpAddr| {
            let ip = ip.unwrap_or(default);
            let ok = ip.is_ipv4() == subnet.addr().is_ipv4() && (lowest..=highest).contains(&ip);
            if ok { Ok(ip) } else { Err(format!("{name} {ip} is not a host's address of subnet {subnet}")) }
        };
        let start = inside("rangeStart", raw.range_start, lowest)?;
        let end = inside("rangeEnd", raw.range_end, highest)?;
        if start > end {
            return Err(format!("rangeStart {start} is after rangeEnd {end}"));
        }
        Ok(Self { subnet, start, end, gateway: inside("gateway", raw.gateway, lowest)? })
    }
}

impl From<Range> for RawRange {
    fn from(range: Range) -> Self {
        Self {
            subnet: range.subnet,
            range_start: Some(range.start),
            range_end: Some(range.end),
            gateway: Some(range.gateway),
        }
    }
}

/// The configuration of our own allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnIpam {
    /// One address is given from each set: two sets make a dual stack.
    pub sets: Vec<Vec<Range>>,
    /// The same for sandboxes of groups that the network declares.
    pub groups: BTreeMap<GroupName, Vec<Vec<Range>>>,
    /// Routes for the sandbox.
    pub routes: Vec<Route>,
}

impl OwnIpam {
    /// Every range, whoever's.
    pub fn ranges(&self) -> impl Iterator<Item = &Range> {
        self.sets.iter().chain(self.groups.values().flatten()).flatten()
    }

    /// The sets for a sandbox of `group`, or of none, and the number of the first among all; none where the group has none
    /// on this host.
    pub(super) fn of(&self, group: Option<&GroupName>) -> Option<(usize, &[Vec<Range>])> {
        let Some(group) = group.filter(|_| !self.groups.is_empty()) else { return Some((0, &self.sets)) };
        let before = self.groups.range::<GroupName, _>(..group).map(|(_, sets)| sets.len()).sum::<usize>();
        self.groups.get(group).map(|sets| (self.sets.len() + before, sets.as_slice()))
    }
}

/// How addresses are come by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpamConfig {
    /// Not at all: a network of Ethernet only, or a chained plugin.
    None,
    /// By our own allocator.
    Own(OwnIpam),
    /// By another plugin, with this name.
    Delegated(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawOwn {
    #[serde(rename = "type")]
    _type: String,
    #[serde(default)]
    ranges: Vec<Vec<Range>>,
    #[serde(default)]
    groups: BTreeMap<GroupName, Vec<Vec<Range>>>,
    subnet: Option<IpNet>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<Route>,
}

fn config_error(field: &str, why: impl Into<String>) -> IpamError {
    IpamError::Config { field: field.to_owned(), why: why.into() }
}

impl IpamConfig {
    /// Whether sandboxes get IPv6 addresses, as far as the configuration says.
    pub fn gives_ipv6(&self) -> bool {
        matches!(self, Self::Own(own) if own.ranges().any(|range| range.subnet.addr().is_ipv6()))
    }

    /// Whether the plugin that gives addresses asks for them on the sandbox's interface, which must be there before:
    /// containernetworking's `dhcp`.
    pub fn asks_on_the_interface(&self) -> bool {
        matches!(self, Self::Delegated(name) if name == "dhcp")
    }

    /// Reads `ipam`.
    pub fn parse(value: Option<&Value>) -> Result<Self, IpamError> {
        let Some(value) = value.filter(|value| value.as_object().is_none_or(|map| !map.is_empty())) else {
            return Ok(Self::None);
        };
        let name = match value.get("type") {
            Some(Value::String(name)) if !name.is_empty() => name,
            _ => return Err(config_error("ipam.type", "is missing or not a text")),
        };
        if name != "skep" {
            // The name becomes a file's name in a directory of plugins.
            if name.contains('/') || name == "." || name == ".." {
                return Err(config_error("ipam.type", format!("`{name}` is not a plugin's name")));
            }
            return Ok(Self::Delegated(name.clone()));
        }
        let raw: RawOwn = serde_path_to_error::deserialize(value)
            .map_err(|error| config_error(&format!("ipam.{}", error.path()), error.inner().to_string()))?;
        let mut sets = raw.ranges;
        if let Some(subnet) = raw.subnet {
            let range = RawRange {
                subnet,
                range_start: raw.range_start,
                range_end: raw.range_end,
                gateway: raw.gateway,
            };
            sets.insert(0, vec![Range::try_from(range).map_err(|why| config_error("ipam.subnet", why))?]);
        } else if raw.range_start.or(raw.range_end).or(raw.gateway).is_some() {
            return Err(config_error(
                "ipam.subnet",
                "is missing, but rangeStart, rangeEnd or gateway is there",
            ));
        }
        check_sets(&sets, &raw.groups)?;
        Ok(Self::Own(OwnIpam { sets, groups: raw.groups, routes: raw.routes }))
    }
}

fn check_sets(sets: &[Vec<Range>], groups: &BTreeMap<GroupName, Vec<Vec<Range>>>) -> Result<(), IpamError> {
    let named =
        groups.iter().map(|(group, sets)| (format!("ipam.groups.{}", group.as_str()), sets.as_slice()));
    let mut seen: Vec<(&Range, String)> = Vec::new();
    for (field, sets) in std::iter::once(("ipam.ranges".to_owned(), sets)).chain(named) {
        if sets.is_empty() {
            return Err(config_error(&field, "is empty"));
        }
        for (n, set) in sets.iter().enumerate() {
            let Some(first) = set.first() else {
                return Err(config_error(&format!("{field}[{n}]"), "is empty"));
            };
            for (m, range) in set.iter().enumerate() {
                let at = format!("{field}[{n}][{m}]");
                if range.subnet.addr().is_ipv4() != first.subnet.addr().is_ipv4() {
                    return Err(config_error(&at, "has another family than the first range of its set"));
                }
                check_apart(&seen, range, &at)?;
                seen.push((range, at));
            }
        }
    }
    Ok(())
}

fn check_apart(seen: &[(&Range, String)], range: &Range, at: &str) -> Result<(), IpamError> {
    for (other, of) in seen {
        if overlap(other, range) {
            return Err(config_error(at, format!("overlaps {of}")));
        }
        if other.subnet != range.subnet && nested(other.subnet, range.subnet) {
            return Err(config_error(at, format!("its subnet {} overlaps {}", range.subnet, other.subnet)));
        }
    }
    Ok(())
}

fn overlap(a: &Range, b: &Range) -> bool {
    a.subnet == b.subnet && a.start <= b.end && b.start <= a.end
}

fn nested(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn own(value: &Value) -> Result<OwnIpam, IpamError> {
        match IpamConfig::parse(Some(value))? {
            IpamConfig::Own(own) => Ok(own),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_leave_network_gateway_and_broadcast_out() {
        let own =
            own(&json!({"type": "skep", "subnet": "10.1.2.3/24", "ranges": [[{"subnet": "fd00:1::/64"}]]}))
                .unwrap();
        let range = &own.sets[0][0];
        assert_eq!(
            (range.start.to_string(), range.end.to_string(), range.gateway.to_string()),
            ("10.1.2.1".into(), "10.1.2.254".into(), "10.1.2.1".into())
        );
        assert_eq!(own.sets[1][0].gateway.to_string(), "fd00:1::1");
    }

    #[test]
    fn mistakes_name_the_field() {
        for (value, want) in [
            (json!({"subnet": "10.0.0.0/8"}), "ipam.type"),
            (json!({"type": "../x"}), "ipam.type"),
            (json!({"type": "skep"}), "ipam.ranges"),
            (json!({"type": "skep", "ranges": [[]]}), "ipam.ranges[0]"),
            (json!({"type": "skep", "subnet": "10.0.0.0/31"}), "ipam.subnet"),
            (json!({"type": "skep", "rangeStart": "10.0.0.5"}), "ipam.subnet"),
            (
                json!({"type": "skep", "ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}]]}),
                "ipam.ranges[0][0]",
            ),
            (
                json!({"type": "skep", "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/24"}]]}),
                "ipam.ranges[1][0]",
            ),
            (
                json!({"type": "skep", "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]]}),
                "ipam.ranges[1][0]",
            ),
            (
                json!({"type": "skep", "ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}),
                "ipam.ranges[0][1]",
            ),
            (json!({"type": "skep", "subnet": "10.0.0.0/24", "gatway": "10.0.0.1"}), "ipam.gatway"),
            (
                json!({"type": "skep", "subnet": "10.0.0.0/24", "groups": {"web": [[{"subnet": "10.0.0.0/24"}]]}}),
                "ipam.groups.web[0][0]",
            ),
            (json!({"type": "skep", "subnet": "10.0.0.0/24", "groups": {"web": []}}), "ipam.groups.web"),
        ] {
            match IpamConfig::parse(Some(&value)) {
                Err(IpamError::Config { field, .. }) => assert_eq!(field, want),
                other => panic!("{value}: {other:?}"),
            }
        }
        assert_eq!(IpamConfig::parse(None).unwrap(), IpamConfig::None);
        assert_eq!(IpamConfig::parse(Some(&json!({}))).unwrap(), IpamConfig::None);
        assert_eq!(
            IpamConfig::parse(Some(&json!({"type": "dhcp"}))).unwrap(),
            IpamConfig::Delegated("dhcp".into())
        );
    }
}

//! The `policy` of a network's configuration, and the one an annotation brings.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Direction, GroupName, Groups, Lists, Policy};
use crate::cni::Protocol;

/// The pod annotation that carries a sandbox's own policy, as JSON, where the network's policy permits it.
pub const POLICY_ANNOTATION: &str = "network.skep.org/policy";
/// The pod annotation that puts a sandbox into a group, where the network's policy permits it.
const GROUP_ANNOTATION: &str = "network.skep.org/group";
/// Annotations of this prefix are ours: an unknown one is a mistake, not somebody else's.
const ANNOTATION_PREFIX: &str = "network.skep.org/";

/// Why a policy is not usable.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// Neither a range nor an address.
    #[error("`{0}` is neither an address range, an address nor `any`")]
    Cidr(String),
    /// Neither a port nor a range of ports.
    #[error("`{0}` is neither a port nor a range of ports")]
    Ports(String),
    /// `ports` makes sense for protocols that have them only.
    #[error("`ports` needs `protocol` tcp, udp or sctp")]
    PortsWithoutProtocol,
    /// Both a range and a group.
    #[error("a rule has either `cidr` or `group`, not both")]
    TwoPeers,
    /// Not a name.
    #[error("`{0}` is not a group's name (1 to 63 letters, digits, `-`, `_`, `.`)")]
    Group(String),
    /// An annotation that cannot be read.
    #[error("annotation {name}: {why}")]
    Annotation {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The network does not let pods bring a policy.
    #[error("annotation {0} is there, but the network's policy does not set `annotations` to true")]
    AnnotationsOff(String),
}

/// A service of the host that the network's sandboxes may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostService {
    /// The transport.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// What holds for every sandbox of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkPolicy {
    /// What sandboxes may open, joined with each one's own lists.
    pub egress: Lists,
    /// What others may open to them, joined with each one's own lists.
    pub ingress: Lists,
    /// Destinations no list overrides, besides [`super::ALWAYS_DENIED`] and the host itself.
    pub always_deny: Vec<IpNet>,
    /// Ports of the host that sandboxes may reach.
    pub host_services: Vec<HostService>,
    /// Whether the host may open connections to the sandboxes (health probes).
    pub host_ingress: bool,
    /// Whether sandboxes get each other's multicast and broadcast frames.
    pub multicast: bool,
    /// The group of sandboxes that name none.
    pub group: Option<GroupName>,
    /// The groups there are, each with the ranges that its members' addresses are of, on whatever host they are. With
    /// none declared, any name is a group's, and each host knows its own members.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Groups>,
    /// Networks of this host whose sandboxes may talk with ours (both sides' policies still apply).
    pub peer_networks: Vec<String>,
    /// Whether pods may bring lists and a group of their own by annotation.
    pub annotations: bool,
}

impl NetworkPolicy {
    /// The lists of a direction.
    pub fn lists(&self, direction: Direction) -> &Lists {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }

    /// Every group that a rule or the default names.
    pub fn named_groups(&self) -> impl Iterator<Item = &GroupName> {
        super::groups_of([&self.egress, &self.ingress]).chain(&self.group)
    }

    /// Those of `names` whose members this host must find out itself: none, where the network declares its groups.
    pub(crate) fn undeclared<'a>(
        &self,
        names: impl Iterator<Item = &'a GroupName>,
    ) -> impl Iterator<Item = &'a GroupName> {
        names.filter(|_| self.groups.is_none())
    }

    /// Lists, the network's or a sandbox's own, as the packet filter gets them: with ranges in the place of declared groups.
    pub(crate) fn resolved<'a>(&self, lists: &'a Lists) -> Cow<'a, Lists> {
        self.groups.as_ref().map_or(Cow::Borrowed(lists), |groups| groups.resolve(lists))
    }

    /// What is wrong with lists on this network, its own or a sandbox's: that they name a group which is not declared, or
    /// what cannot be had over several hosts without a declaration. None if nothing is.
    pub(crate) fn wrong(&self, lists: [&Lists; 2], over_hosts: bool) -> Option<String> {
        match &self.groups {
            Some(groups) => super::groups_of(lists).find_map(|group| groups.check_declared(group).err()),
            None if over_hosts => super::wrong_across_hosts(lists),
            None => None,
        }
    }
}

/// A sandbox's own policy and group from a pod's annotations.
pub fn from_annotations(
    annotations: &BTreeMap<String, String>,
    network: &NetworkPolicy,
) -> Result<(Policy, Option<GroupName>), PolicyError> {
    let (mut policy, mut group) = (Policy::default(), network.group.clone());
    for (name, value) in annotations.iter().filter(|(name, _)| name.starts_with(ANNOTATION_PREFIX)) {
        if !network.annotations {
            return Err(PolicyError::AnnotationsOff(name.clone()));
        }
        let wrong = |why: String| PolicyError::Annotation { name: name.clone(), why };
        match name.as_str() {
            POLICY_ANNOTATION => {
                policy = serde_json::from_str(value).map_err(|error| wrong(error.to_string()))?;
            }
            GROUP_ANNOTATION => {
                group =
                    Some(value.clone().try_into().map_err(|error: PolicyError| wrong(error.to_string()))?);
            }
            _ => return Err(wrong("is unknown".to_owned())),
        }
    }
    Ok((policy, group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_count_only_where_the_network_says_so() {
        let annotations = BTreeMap::from([
            ("app".to_owned(), "x".to_owned()),
            (POLICY_ANNOTATION.to_owned(), r#"{"egress":{"allow":["192.0.2.0/24"]}}"#.to_owned()),
            (GROUP_ANNOTATION.to_owned(), "web".to_owned()),
        ]);
        let mut network = NetworkPolicy::default();
        assert!(matches!(from_annotations(&annotations, &network), Err(PolicyError::AnnotationsOff(_))));
        network.annotations = true;
        let (policy, group) = from_annotations(&annotations, &network).unwrap();
        assert_eq!(policy.egress.allow.len(), 1);
        assert_eq!(group.unwrap().as_str(), "web");
        let unknown = BTreeMap::from([("network.skep.org/polcy".to_owned(), String::new())]);
        assert!(matches!(from_annotations(&unknown, &network), Err(PolicyError::Annotation { .. })));
    }
}

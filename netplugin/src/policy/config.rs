//! The `policy` of a network's configuration.

use std::borrow::Cow;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::flow::Direction;
use super::groups::Groups;
use super::lists::{Lists, groups_of, wrong_across_hosts};
use super::rule::GroupName;
use crate::cni::Protocol;

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
        groups_of([&self.egress, &self.ingress]).chain(&self.group)
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
            Some(groups) => groups_of(lists).find_map(|group| groups.check_declared(group).err()),
            None if over_hosts => wrong_across_hosts(lists),
            None => None,
        }
    }
}

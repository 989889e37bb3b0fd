//! Groups whose members' addresses are known beforehand.
//!
//! Without a declaration a group is whoever is in it on this host, and only this host knows. A network that declares its
//! groups gives each one ranges of addresses, the same on every host, and its members addresses of these and nobody else.
//! Since no sandbox has another's address, a rule about a group is one about its ranges: true of members on other hosts,
//! and of those that are yet to come. This is the one place where the one becomes the other.
//!
//! A link-local IPv6 address does not say which group its owner is in. So to allow a group does not allow these, and to
//! deny one denies all of them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::lists::{Lists, groups_of};
use super::rule::{GroupName, Peer, Rule};
use crate::mac::link_local_net;

/// The groups that a network declares, and the ranges of each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Groups(BTreeMap<GroupName, Vec<IpNet>>);

/// Which list of a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// What may pass.
    Allow,
    /// What may not.
    Deny,
}

impl Groups {
    /// The groups of a list of names with ranges.
    pub fn new(groups: impl IntoIterator<Item = (GroupName, Vec<IpNet>)>) -> Self {
        Self(groups.into_iter().collect())
    }

    /// Each group with its ranges.
    pub fn iter(&self) -> impl Iterator<Item = (&GroupName, &[IpNet])> {
        self.0.iter().map(|(name, ranges)| (name, ranges.as_slice()))
    }

    /// Whether there is no group at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A group's ranges.
    pub fn ranges(&self, group: &GroupName) -> Option<&[IpNet]> {
        self.0.get(group).map(Vec::as_slice)
    }

    /// The group that an address is in.
    pub fn of(&self, ip: IpAddr) -> Option<&GroupName> {
        self.0.iter().find(|(_, ranges)| ranges.iter().any(|net| net.contains(&ip))).map(|(name, _)| name)
    }

    /// Checks that no address is in two groups.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut seen: Vec<(&GroupName, &IpNet)> = Vec::new();
        for (group, ranges) in &self.0 {
            let name = group.as_str();
            if ranges.is_empty() {
                return Err(format!("`{name}` has no range"));
            }
            for net in ranges {
                if *net != net.trunc() {
                    return Err(format!("`{name}`: {net} has host bits: {} was meant?", net.trunc()));
                }
                if let Some((other, taken)) =
                    seen.iter().find(|(_, other)| other.contains(net) || net.contains(*other))
                {
                    return Err(format!("`{name}`: {net} overlaps {taken} of `{}`", other.as_str()));
                }
                seen.push((group, net));
            }
        }
        Ok(())
    }

    /// Checks that a group is declared.
    pub(crate) fn check_declared(&self, group: &GroupName) -> Result<(), String> {
        if self.0.contains_key(group) {
            return Ok(());
        }
        let known: Vec<&str> = self.0.keys().map(GroupName::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(format!("group `{}` is not declared on this network (declared: {known})", group.as_str()))
    }

    /// Checks that a sandbox of `group` may have these addresses.
    pub(crate) fn check_member(
        &self,
        group: Option<&GroupName>,
        ips: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), String> {
        if let Some(group) = group {
            self.check_declared(group)?;
        }
        for ip in ips {
            match (group, self.of(ip)) {
                (wanted, found) if wanted == found => {}
                (Some(group), _) => {
                    return Err(format!("address {ip} is in no range of group `{}`", group.as_str()));
                }
                (None, found) => {
                    let name = found.map(GroupName::as_str).unwrap_or_default();
                    return Err(format!("address {ip} is group `{name}`'s, and the sandbox is not in it"));
                }
            }
        }
        Ok(())
    }

    /// Whether a rule of a list speaks of an address, where it names `group`.
    pub(super) fn covers(&self, list: List, group: &GroupName, ip: IpAddr) -> bool {
        self.peers(list, group).iter().any(|net| net.contains(&ip))
    }

    /// What a rule of a list that names `group` speaks of. A group that is not declared is refused before it comes here;
    /// were one to come, nobody would be allowed by it and everybody denied.
    fn peers(&self, list: List, group: &GroupName) -> Vec<IpNet> {
        let mut nets = match (self.0.get(group), list) {
            (Some(ranges), _) => ranges.clone(),
            (None, List::Allow) => Vec::new(),
            (None, List::Deny) => vec![IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(Ipv6Net::default())],
        };
        if list == List::Deny && nets.iter().any(|net| net.addr().is_ipv6()) {
            nets.push(link_local_net());
        }
        nets
    }

    fn resolve_rules(&self, list: List, rules: &[Rule]) -> Vec<Rule> {
        let mut resolved = Vec::with_capacity(rules.len());
        for rule in rules {
            match &rule.peer {
                Peer::Group(group) => {
                    let of = |net: IpNet| Rule { peer: Peer::Net(net), ..rule.clone() };
                    resolved.extend(self.peers(list, group).into_iter().map(of));
                }
                Peer::Any | Peer::Net(_) => resolved.push(rule.clone()),
            }
        }
        resolved
    }

    /// The same lists without groups.
    pub(super) fn resolve<'a>(&self, lists: &'a Lists) -> Cow<'a, Lists> {
        if groups_of([lists]).next().is_none() {
            return Cow::Borrowed(lists);
        }
        Cow::Owned(Lists {
            allow: self.resolve_rules(List::Allow, &lists.allow),
            deny: self.resolve_rules(List::Deny, &lists.deny),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Direction, Flow, NetworkPolicy, Policy};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn groups(value: Value) -> Groups {
        serde_json::from_value(value).unwrap()
    }

    fn name(text: &str) -> GroupName {
        text.to_owned().try_into().unwrap()
    }

    #[test]
    fn no_address_is_in_two_groups() {
        groups(json!({"web": ["10.1.16.0/20", "fd01::/68"], "db": ["10.1.32.0/20"]})).check().unwrap();
        for (value, want) in [
            (json!({"web": []}), "`web` has no range"),
            (json!({"web": ["10.1.16.1/20"]}), "10.1.16.0/20 was meant"),
            (json!({"db": ["10.1.16.0/20"], "web": ["10.1.16.0/24"]}), "overlaps 10.1.16.0/20 of `db`"),
            (json!({"web": ["10.1.16.0/24", "10.1.0.0/16"]}), "overlaps 10.1.16.0/24 of `web`"),
        ] {
            let why = groups(value.clone()).check().unwrap_err();
            assert!(why.contains(want), "{value}: {why}");
        }
    }

    #[test]
    fn members_have_addresses_of_their_group_and_others_have_none() {
        let groups = groups(json!({"web": ["10.1.16.0/20"], "db": ["10.1.32.0/20"]}));
        let ip = |text: &str| [text.parse::<IpAddr>().unwrap()];
        groups.check_member(Some(&name("web")), ip("10.1.16.7")).unwrap();
        groups.check_member(None, ip("10.1.0.7")).unwrap();
        for (group, address, want) in [
            (Some("web"), "10.1.32.7", "address 10.1.32.7 is in no range of group `web`"),
            (Some("web"), "10.1.0.7", "in no range of group `web`"),
            (None, "10.1.32.7", "is group `db`'s"),
            (Some("cache"), "10.1.0.7", "group `cache` is not declared on this network (declared: db, web)"),
        ] {
            let why = groups.check_member(group.map(name).as_ref(), ip(address)).unwrap_err();
            assert!(why.contains(want), "{why}");
        }
    }

    #[test]
    fn a_denied_group_has_no_way_round_by_link_local_addresses() {
        let groups = groups(json!({"web": ["10.1.16.0/20", "fd01::/68"], "old": ["10.1.32.0/20"]}));
        let lists: Lists =
            serde_json::from_value(json!({"allow": [{"group": "web"}], "deny": [{"group": "web"}]})).unwrap();
        let text = |rules: &[Rule]| serde_json::to_value(rules).unwrap();
        let resolved = groups.resolve(&lists);
        assert_eq!(text(&resolved.allow), json!(["10.1.16.0/20", "fd01::/68"]));
        assert_eq!(text(&resolved.deny), json!(["10.1.16.0/20", "fd01::/68", "fe80::/10"]));
        let old: Lists =
            serde_json::from_value(json!({"deny": [{"group": "old", "protocol": "tcp"}]})).unwrap();
        assert_eq!(
            text(&groups.resolve(&old).deny),
            json!([{"cidr": "10.1.32.0/20", "protocol": "tcp"}]),
            "a group without IPv6"
        );
        let strange: Lists =
            serde_json::from_value(json!({"allow": [{"group": "x"}], "deny": [{"group": "x"}]})).unwrap();
        let strange = groups.resolve(&strange);
        assert!(
            strange.allow.is_empty()
                && strange.deny.iter().any(|rule| rule.peer == Peer::Net("0.0.0.0/0".parse().unwrap()))
        );
    }

    proptest! {
        /// What is permitted by the names is permitted by the ranges, and the other way round.
        #[test]
        fn names_and_ranges_mean_the_same(
            lists in proptest::collection::vec((any::<bool>(), 0_u8..4, any::<bool>()), 0..6),
            third in 0_u8..4, last: u8, v6 in 0_u8..3, egress: bool, port in 79_u16..82,
        ) {
            let network = NetworkPolicy {
                groups: Some(groups(json!({"a": ["10.0.0.0/24", "fd00::/120"], "b": ["10.0.1.0/24"], "c": ["10.0.2.0/25", "fd00::2:0/112"]}))),
                ..NetworkPolicy::default()
            };
            let mut own = Lists::default();
            for (deny, peer, narrow) in lists {
                let mut rule = match peer { 0 => json!({"group": "a"}), 1 => json!({"group": "b"}), 2 => json!({"group": "c"}), _ => json!({}) };
                if narrow {
                    rule["protocol"] = json!("tcp");
                    rule["ports"] = json!([80]);
                }
                let rule: Rule = serde_json::from_value(rule).unwrap();
                if deny { own.deny.push(rule) } else { own.allow.push(rule) }
            }
            let peer: IpAddr = match v6 {
                0 => [10, 0, third, last].into(),
                1 => [0xfd00, 0, 0, 0, 0, 0, third.into(), last.into()].into(),
                _ => [0xfe80, 0, 0, 0, 0, 0, 0, last.into()].into(),
            };
            let direction = if egress { Direction::Egress } else { Direction::Ingress };
            let flow = Flow { direction, peer, protocol: 6, port, published: false };
            let resolved = network.resolved(&own).into_owned();
            prop_assert!(groups_of([&resolved]).next().is_none());
            let with = |lists: Lists| Policy { egress: lists.clone(), ingress: lists };
            let members = |_: &GroupName, _: IpAddr| panic!("the declaration says who is in a group");
            prop_assert_eq!(
                with(own).permits(&network, &flow, &members),
                with(resolved).permits(&NetworkPolicy::default(), &flow, &|_, _| false)
            );
        }
    }
}

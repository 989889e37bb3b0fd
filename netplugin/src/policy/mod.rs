//! What a sandbox may send and receive.
//!
//! The model knows nothing of nftables or pf: a [`Policy`] is lists of [`Rule`]s, [`Policy::permits`] is what
//! they mean, and a datapath must make the kernel agree with it. The order, most powerful first:
//!
//! 1. [`ALWAYS_DENIED`] and the network's own `alwaysDeny`: no list overrides them;
//! 2. any deny list, the sandbox's or the network's;
//! 3. a published port (incoming only);
//! 4. any allow list, the sandbox's or the network's;
//! 5. otherwise: denied.
//!
//! Replies to what was allowed are allowed.

mod annotations;
mod config;
mod error;
mod flow;
mod groups;
mod lists;
mod rule;
mod service;

pub use annotations::{POLICY_ANNOTATION, from_annotations};
pub use config::{HostService, NetworkPolicy};
pub use error::PolicyError;
pub use flow::{Direction, Flow};
pub use groups::Groups;
pub use lists::Lists;
pub use rule::{GroupName, Peer, PortRange, RawRule, Rule, Transport};
pub(crate) use service::{Service, by_service};

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::groups::List;
use self::lists::groups_of;

/// Destinations no sandbox reaches, whatever its lists say: link-local ranges, where clouds keep the metadata
/// that is worth stealing, and the IPv6 address one of them uses for it. Loopback is there because a host that
/// routes it (port maps on 127.0.0.1) would be reached by it.
pub const ALWAYS_DENIED: [&str; 3] = ["169.254.0.0/16", "127.0.0.0/8", "fd00:ec2::254/128"];

/// [`ALWAYS_DENIED`], parsed.
pub fn always_denied() -> Vec<IpNet> {
    ALWAYS_DENIED.iter().filter_map(|net| net.parse().ok()).collect()
}

/// Both directions, seen from the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// What the sandbox opens; the peer is the destination.
    pub egress: Lists,
    /// What others open to it; the peer is the source.
    pub ingress: Lists,
}

impl Policy {
    /// The lists of a direction.
    pub fn lists(&self, direction: Direction) -> &Lists {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }

    /// Whether `flow` may be opened under the sandbox's policy and its network's. `in_group` tells whether an
    /// address belongs to a member of a group, where the network declares none.
    pub fn permits(
        &self,
        network: &NetworkPolicy,
        flow: &Flow,
        in_group: &dyn Fn(&GroupName, IpAddr) -> bool,
    ) -> bool {
        let hits = |rules: &[Rule], list: List| {
            let in_group = |group: &GroupName, ip: IpAddr| match &network.groups {
                Some(groups) => groups.covers(list, group, ip),
                None => in_group(group, ip),
            };
            rules.iter().any(|rule| rule.matches(flow, &in_group))
        };
        if flow.direction == Direction::Egress
            && always_denied().iter().chain(&network.always_deny).any(|net| net.contains(&flow.peer))
        {
            return false;
        }
        let (own, shared) = (self.lists(flow.direction), network.lists(flow.direction));
        if hits(&own.deny, List::Deny) || hits(&shared.deny, List::Deny) {
            return false;
        }
        flow.published || hits(&own.allow, List::Allow) || hits(&shared.allow, List::Allow)
    }

    /// Every group named by a rule.
    pub fn named_groups(&self) -> impl Iterator<Item = &GroupName> {
        groups_of([&self.egress, &self.ingress])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(json: &str) -> Policy {
        serde_json::from_str(json).unwrap()
    }

    fn flow(direction: Direction, peer: &str, port: u16) -> Flow {
        Flow { direction, peer: peer.parse().unwrap(), protocol: 6, port, published: false }
    }

    fn nobody(_: &GroupName, _: IpAddr) -> bool {
        false
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let (none, net) = (Policy::default(), NetworkPolicy::default());
        assert!(!none.permits(&net, &flow(Direction::Egress, "192.0.2.1", 80), &nobody));
        assert!(!none.permits(&net, &flow(Direction::Ingress, "192.0.2.1", 80), &nobody));
        let published = Flow { published: true, ..flow(Direction::Ingress, "192.0.2.1", 80) };
        assert!(none.permits(&net, &published, &nobody));
    }

    #[test]
    fn deny_beats_allow_at_every_level_and_always_denied_beats_both() {
        let own = policy(r#"{"egress":{"allow":["0.0.0.0/0","::/0"],"deny":["192.0.2.0/24"]}}"#);
        let mut net = NetworkPolicy::default();
        assert!(own.permits(&net, &flow(Direction::Egress, "198.51.100.1", 80), &nobody));
        assert!(!own.permits(&net, &flow(Direction::Egress, "192.0.2.1", 80), &nobody));
        assert!(!own.permits(&net, &flow(Direction::Egress, "169.254.169.254", 80), &nobody));
        assert!(!own.permits(&net, &flow(Direction::Egress, "fd00:ec2::254", 80), &nobody));
        net.egress = policy(r#"{"egress":{"deny":["198.51.100.0/24"]}}"#).egress;
        assert!(!own.permits(&net, &flow(Direction::Egress, "198.51.100.1", 80), &nobody));
        net.always_deny = vec!["203.0.113.0/24".parse().unwrap()];
        assert!(!own.permits(&net, &flow(Direction::Egress, "203.0.113.7", 80), &nobody));
        let published = Flow { published: true, ..flow(Direction::Ingress, "192.0.2.1", 80) };
        let deny = policy(r#"{"ingress":{"deny":["192.0.2.1/32"]}}"#);
        assert!(!deny.permits(&net, &published, &nobody));
    }

    #[test]
    fn groups_and_ports_narrow_a_rule() {
        let own =
            policy(r#"{"ingress":{"allow":[{"group":"web","protocol":"tcp","ports":["80","8000-8002"]}]}}"#);
        let net = NetworkPolicy::default();
        let member = |group: &GroupName, ip: IpAddr| group.as_str() == "web" && ip.to_string() == "10.0.0.2";
        for (peer, port, want) in [
            ("10.0.0.2", 80, true),
            ("10.0.0.2", 8001, true),
            ("10.0.0.2", 81, false),
            ("10.0.0.3", 80, false),
        ] {
            assert_eq!(
                own.permits(&net, &flow(Direction::Ingress, peer, port), &member),
                want,
                "{peer} {port}"
            );
        }
        assert_eq!(own.named_groups().count(), 1);
    }

    proptest! {
        #[test]
        fn adding_a_deny_never_allows_more(peer: u32, port: u16, net: u32, len in 0u8..=32) {
            let own = policy(r#"{"egress":{"allow":["0.0.0.0/0"]}}"#);
            let mut denied = own.clone();
            let cidr = IpNet::new(IpAddr::from(net.to_be_bytes()), len).unwrap();
            denied.egress.deny.push(Rule::net(cidr));
            let flow = Flow { direction: Direction::Egress, peer: IpAddr::from(peer.to_be_bytes()), protocol: 6, port, published: false };
            let network = NetworkPolicy::default();
            prop_assert!(!denied.permits(&network, &flow, &nobody) || own.permits(&network, &flow, &nobody));
            if cidr.contains(&flow.peer) {
                prop_assert!(!denied.permits(&network, &flow, &nobody));
            }
        }
    }
}

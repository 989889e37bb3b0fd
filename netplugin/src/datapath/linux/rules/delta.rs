//! What differs between two policies of a sandbox, as far as it can be told to the kernel without the rest.
//!
//! A deny list is mostly single addresses that no packet may go to or come from at all, and mostly the next list has
//! nearly the same. These addresses are in sets with names ([`hosts_set`]), to which a change adds and from which it
//! removes; whatever else differs has the direction's chain made anew.

use std::net::IpAddr;

use crate::policy::{Direction, Lists, Peer, Rule};

/// The set of single addresses that a sandbox's deny list has for every protocol and port.
pub(super) fn hosts_set(id: &str, direction: Direction, ipv6: bool) -> String {
    let direction = if direction == Direction::Egress { "out" } else { "in" };
    format!("deny_{id}_{direction}_{}", if ipv6 { 6 } else { 4 })
}

/// How one direction's lists become another's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// They are the same.
    None,
    /// Single addresses come and go.
    Hosts {
        /// Those that come.
        come: Vec<IpAddr>,
        /// Those that go.
        go: Vec<IpAddr>,
    },
    /// More than that, or so much that making all anew is less.
    All,
}

/// Whether a rule is about all that has to do with one address.
fn host(rule: &Rule) -> Option<IpAddr> {
    match rule.peer {
        Peer::Net(net)
            if rule.transport.is_none()
                && rule.ports.is_empty()
                && net.prefix_len() == net.max_prefix_len() =>
        {
            Some(net.addr())
        }
        _ => None,
    }
}

/// The sorted single addresses of a list, and the rest of it.
fn split(rules: &[Rule]) -> (Vec<IpAddr>, Vec<&Rule>) {
    let (mut hosts, mut rest) = (Vec::with_capacity(rules.len()), Vec::new());
    for rule in rules {
        match host(rule) {
            Some(ip) => hosts.push(ip),
            None => rest.push(rule),
        }
    }
    hosts.sort_unstable();
    hosts.dedup();
    (hosts, rest)
}

/// Whether a rule leaves it to the sets which addresses it is about: one for all protocols may be about everybody, and
/// there is no set then, or say in another way that it is about one address.
fn is_apart(rule: &Rule) -> bool {
    rule.transport.is_some()
        || match rule.peer {
            Peer::Any => false,
            Peer::Net(net) => net.prefix_len() > 0 && net.prefix_len() < net.max_prefix_len(),
            Peer::Group(_) => true,
        }
}

/// How `old` becomes `new`.
pub(super) fn change(old: &Lists, new: &Lists) -> Change {
    if old == new {
        return Change::None;
    }
    let ((before, old_rest), (after, new_rest)) = (split(&old.deny), split(&new.deny));
    let sets = |hosts: &[IpAddr]| [false, true].map(|ipv6| hosts.iter().any(|ip| ip.is_ipv6() == ipv6));
    if old.allow != new.allow
        || old_rest != new_rest
        || !new_rest.iter().all(|rule| is_apart(rule))
        || sets(&before) != sets(&after)
    {
        return Change::All;
    }
    let (mut come, mut go) = (Vec::new(), Vec::new());
    let (mut left, mut right) = (before.iter().peekable(), after.iter().peekable());
    loop {
        match (left.peek(), right.peek()) {
            (Some(one), Some(other)) if one == other => {
                left.next();
                right.next();
            }
            (Some(one), Some(other)) if one < other => go.extend(left.next()),
            (_, Some(_)) => come.extend(right.next()),
            (Some(_), None) => go.extend(left.next()),
            (None, None) => break,
        }
        if come.len() + go.len() > after.len() {
            return Change::All;
        }
    }
    Change::Hosts { come, go }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn lists(deny: &Value) -> Lists {
        serde_json::from_value(json!({"allow": ["any"], "deny": deny})).unwrap()
    }

    #[test]
    fn single_addresses_come_and_go_and_anything_else_is_all() {
        let old =
            lists(&json!(["192.0.2.1", "192.0.2.2", "10.0.0.0/8", {"cidr": "192.0.2.9", "protocol": "tcp"}]));
        assert_eq!(change(&old, &old.clone()), Change::None);
        let new =
            lists(&json!(["192.0.2.3", "10.0.0.0/8", {"cidr": "192.0.2.9", "protocol": "tcp"}, "192.0.2.1"]));
        let [come, go] = ["192.0.2.3", "192.0.2.2"].map(|ip| vec![ip.parse().unwrap()]);
        assert_eq!(change(&old, &new), Change::Hosts { come, go });
        for other in [
            json!(["192.0.2.1", "192.0.2.2", {"cidr": "192.0.2.9", "protocol": "tcp"}]),
            json!(["192.0.2.1", "192.0.2.2", "10.0.0.0/8", {"cidr": "192.0.2.9", "protocol": "udp"}]),
            json!(["10.0.0.0/8", {"cidr": "192.0.2.9", "protocol": "tcp"}]),
            json!(["192.0.2.1", "192.0.2.2", "2001:db8::1", "10.0.0.0/8", {"cidr": "192.0.2.9", "protocol": "tcp"}]),
            json!(["192.0.2.7", "192.0.2.8", "10.0.0.0/8", {"cidr": "192.0.2.9", "protocol": "tcp"}]),
        ] {
            assert_eq!(change(&old, &lists(&other)), Change::All, "{other}");
        }
        // There is no set.
        for odd in [json!("any"), json!("0.0.0.0/0")] {
            let [old, new] = ["192.0.2.1", "192.0.2.2"].map(|one| lists(&json!([odd, one, "192.0.2.3"])));
            assert_eq!(change(&old, &new), Change::All, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn what_comes_and_goes_makes_the_new_of_the_old(old in proptest::collection::btree_set(0u8..40, 0..30), new in proptest::collection::btree_set(0u8..40, 0..30)) {
            let of = |set: &std::collections::BTreeSet<u8>| lists(&set.iter().map(|n| format!("192.0.2.{n}")).collect());
            if let Change::Hosts { come, go } = change(&of(&old), &of(&new)) {
                let ip = |n: &u8| IpAddr::from([192, 0, 2, *n]);
                let mut made: std::collections::BTreeSet<IpAddr> = old.iter().map(ip).collect();
                prop_assert!(go.iter().all(|one| made.remove(one)));
                prop_assert!(come.iter().all(|one| made.insert(*one)));
                prop_assert_eq!(made, new.iter().map(ip).collect());
            }
        }
    }
}

//! Giving out addresses of configured ranges.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::config::{OwnIpam, Range, address, number};
use super::{Bitmap, IpamError};
use crate::policy::GroupName;

/// What is taken on a network: the content of its address file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// Format of the file.
    pub version: u32,
    /// Offsets taken, by subnet.
    pub subnets: BTreeMap<IpNet, Bitmap>,
    /// The address given out last, by set: the search goes on after it, so that an address rests before its
    /// next use.
    pub last: BTreeMap<usize, IpAddr>,
}

/// An address given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address, with its subnet's prefix.
    pub address: IpNet,
    /// The subnet's gateway.
    pub gateway: IpAddr,
}

/// Gives out addresses by a configuration.
#[derive(Clone, Copy, Debug)]
pub struct Allocator<'a> {
    config: &'a OwnIpam,
    group: Option<&'a GroupName>,
}

impl<'a> Allocator<'a> {
    /// An allocator over the ranges of `config` for sandboxes of no group.
    pub fn new(config: &'a OwnIpam) -> Self {
        Self { config, group: None }
    }

    /// The same for sandboxes of a group. Where the configuration has ranges of groups at all, they get addresses of these
    /// only.
    #[must_use]
    pub fn of(self, group: Option<&'a GroupName>) -> Self {
        Self { group, ..self }
    }

    /// The sets, each with its number among all of the configuration.
    fn sets(self) -> Result<impl Iterator<Item = (usize, &'a [Range])>, IpamError> {
        let (first, sets) = self.config.of(self.group).ok_or_else(|| {
            IpamError::NoRanges(self.group.map(GroupName::as_str).unwrap_or_default().to_owned())
        })?;
        Ok((first..).zip(sets.iter().map(Vec::as_slice)))
    }

    /// One address of each range set: `wanted` ones where they belong to the set, else the next free ones.
    /// On an error nothing is taken.
    pub fn allocate(&self, used: &mut Used, wanted: &[IpAddr]) -> Result<Vec<Lease>, IpamError> {
        let has = |set: &[Range], ip: IpAddr| set.iter().any(|range| (range.start..=range.end).contains(&ip));
        for ip in wanted {
            if !self.sets()?.any(|(_, set)| has(set, *ip)) {
                return Err(IpamError::OutOfRange(*ip));
            }
        }
        let mut next = used.clone();
        let mut leases = Vec::new();
        for (n, set) in self.sets()? {
            let mut asked = wanted.iter().filter(|ip| has(set, **ip)).peekable();
            if asked.peek().is_none() {
                leases.push(self.next_free(n, set, &mut next)?);
            }
            for ip in asked {
                leases.push(self.take(*ip, set, &mut next)?);
            }
        }
        *used = next;
        Ok(leases)
    }

    /// Marks an address as taken by what is known of it (rebuilding), whoever has it. False if it is in no subnet of ours.
    pub fn mark(&self, used: &mut Used, ip: IpAddr) -> bool {
        let Some(range) = self.config.ranges().find(|range| range.subnet.contains(&ip)) else {
            return false;
        };
        used.subnets.entry(range.subnet).or_default().insert(offset(range.subnet, ip));
        true
    }

    fn is_gateway(self, ip: IpAddr) -> bool {
        self.config.ranges().any(|range| range.gateway == ip)
    }

    fn take(self, ip: IpAddr, set: &[Range], used: &mut Used) -> Result<Lease, IpamError> {
        let range = set
            .iter()
            .find(|range| (range.start..=range.end).contains(&ip))
            .ok_or(IpamError::OutOfRange(ip))?;
        let bitmap = used.subnets.entry(range.subnet).or_default();
        if self.is_gateway(ip) || !bitmap.insert(offset(range.subnet, ip)) {
            return Err(IpamError::Taken(ip));
        }
        lease(range, ip)
    }

    fn next_free(self, n: usize, set: &[Range], used: &mut Used) -> Result<Lease, IpamError> {
        // From after the last one to the end of the set, then from its beginning: each range at most twice.
        let last = used.last.get(&n).copied();
        let start = last.and_then(|ip| set.iter().position(|range| (range.start..=range.end).contains(&ip)));
        let resume = start.zip(last).and_then(|(at, ip)| {
            let next = address(ip, 1)?;
            (next <= set[at].end).then_some((at, next))
        });
        let first = start.map_or(0, |at| at + usize::from(resume.is_none()));
        let whole = (first..set.len()).chain(0..first.min(set.len())).map(|at| (at, set[at].start));
        let resumed = resume.into_iter();
        let skip = resume.map(|(at, _)| at);
        let order = resumed.chain(whole.clone().filter(move |(at, _)| Some(*at) != skip)).chain(
            // The part of the resumed range that lies before the cursor comes last.
            skip.map(|at| (at, set[at].start)),
        );
        for (at, from) in order {
            let range = &set[at];
            let bitmap = used.subnets.entry(range.subnet).or_default();
            let end = offset(range.subnet, range.end);
            let mut from = offset(range.subnet, from);
            while let Some(free) = bitmap.first_free(from, end) {
                let Some(ip) = address(range.subnet.network(), free) else { break };
                if self.is_gateway(ip) {
                    from = free + 1;
                    continue;
                }
                bitmap.insert(free);
                used.last.insert(n, ip);
                return lease(range, ip);
            }
        }
        Err(IpamError::Exhausted {
            subnets: set.iter().map(|range| range.subnet).collect(),
            group: self.group.map(|group| group.as_str().to_owned()),
        })
    }
}

impl Used {
    /// The version this code writes.
    pub const VERSION: u32 = 1;

    /// Every address that is taken.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.subnets
            .iter()
            .flat_map(|(subnet, bitmap)| bitmap.iter().filter_map(|offset| address(subnet.network(), offset)))
    }

    /// Frees an address; false if it was free.
    pub fn release(&mut self, ip: IpAddr) -> bool {
        self.subnets
            .iter_mut()
            .filter(|(subnet, _)| subnet.contains(&ip))
            .any(|(subnet, bitmap)| bitmap.remove(offset(*subnet, ip)))
    }
}

fn offset(subnet: IpNet, ip: IpAddr) -> u128 {
    number(ip).saturating_sub(number(subnet.network()))
}

fn lease(range: &Range, ip: IpAddr) -> Result<Lease, IpamError> {
    let address = IpNet::new(ip, range.subnet.prefix_len()).map_err(|_| IpamError::OutOfRange(ip))?;
    Ok(Lease { address, gateway: range.gateway })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::IpamConfig;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    fn config(value: &serde_json::Value) -> OwnIpam {
        match IpamConfig::parse(Some(value)).unwrap() {
            IpamConfig::Own(own) => own,
            other => panic!("{other:?}"),
        }
    }

    fn all(config: &OwnIpam, used: &mut Used) -> Vec<String> {
        let mut found = Vec::new();
        while let Ok(leases) = Allocator::new(config).allocate(used, &[]) {
            found.extend(leases.iter().map(|lease| lease.address.addr().to_string()));
        }
        found
    }

    #[test]
    fn a_subnet_gives_all_but_network_gateway_and_broadcast() {
        let config = config(&json!({"type": "skep", "subnet": "10.0.0.0/29"}));
        let mut used = Used::default();
        assert_eq!(all(&config, &mut used), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert!(used.release("10.0.0.4".parse().unwrap()));
        assert!(!used.release("10.0.0.4".parse().unwrap()));
        assert_eq!(all(&config, &mut used), ["10.0.0.4"]);
    }

    #[test]
    fn a_freed_address_rests_until_the_others_were_used() {
        let config = config(&json!({"type": "skep", "subnet": "10.0.0.0/29"}));
        let (mut used, allocator) = (Used::default(), Allocator::new(&config));
        let first = allocator.allocate(&mut used, &[]).unwrap()[0].address.addr();
        used.release(first);
        assert_ne!(allocator.allocate(&mut used, &[]).unwrap()[0].address.addr(), first);
    }

    #[test]
    fn ranges_of_a_set_are_used_one_after_the_other_and_sets_side_by_side() {
        let config = config(&json!({"type": "skep", "ranges": [
            [{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.10", "rangeEnd": "10.0.0.11"},
             {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.20", "rangeEnd": "10.0.0.20"}],
            [{"subnet": "fd00::/64"}]]}));
        let mut used = Used::default();
        assert_eq!(
            all(&config, &mut used),
            ["10.0.0.10", "fd00::2", "10.0.0.11", "fd00::3", "10.0.0.20", "fd00::4"]
        );
        // The failed fourth try took nothing of the other set.
        assert_eq!(used.subnets[&"fd00::/64".parse().unwrap()].len(), 3);
    }

    #[test]
    fn groups_have_ranges_of_their_own_and_addresses_rest_in_each() {
        let config = config(
            &json!({"type": "skep", "ranges": [[{"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.4"}]],
            "groups": {"db": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.32", "rangeEnd": "10.0.0.34"}]],
                       "web": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.16", "rangeEnd": "10.0.0.18"}]]}}),
        );
        let (mut used, name) = (Used::default(), |text: &str| GroupName::try_from(text.to_owned()).unwrap());
        let mut take = |group: Option<&str>, wanted: &[&str]| {
            let (group, wanted) =
                (group.map(name), wanted.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<_>>());
            let leases = Allocator::new(&config).of(group.as_ref()).allocate(&mut used, &wanted);
            let taken = leases.map(|leases| leases[0].address.addr());
            // Given back at once, it rests nevertheless.
            taken.inspect(|ip| assert!(used.release(*ip))).map(|ip| ip.to_string())
        };
        for n in [6, 7, 8, 6] {
            assert_eq!(take(Some("web"), &[]).unwrap(), format!("10.0.0.{}", n + 10));
            assert_eq!(take(Some("db"), &[]).unwrap(), format!("10.0.0.{}", n + 26));
        }
        assert_eq!(take(None, &[]).unwrap(), "10.0.0.2");
        assert_eq!(take(Some("web"), &["10.0.0.17"]).unwrap(), "10.0.0.17");
        assert!(matches!(take(None, &["10.0.0.17"]), Err(IpamError::OutOfRange(_))));
        assert!(matches!(take(Some("web"), &["10.0.0.3"]), Err(IpamError::OutOfRange(_))));
        assert!(matches!(take(Some("cache"), &[]), Err(IpamError::NoRanges(_))));
        let mut used = Used::default();
        for ip in ["10.0.0.2", "10.0.0.17", "10.0.0.33"] {
            assert!(Allocator::new(&config).mark(&mut used, ip.parse().unwrap()));
        }
        assert_eq!(used.addresses().count(), 3, "whoever has it");
    }

    #[test]
    fn wanted_addresses_are_given_or_refused() {
        let config = config(&json!({"type": "skep", "subnet": "10.0.0.0/24"}));
        let (mut used, allocator) = (Used::default(), Allocator::new(&config));
        let want = ["10.0.0.77".parse().unwrap()];
        assert_eq!(allocator.allocate(&mut used, &want).unwrap()[0].address.to_string(), "10.0.0.77/24");
        assert!(matches!(allocator.allocate(&mut used, &want), Err(IpamError::Taken(_))));
        assert!(matches!(
            allocator.allocate(&mut used, &["10.0.0.1".parse().unwrap()]),
            Err(IpamError::Taken(_))
        ));
        assert!(matches!(
            allocator.allocate(&mut used, &["10.0.1.1".parse().unwrap()]),
            Err(IpamError::OutOfRange(_))
        ));
    }

    proptest! {
            #[test]
            fn no_address_is_given_twice_and_none_is_lost(ops in proptest::collection::vec(any::<Option<u8>>(), 0..200)) {
                let config = config(&json!({"type": "skep", "ranges": [[
                    {"subnet": "10.0.0.0/28"}, {"subnet": "10.0.1.0/29", "gateway": "10.0.1.3"}]]}));
                let (mut used, allocator) = (Used::default(), Allocator::new(&config));
                let mut held: BTreeSet<IpAddr> = BTreeSet::new();
                let capacity = 13 + 5;
                for op in ops {
                    match op {
                        None => {
    if let Ok(leases) = allocator.allocate(&mut used, &[]) {
                                let ip = leases[0].address.addr();
                                prop_assert!(held.insert(ip), "{} given twice", ip);
                                prop_assert!(ip.to_string() != "10.0.0.1" && ip.to_string() != "10.0.1.3");
    } else {
    prop_assert_eq!(held.len(), capacity);
    }
    }
                        Some(n) => {
                            let ip = held.iter().nth(n as usize % held.len().max(1)).copied();
                            if let Some(ip) = ip {
                                held.remove(&ip);
                                prop_assert!(used.release(ip));
                            }
                        }
                    }
                    let text = serde_json::to_string(&used).unwrap();
                    prop_assert_eq!(serde_json::from_str::<Used>(&text).unwrap(), used.clone());
                }
            }
        }
}

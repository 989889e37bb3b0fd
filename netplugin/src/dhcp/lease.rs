//! How long an address is a sandbox's, and when its server is to be asked for more time (RFC 2131, 4.4.5).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::message::{Identity, Offered};

/// The shortest time between two questions (RFC 2131, 4.4.5), and what part of a short lease it is instead.
const PAUSE: u32 = 60;
const PART: u32 = 30;
/// How often a lost address is asked for, in seconds: of leases that are shorter, each time they would have ended.
const RETRY: u32 = 60;

/// The second it is, of a clock that is never set; it begins with the host.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or_default()
}

/// A lease: the record of it. Seconds are those of [`now`], and do not survive the host, as a sandbox does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Format of the record.
    pub version: u32,
    /// Who has it.
    pub identity: Identity,
    /// The address.
    pub address: Ipv4Net,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// The Ethernet address that the server is reached by.
    pub server_mac: [u8; 6],
    /// The second since when.
    pub since: u64,
    /// How many seconds it is good for, after how many its server is asked for more, and after how many anybody is. None:
    /// for ever.
    pub times: Option<(u32, u32, u32)>,
    /// The second before which nobody is asked again.
    pub next: u64,
    /// Why the sandbox does not have the address now.
    pub lost: Option<String>,
    /// What the sandbox was told of routes and resolvers, and has. None: that was not written down.
    #[serde(default)]
    pub has: Option<Offered>,
    /// What the server says of them now, where that is something else.
    #[serde(default)]
    pub says: Option<Offered>,
    /// Whether resolvers and domain are the server's to name, and not the network's configuration's.
    #[serde(default)]
    pub names_resolvers: bool,
}

/// What is to be done about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing before this second.
    At(u64),
    /// Nothing ever.
    Never,
    /// Its server is to be asked for more time.
    Renew,
    /// Anyone is.
    Rebind,
    /// It is over: the sandbox may not have the address any longer.
    Expire,
    /// It was lost, and may be had again.
    Acquire,
}

impl Lease {
    /// The version this code writes.
    pub const VERSION: u32 = 1;

    /// One that was just given, by this server, reached by this Ethernet address.
    pub fn new(
        identity: Identity,
        address: Ipv4Net,
        (server, server_mac): (Ipv4Addr, [u8; 6]),
        times: Option<(u32, u32, u32)>,
        now: u64,
    ) -> Self {
        Self {
            version: Self::VERSION,
            identity,
            address,
            server,
            server_mac,
            since: now,
            times,
            next: 0,
            lost: None,
            has: None,
            says: None,
            names_resolvers: false,
        }
    }

    /// Takes over from the lease `earlier`, which this one is in place of, what the sandbox has; the server said
    /// `offered` with this one.
    pub fn follow(&mut self, earlier: &Self, offered: Offered) {
        self.names_resolvers = earlier.names_resolvers;
        self.has = earlier.has.clone().or_else(|| Some(offered.clone()));
        self.says = Some(offered);
        self.settle();
    }

    /// The sandbox has the routes now that the server says.
    pub fn took_routes(&mut self) {
        if let (Some(has), Some(says)) = (&mut self.has, &self.says) {
            has.routes.clone_from(&says.routes);
        }
        self.settle();
    }

    fn settle(&mut self) {
        if self.has_other_routes().is_none() && self.has_other_resolvers().is_none() {
            self.says = None;
        }
    }

    fn differing(&self) -> Option<(&Offered, &Offered)> {
        self.has.as_ref().zip(self.says.as_ref())
    }

    /// The routes that a server says, where the sandbox has others.
    pub fn has_other_routes(&self) -> Option<&Offered> {
        self.differing().filter(|(has, says)| has.routes != says.routes).map(|(_, says)| says)
    }

    /// The resolvers and the domain that a server says, where the sandbox has others.
    pub fn has_other_resolvers(&self) -> Option<&Offered> {
        let differs = |has: &Offered, says: &Offered| (&has.dns, &has.domain) != (&says.dns, &says.domain);
        let heeded = self.differing().filter(|_| self.names_resolvers);
        heeded.filter(|(has, says)| differs(has, says)).map(|(_, says)| says)
    }

    /// What is to be done in the second `now`.
    pub fn due(&self, now: u64) -> Due {
        if self.lost.is_some() {
            return if now < self.next { Due::At(self.next) } else { Due::Acquire };
        }
        let Some((lease, renew, rebind)) = self.times else { return Due::Never };
        let at = |time: u32| self.since + u64::from(time);
        if now >= at(lease) {
            return Due::Expire;
        }
        let first = if now >= at(rebind) { at(rebind) } else { at(renew) };
        let next = self.next.max(first);
        if now < next {
            // What it turns into meanwhile is asked for in time.
            let turn = if now < at(rebind) { at(rebind) } else { at(lease) };
            return Due::At(next.min(turn));
        }
        if now >= at(rebind) { Due::Rebind } else { Due::Renew }
    }

    /// Nobody answered: half of the time that is left until something changes goes by before the next question.
    pub fn put_off(&mut self, now: u64) {
        let Some((lease, _, rebind)) = self.times else { return };
        let pause = u64::from(PAUSE.min(lease / PART).max(1));
        if self.lost.is_some() {
            self.next = now + u64::from(RETRY.min(lease).max(1));
            return;
        }
        let turn = self.since + u64::from(rebind);
        let turn = if now < turn { turn } else { self.since + u64::from(lease) };
        self.next = now + (turn.saturating_sub(now) / 2).max(pause);
    }

    /// It is lost in the second `now`; it may be asked for at once.
    pub fn lose(&mut self, why: String, now: u64) {
        self.lost = Some(why);
        self.next = now;
    }

    /// What an administrator should know of it, and whether the sandbox is without its address.
    pub fn problem(&self, now: u64) -> Option<(String, bool)> {
        let address = self.address.addr();
        if let Some(why) = &self.lost {
            return Some((format!("it has lost its address {address}: {why}"), true));
        }
        let (lease, renew, rebind) = self.times?;
        let age = now.saturating_sub(self.since);
        if age >= u64::from(lease) {
            let since = age - u64::from(lease);
            return Some((
                format!("the lease of {address} ended {since} s ago: is `skep net watch` running?"),
                true,
            ));
        }
        // A watch asks at once, and a server may miss one question.
        let late = u64::from(renew + (rebind - renew) / 4) + 1;
        (age > late).then(|| {
            let (left, over) = (u64::from(lease) - age, age - u64::from(renew));
            let told = format!(
                "the lease of {address} ends in {left} s and should have been renewed {over} s ago: server {} does \
                 not answer, or `skep net watch` does not run",
                self.server
            );
            (told, false)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mac::Mac;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn lease(times: Option<(u32, u32, u32)>) -> Lease {
        let identity = Identity {
            mac: Mac([2, 0, 0, 0, 0, 9]),
            client_id: vec![1],
            provide: BTreeMap::new(),
            request: vec![],
        };
        let server = ([192, 0, 2, 1].into(), [2, 0, 0, 0, 0, 1]);
        Lease::new(identity, "192.0.2.50/24".parse().unwrap(), server, times, 1000)
    }

    #[test]
    fn it_is_renewed_then_rebound_then_over() {
        let lease = lease(Some((800, 400, 700)));
        for (now, want) in [
            (1000, Due::At(1400)),
            (1399, Due::At(1400)),
            (1400, Due::Renew),
            (1699, Due::Renew),
            (1700, Due::Rebind),
            (1799, Due::Rebind),
            (1800, Due::Expire),
            (9999, Due::Expire),
        ] {
            assert_eq!(lease.due(now), want, "{now}");
        }
    }

    #[test]
    fn without_an_answer_half_the_time_goes_by() {
        let mut lease = lease(Some((8000, 4000, 7000)));
        lease.put_off(5000);
        // Until the server of the lease is not the only one: half of 3000 s.
        assert_eq!(lease.due(5000), Due::At(6500));
        lease.put_off(7980);
        assert_eq!(lease.due(7980), Due::At(8000), "but then anyone is asked");
        assert_eq!(lease.due(8040), Due::Rebind);
        lease.put_off(8990);
        assert_eq!(lease.due(8990), Due::At(9000), "and in the end it is over in time");
        assert_eq!(lease.due(9000), Due::Expire);
    }

    #[test]
    fn what_is_lost_is_asked_for_now_and_then() {
        let mut lease = lease(Some((8000, 4000, 7000)));
        lease.lose("gone".to_owned(), 5000);
        assert_eq!(lease.due(5000), Due::Acquire);
        lease.put_off(5000);
        assert_eq!(lease.due(5001), Due::At(5060));
        assert_eq!(lease.due(20_000), Due::Acquire);
    }

    #[test]
    fn people_hear_of_it_in_time() {
        let lease = lease(Some((800, 400, 700)));
        assert_eq!(lease.problem(1400), None);
        let (told, lost) = lease.problem(1500).unwrap();
        assert!(told.contains("ends in 300 s") && !lost, "{told}");
        assert!(lease.problem(1800).unwrap().1);
        let mut lost = lease;
        lost.lose("192.0.2.1 refused".to_owned(), 1100);
        assert!(lost.problem(1100).unwrap().0.contains("refused"));
    }

    #[test]
    fn what_a_server_says_later_is_remembered_until_the_sandbox_has_it() {
        let routes = |by: &str| vec![("0.0.0.0/0".parse().unwrap(), Some(by.parse().unwrap()))];
        let dns = |ip: &str| vec![ip.parse().unwrap()];
        let first = Offered { routes: routes("192.0.2.1"), dns: dns("192.0.2.2"), domain: None };
        let other = Offered { routes: routes("192.0.2.9"), dns: dns("192.0.2.3"), domain: None };
        let had = Lease { has: Some(first.clone()), names_resolvers: true, ..lease(None) };
        let next = |offered: &Offered, had: &Lease| {
            let mut next = lease(None);
            next.follow(had, offered.clone());
            next
        };
        assert_eq!(next(&first, &had), had, "nothing is new");
        let mut new = next(&other, &had);
        assert_eq!((new.has_other_routes(), new.has_other_resolvers()), (Some(&other), Some(&other)));
        assert_eq!(next(&other, &new), new, "and is so until it is had");
        assert_eq!(next(&first, &new), had, "or said no more");
        new.took_routes();
        assert_eq!((new.has_other_routes(), new.has_other_resolvers()), (None, Some(&other)));
        // Where the network's configuration names resolvers, the server does not.
        let mut new = next(&other, &Lease { names_resolvers: false, ..had.clone() });
        assert_eq!(new.has_other_resolvers(), None);
        new.took_routes();
        assert_eq!(new.says, None);
        // A record of before: what the sandbox has is what is said first.
        assert_eq!(next(&other, &lease(None)).has, Some(other.clone()));
    }

    proptest! {
        /// Whatever the times: what waits waits for a later second, and not beyond the end.
        #[test]
        fn it_never_waits_beyond_its_end(all in 1_u32.., renew: u32, rebind: u32, age in 0_u64..1 << 33, puts in 0..4) {
            let rebind = rebind % all;
            let renew = renew % (rebind + 1);
            let mut lease = lease(Some((all, renew, rebind)));
            let now = 1000 + age;
            for _ in 0..puts {
                lease.put_off(now);
            }
            let _ = lease.problem(now);
            match lease.due(now) {
                Due::At(then) => prop_assert!(then > now && then <= 1000 + u64::from(all)),
                Due::Expire => prop_assert!(age >= u64::from(all)),
                Due::Renew | Due::Rebind => prop_assert!(age < u64::from(all)),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}

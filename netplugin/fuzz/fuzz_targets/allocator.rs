//! Takes, releases and wishes in any order.
#![no_main]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use skep_cni::ipam::{Allocator, OwnIpam, Range, Used};

#[derive(Arbitrary, Debug)]
enum Step {
    Take,
    Want(u8),
    Release(u8),
}

fuzz_target!(|input: (u8, u8, u8, Vec<Step>)| {
    let (start, end, gateway, steps) = input;
    let ip = |last: u8| Ipv4Addr::new(10, 0, 0, last);
    let range = serde_json::json!({"subnet": "10.0.0.0/24", "rangeStart": ip(start), "rangeEnd": ip(end), "gateway": ip(gateway)});
    let Ok(range) = serde_json::from_value::<Range>(range) else { return };
    let own = OwnIpam { sets: vec![vec![range]], groups: Default::default(), routes: Vec::new() };
    let (allocator, mut used, mut held) = (Allocator::new(&own), Used::default(), BTreeSet::new());
    for step in steps {
        let wanted: Vec<IpAddr> = match step {
            Step::Take => Vec::new(),
            Step::Want(last) => vec![ip(last).into()],
            Step::Release(last) => {
                assert_eq!(used.release(ip(last).into()), held.remove(&IpAddr::from(ip(last))));
                continue;
            }
        };
        match allocator.allocate(&mut used, &wanted) {
            Ok(leases) => {
                let given = leases[0].address.addr();
                assert!(given >= ip(start) && given <= ip(end) && given != ip(gateway));
                assert!(held.insert(given), "{given} twice");
            }
            Err(_) if wanted.is_empty() => {
                let all = (start..=end).filter(|last| *last != gateway).count();
                assert_eq!(held.len(), all, "exhausted, though not all are taken");
            }
            Err(_) => {}
        }
    }
    assert_eq!(used.addresses().collect::<BTreeSet<_>>(), held);
});

//! Any bytes as a declaration of `skep net`: what is read is written and read again, no two nodes or groups share an address, and
//! no ssh destination is an option.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep_cni::vpc::{Declaration, NewNode, SshDestination};

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        if let Ok(destination) = text.parse::<SshDestination>() {
            assert!(!destination.to_string().starts_with('-'));
        }
        let _ = text.parse::<NewNode>();
    }
    let Ok(vpc) = Declaration::parse(input) else { return };
    let again = Declaration::parse(vpc.to_text().expect("is JSON").as_bytes()).expect("reads");
    assert_eq!(again, vpc);
    assert!(vpc.nodes.iter().all(|node| !node.destination().starts_with('-')));
    let slots = || std::iter::once(0).chain(vpc.groups.iter().map(|group| group.id));
    let numbers: Vec<_> = slots().flat_map(|slot| vpc.nodes.iter().map(move |node| (slot, node.id))).collect();
    let blocks = |(slot, node)| vpc.ranges_for(slot, node).expect("has a block");
    for (n, one) in numbers.iter().enumerate() {
        for other in &numbers[..n] {
            let (a, b) = (blocks(*one), blocks(*other));
            assert!(a.iter().zip(&b).all(|(a, b)| a.end < b.start || b.end < a.start));
        }
        for group in &vpc.groups {
            let ranges = vpc.group_ranges(group.id).expect("has a range");
            let inside = |net: &ipnet::IpNet, ip| net.contains(&ip);
            assert!(ranges.iter().zip(blocks(*one)).all(|(net, block)| {
                inside(net, block.start) == (one.0 == group.id) && inside(net, block.end) == (one.0 == group.id)
            }));
        }
    }
});

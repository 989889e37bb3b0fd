//! Any bytes as a declaration of `skep net`: what is read is written and read again, no two nodes share an address, and
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
    for (n, a) in vpc.nodes.iter().enumerate() {
        assert!(!a.destination().starts_with('-'));
        for b in &vpc.nodes[..n] {
            let (a, b) = (vpc.ranges(a.id).expect("has a block"), vpc.ranges(b.id).expect("has a block"));
            assert!(a.iter().zip(&b).all(|(a, b)| a.end < b.start || b.end < a.start));
        }
    }
});

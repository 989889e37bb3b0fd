//! Any bytes as a policy, and a flow to decide about.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use skep_cni::policy::{Direction, Flow, NetworkPolicy, Policy, always_denied};

fuzz_target!(|input: (Vec<u8>, Vec<u8>, [u8; 16], bool, bool, u8, u16)| {
    let (own, network, peer, ipv6, egress, protocol, port) = input;
    let own: Policy = serde_json::from_slice(&own).unwrap_or_default();
    let network: NetworkPolicy = serde_json::from_slice(&network).unwrap_or_default();
    let peer: IpAddr = if ipv6 { peer.into() } else { [peer[0], peer[1], peer[2], peer[3]].into() };
    let direction = if egress { Direction::Egress } else { Direction::Ingress };
    let flow = Flow { direction, peer, protocol, port, published: false };
    let permitted = own.permits(&network, &flow, &|_, _| false);
    if egress && always_denied().iter().any(|net| net.contains(&peer)) {
        assert!(!permitted);
    }
    let again: Policy = serde_json::from_slice(&serde_json::to_vec(&own).expect("is JSON")).expect("reads");
    assert_eq!(again, own);
});

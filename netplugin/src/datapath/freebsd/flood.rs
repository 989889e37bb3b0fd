//! Flooding to several peers: pure.
//!
//! The kernel's link sends what has no known destination to one address, its first peer's. For each further peer there
//! is a link that does nothing but send to it: a socket may have a network identifier once, so these have ports of their
//! own. Everything arrives at the first link, whose table says which peer a known address is behind.

use std::net::IpAddr;

use crate::mac::digest_hex;
use crate::vxlan::Link;

/// How the names of links begin that only send.
pub(super) const PREFIX: &str = "sky";

/// The links that only send, with their peers.
pub(super) fn senders(link: &Link) -> impl Iterator<Item = (String, IpAddr)> + '_ {
    link.flood_to.iter().skip(1).map(|peer| {
        let id = digest_hex(&["flood", &link.name, &peer.to_string()], 6);
        (format!("{PREFIX}{id}"), *peer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_but_the_first_has_a_sender_whatever_the_others_are() {
        let link = |peers: &[&str]| Link {
            name: "skx0123456789ab".into(),
            vni: 7,
            port: 4789,
            local: "192.0.2.1".parse().unwrap(),
            flood_to: peers.iter().map(|peer| peer.parse().unwrap()).collect(),
            stations: Vec::new(),
            peer_address: None,
        };
        let three = link(&["192.0.2.2", "192.0.2.3", "192.0.2.4"]);
        let all: Vec<_> = senders(&three).collect();
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(|(name, _)| name.len() == 15 && name.starts_with(PREFIX)));
        let fewer = link(&["192.0.2.2", "192.0.2.4"]);
        assert_eq!(senders(&fewer).collect::<Vec<_>>(), all[1..]);
        assert_eq!(senders(&link(&["192.0.2.2"])).count(), 0);
    }
}

//! Live flows, as `pfctl -vvss` lists them. No input or output.

use std::net::{IpAddr, SocketAddr};

/// An address and a port; 0 where there are none.
pub(in super::super) type End = (IpAddr, u16);

/// A flow that pf keeps state of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct State {
    /// What `pfctl -k id -k` takes.
    pub(in super::super) id: String,
    /// The protocol's number in the IP header; 0 for one without a name here.
    pub(in super::super) protocol: u8,
    /// Who opened it.
    pub(in super::super) from: End,
    /// Where it goes, behind all translation.
    pub(in super::super) to: End,
    /// Whether its destination was translated.
    pub(in super::super) published: bool,
}

impl State {
    /// Whether one of the ends is this address.
    pub(in super::super) fn involves(&self, ip: IpAddr) -> bool {
        self.from.0 == ip || self.to.0 == ip
    }
}

fn number(name: &str) -> u8 {
    match name {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" => 1,
        "ipv6-icmp" => 58,
        _ => name.parse().unwrap_or(0),
    }
}

/// `192.0.2.1:80`, `2001:db8::1[80]`, or an address alone; without its scope.
fn end(text: &str) -> Option<End> {
    if let Some((ip, port)) = text.strip_suffix(']').and_then(|text| text.split_once('[')) {
        let ip = ip.split('%').next()?.parse().ok()?;
        return Some((ip, port.parse().ok()?));
    }
    if let Ok(SocketAddr::V4(v4)) = text.parse() {
        return Some((IpAddr::V4(*v4.ip()), v4.port()));
    }
    Some((text.split('%').next()?.parse().ok()?, 0))
}

/// The ends of a flow: `A -> B` (going out) or `A <- B` (coming in), each perhaps with another in parentheses that the
/// packet had before or after translation.
fn ends(words: &[&str]) -> Option<(End, End, bool)> {
    let at = words.iter().position(|word| matches!(*word, "->" | "<-"))?;
    let side = |words: &[&str]| {
        let plain = words.first().copied().and_then(end)?;
        let other = words.get(1).and_then(|word| word.strip_prefix('(')?.strip_suffix(')')).and_then(end);
        Some((plain, other))
    };
    let (left, right) = (side(&words[..at])?, side(&words[at + 1..])?);
    if words[at] == "<-" {
        // The receiver's end comes first: what is behind the translation, then in parentheses what was asked for.
        return Some((right.0, left.0, left.1.is_some()));
    }
    // The sender's end comes first: after translation, then in parentheses who it is. A state made on the way out does
    // not tell that its destination was translated on the way in.
    Some((left.1.unwrap_or(left.0), right.0, right.1.is_some()))
}

/// Reads a whole listing; what is not understood is left out.
pub(in super::super) fn parse(listing: &str) -> Vec<State> {
    let mut found = Vec::new();
    let mut head: Option<(u8, End, End, bool)> = None;
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if !line.starts_with(char::is_whitespace) {
            head = words.get(1).zip(words.get(2..)).and_then(|(protocol, rest)| {
                ends(rest).map(|(from, to, published)| (number(protocol), from, to, published))
            });
            continue;
        }
        let [first, id, rest @ ..] = words.as_slice() else { continue };
        if *first != "id:" {
            continue;
        }
        let creator = rest.iter().position(|word| *word == "creatorid:").and_then(|at| rest.get(at + 1));
        if let (Some((protocol, from, to, published)), Some(creator)) = (head.take(), creator) {
            found.push(State { id: format!("{id}/{creator}"), protocol, from, to, published });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LISTING: &str = "all tcp 192.0.2.9:80 <- 10.1.0.2:40001       ESTABLISHED:ESTABLISHED\n   \
   [1 + 65536] wscale 6  [2 + 65536] wscale 6\n   age 00:00:10, expires in 23:59:50, 4:3 pkts, 300:200 bytes, rule 7\n   \
   id: 0100000067a1b2c3 creatorid: 5e7fa0b1\n   origif: skv0123456789ab\n\
all tcp 192.0.2.1:61000 (10.1.0.2:40001) -> 192.0.2.9:80       ESTABLISHED:ESTABLISHED\n   id: 02 creatorid: 5e7fa0b1 gateway: 0.0.0.0\n\
all tcp 10.1.0.2:80 (192.0.2.1:8080) <- 192.0.2.2:5000       ESTABLISHED:ESTABLISHED\n   id: 03 creatorid: 5e7fa0b1\n\
all ipv6-icmp fd01::2[8] -> fd01::1[128]       NO_TRAFFIC:NO_TRAFFIC\n   id: 04 creatorid: 5e7fa0b1\n\
all carp 10.0.0.1 -> 224.0.0.18       SINGLE:NO_TRAFFIC\n   id: 05 creatorid: 5e7fa0b1\n";

    #[test]
    fn each_flow_has_its_true_ends() {
        let states = parse(LISTING);
        let at = |ip: &str, port| (ip.parse::<IpAddr>().unwrap(), port);
        let expected = [
            ("0100000067a1b2c3", 6, at("10.1.0.2", 40001), at("192.0.2.9", 80), false),
            ("02", 6, at("10.1.0.2", 40001), at("192.0.2.9", 80), false),
            ("03", 6, at("192.0.2.2", 5000), at("10.1.0.2", 80), true),
            ("04", 58, at("fd01::2", 8), at("fd01::1", 128), false),
            ("05", 0, at("10.0.0.1", 0), at("224.0.0.18", 0), false),
        ];
        assert_eq!(states.len(), expected.len());
        for (state, (id, protocol, from, to, published)) in states.iter().zip(expected) {
            assert_eq!(state.id, format!("{id}/5e7fa0b1"));
            assert_eq!(
                (state.protocol, state.from, state.to, state.published),
                (protocol, from, to, published)
            );
        }
    }

    proptest! {
        #[test]
        fn no_listing_makes_it_panic(text in "[ a-z0-9:.<>()\\[\\]%/\n-]{0,400}") {
            let _ = parse(&text);
        }
    }
}

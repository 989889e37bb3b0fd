//! Live flows, as the kernel exports them. No input or output.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address and a port; 0 where there are none.
pub(in super::super) type End = (IpAddr, u16);

/// The length of `struct pf_state_export` (net/pfvar.h).
pub(in super::super) const EXPORTED: usize = 384;
/// `PF_STATE_VERSION`: the version of that structure; FreeBSD 14 and 15 have the same.
pub(in super::super) const VERSION: u64 = 20_230_404;

// Offsets in the structure.
const ID: usize = 8;
const KEYS: [usize; 2] = [48, 84];
const CREATOR: usize = 256;
const FAMILY: usize = 264;
const PROTOCOL: usize = 265;
const DIRECTION: usize = 266;

/// `AF_INET6`.
const INET6: u8 = 28;
/// `PF_OUT`.
const OUT: u8 = 2;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// A flow that pf keeps state of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct State {
    /// What `pfctl -k id -k` takes.
    pub(in super::super) id: String,
    /// The protocol's number in the IP header.
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

fn bytes<const N: usize>(state: &[u8], at: usize) -> Option<[u8; N]> {
    state.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// One of the two ends of a key (`struct pf_state_key_export`): two addresses, then two ports.
fn end(state: &[u8], key: usize, which: usize, ipv6: bool) -> Option<End> {
    let at = KEYS[key] + 16 * which;
    let ip = if ipv6 {
        let mut octets: [u8; 16] = bytes(state, at)?;
        if octets[0] == 0xfe && octets[1] & 0xc0 == 0x80 {
            // The kernel keeps the scope there.
            octets[2..4].fill(0);
        }
        Ipv6Addr::from(octets).into()
    } else {
        Ipv4Addr::from(bytes::<4>(state, at)?).into()
    };
    Some((ip, u16::from_be_bytes(bytes(state, KEYS[key] + 32 + 2 * which)?)))
}

/// A flow; none if the structure is another version's or too short.
fn decode(state: &[u8]) -> Option<State> {
    if u64::from_ne_bytes(bytes(state, 0)?) != VERSION {
        return None;
    }
    let [family] = bytes(state, FAMILY)?;
    let [protocol] = bytes(state, PROTOCOL)?;
    let [direction] = bytes(state, DIRECTION)?;
    let ipv6 = family == INET6;
    let [wire, stack] = [0, 1];
    // A flow that came in: opened by the first address, to the second. One that went out: the other way round. Before
    // translation it was, coming in, what it is on the wire; going out, what it is in the stack.
    let (opener, target, before, after) =
        if direction == OUT { (1, 0, stack, wire) } else { (0, 1, wire, stack) };
    let from = end(state, if direction == OUT { before } else { after }, opener, ipv6)?;
    let (asked, to) = (end(state, before, target, ipv6)?, end(state, after, target, ipv6)?);
    // What ICMP has there is no port.
    let published = asked.0 != to.0 || asked.1 != to.1 && !matches!(protocol, ICMP | ICMPV6);
    // pfctl(8) prints and reads the one as it is, the other in the order of the network.
    let (id, creator) = (u64::from_ne_bytes(bytes(state, ID)?), u32::from_be_bytes(bytes(state, CREATOR)?));
    Some(State { id: format!("{id:016x}/{creator:08x}"), protocol, from, to, published })
}

/// Reads what the kernel exported; what is not understood is left out.
pub(in super::super) fn read(exported: &[u8]) -> Vec<State> {
    exported.chunks_exact(EXPORTED).filter_map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A state as the kernel exports it: two ends on the wire, two in the stack.
    fn exported(direction: u8, protocol: u8, keys: [[&str; 2]; 2]) -> Vec<u8> {
        let mut state = vec![0; EXPORTED];
        let mut put = |at: usize, value: &[u8]| state[at..at + value.len()].copy_from_slice(value);
        put(0, &VERSION.to_ne_bytes());
        put(ID, &7_u64.to_ne_bytes());
        put(CREATOR, &0x5e7f_a0b1_u32.to_be_bytes());
        put(PROTOCOL, &[protocol]);
        put(DIRECTION, &[direction]);
        for (key, at) in keys.iter().zip(KEYS) {
            for (n, end) in key.iter().enumerate() {
                let end: std::net::SocketAddr = end.parse().unwrap();
                match end.ip() {
                    IpAddr::V4(ip) => put(at + 16 * n, &ip.octets()),
                    IpAddr::V6(ip) => {
                        put(FAMILY, &[INET6]);
                        put(at + 16 * n, &ip.octets());
                    }
                }
                put(at + 32 + 2 * n, &end.port().to_be_bytes());
            }
        }
        state
    }

    #[test]
    fn each_flow_has_its_true_ends() {
        let plain = ["10.1.0.2:40001", "192.0.2.9:80"];
        let back = ["192.0.2.9:80", "10.1.0.2:40001"];
        for (state, protocol, from, to, published) in [
            // In, as it is; out with another source; in by a published port; its second half; a link-local neighbour.
            (exported(1, 6, [plain, plain]), 6, plain[0], plain[1], false),
            (exported(OUT, 6, [["192.0.2.9:80", "192.0.2.1:61000"], back]), 6, plain[0], plain[1], false),
            (
                exported(1, 6, [["192.0.2.2:5000", "192.0.2.1:8080"], ["192.0.2.2:5000", "10.1.0.2:80"]]),
                6,
                "192.0.2.2:5000",
                "10.1.0.2:80",
                true,
            ),
            (
                exported(OUT, 17, [["10.1.0.2:80", "192.0.2.2:5000"], ["10.1.0.2:80", "192.0.2.2:5000"]]),
                17,
                "192.0.2.2:5000",
                "10.1.0.2:80",
                false,
            ),
            (
                exported(1, 58, [["[fe80:4::2]:8", "[fd01::1]:128"], ["[fe80:4::2]:8", "[fd01::1]:8"]]),
                58,
                "[fe80::2]:8",
                "[fd01::1]:8",
                false,
            ),
        ] {
            let end =
                |text: &str| text.parse::<std::net::SocketAddr>().map(|at| (at.ip(), at.port())).unwrap();
            let wanted = State {
                id: "0000000000000007/5e7fa0b1".to_owned(),
                protocol,
                from: end(from),
                to: end(to),
                published,
            };
            assert_eq!(read(&[state.clone(), state].concat()), vec![wanted.clone(), wanted]);
        }
    }

    #[test]
    fn another_version_is_not_misread() {
        let mut state = exported(1, 6, [["10.1.0.2:1", "10.1.0.3:2"]; 2]);
        assert_eq!(read(&state[..EXPORTED - 1]), Vec::new());
        state[..8].copy_from_slice(&(VERSION + 1).to_ne_bytes());
        assert_eq!(read(&state), Vec::new());
    }

    proptest! {
        #[test]
        fn nothing_that_is_exported_makes_it_panic(mut state in proptest::collection::vec(any::<u8>(), EXPORTED)) {
            state[..8].copy_from_slice(&VERSION.to_ne_bytes());
            prop_assert_eq!(read(&state).len(), 1);
        }
    }
}

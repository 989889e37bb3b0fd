//! The routing table, as sysctl(3) `NET_RT_DUMP` tells it: reading it is pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A route that somebody made: the kernel makes those to an interface's own subnets itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of its interface.
    pub index: u16,
    /// Where to.
    pub net: IpNet,
    /// By whom; none: on the link.
    pub gateway: Option<IpAddr>,
    /// MTU along it in bytes; 0: the interface's.
    pub mtu: u32,
}

// net/route.h
const RTM_VERSION: u8 = 5;
const RTM_GET: u8 = 4;
const RTF_UP: u32 = 0x1;
const RTF_GATEWAY: u32 = 0x2;
const RTF_HOST: u32 = 0x4;
const RTF_REJECT: u32 = 0x8;
const RTF_STATIC: u32 = 0x800;
const RTF_BLACKHOLE: u32 = 0x1000;
const RTF_FIXEDMTU: u32 = 0x8_0000;
const RTF_PINNED: u32 = 0x10_0000;
/// `struct rt_msghdr`, and the offsets of what is read of it.
const HEADER: usize = 152;
const AT_INDEX: usize = 4;
const AT_FLAGS: usize = 8;
const AT_ADDRESSES: usize = 12;
const AT_MTU: usize = 48;
/// How many addresses a message may carry.
const RTAX_MAX: usize = 8;
// sys/socket.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 28;

/// Reads all messages of a dump; what is no route of somebody's making is left out.
pub(crate) fn parse(mut bytes: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    while let Some(length) = bytes.first_chunk().map(|length| usize::from(u16::from_ne_bytes(*length))) {
        if length < 4 {
            break;
        }
        let Some((message, rest)) = bytes.split_at_checked(length) else { break };
        found.extend(entry(message));
        bytes = rest;
    }
    found
}

fn word(message: &[u8], at: usize) -> Option<u32> {
    message.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn entry(message: &[u8]) -> Option<Entry> {
    if message.get(2..4)? != [RTM_VERSION, RTM_GET] {
        return None;
    }
    let flags = word(message, AT_FLAGS)?;
    let made = flags & (RTF_STATIC | RTF_GATEWAY) != 0;
    if flags & RTF_UP == 0 || flags & (RTF_PINNED | RTF_REJECT | RTF_BLACKHOLE) != 0 || !made {
        return None;
    }
    let [destination, gateway, mask] = addresses(message)?;
    let to = ip(destination)?;
    let most = if to.is_ipv4() { 32 } else { 128 };
    let prefix = if flags & RTF_HOST != 0 { most } else { prefix(mask, to.is_ipv4())? };
    Some(Entry {
        index: u16::from_ne_bytes(message.get(AT_INDEX..AT_INDEX + 2)?.try_into().ok()?),
        net: IpNet::new(to, prefix).ok()?,
        gateway: if flags & RTF_GATEWAY == 0 { None } else { Some(ip(gateway)?) },
        mtu: if flags & RTF_FIXEDMTU == 0 { 0 } else { word(message, AT_MTU)? },
    })
}

/// Destination, gateway and mask; empty where there is none.
fn addresses(message: &[u8]) -> Option<[&[u8]; 3]> {
    let present = word(message, AT_ADDRESSES)?;
    let mut found = [&message[..0]; 3];
    let mut rest = message.get(HEADER..)?;
    for at in 0..RTAX_MAX {
        if present & (1 << at) == 0 {
            continue;
        }
        let length = usize::from(*rest.first()?);
        let (address, _) = rest.split_at_checked(length)?;
        if let Some(slot) = found.get_mut(at) {
            *slot = address;
        }
        // Each begins at a multiple of eight bytes; one of no length takes eight.
        rest = rest.get(length.max(1).next_multiple_of(8)..).unwrap_or_default();
    }
    Some(found)
}

fn ip(address: &[u8]) -> Option<IpAddr> {
    match *address.get(1)? {
        AF_INET => {
            let octets: [u8; 4] = address.get(4..8)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets).into())
        }
        AF_INET6 => {
            let mut octets: [u8; 16] = address.get(8..24)?.try_into().ok()?;
            if octets[0] == 0xfe && octets[1] & 0xc0 == 0x80 {
                // The kernel keeps the scope there.
                octets[2..4].fill(0);
            }
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

/// Bits of a mask, which has no more bytes than are needed.
fn prefix(mask: &[u8], ipv4: bool) -> Option<u8> {
    let (start, length) = if ipv4 { (4, 4) } else { (8, 16) };
    let bytes = mask.get(start..).unwrap_or_default();
    let bits: u32 =
        bytes.iter().take(length).map(|byte| byte.leading_ones()).take_while(|bits| *bits > 0).sum();
    u8::try_from(bits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(index: u16, flags: u32, mtu: u32, addresses: &[(usize, Vec<u8>)]) -> Vec<u8> {
        let mut message = vec![0; HEADER];
        message[2] = RTM_VERSION;
        message[3] = RTM_GET;
        message[AT_INDEX..AT_INDEX + 2].copy_from_slice(&index.to_ne_bytes());
        message[AT_FLAGS..AT_FLAGS + 4].copy_from_slice(&flags.to_ne_bytes());
        message[AT_MTU..AT_MTU + 4].copy_from_slice(&mtu.to_ne_bytes());
        let mut present = 0_u32;
        for (at, address) in addresses {
            present |= 1 << at;
            message.extend_from_slice(address);
            message.resize(message.len().max(HEADER + 1).next_multiple_of(8), 0);
        }
        message[AT_ADDRESSES..AT_ADDRESSES + 4].copy_from_slice(&present.to_ne_bytes());
        let length = u16::try_from(message.len()).unwrap();
        message[..2].copy_from_slice(&length.to_ne_bytes());
        message
    }

    fn v4(ip: [u8; 4]) -> Vec<u8> {
        [&[16, AF_INET, 0, 0][..], &ip, &[0; 8]].concat()
    }

    fn v6(ip: Ipv6Addr) -> Vec<u8> {
        [&[28, AF_INET6, 0, 0, 0, 0, 0, 0][..], &ip.octets(), &[0; 4]].concat()
    }

    #[test]
    fn routes_of_somebodys_making_are_read_and_the_kernels_own_are_not() {
        let up = RTF_UP | RTF_STATIC;
        let scoped: Ipv6Addr = "fe80:2::1".parse().unwrap();
        let dump = [
            // The default route: a mask of no bytes.
            message(2, up | RTF_GATEWAY, 0, &[(0, v4([0; 4])), (1, v4([10, 1, 0, 1])), (2, vec![0])]),
            // On the link, with a mask that ends with its last bit.
            message(
                2,
                up,
                0,
                &[(0, v4([10, 9, 0, 0])), (1, vec![54, 18]), (2, vec![6, AF_INET, 0, 0, 255, 255])],
            ),
            message(
                3,
                up | RTF_GATEWAY | RTF_HOST | RTF_FIXEDMTU,
                1400,
                &[(0, v4([1, 2, 3, 4])), (1, v4([10, 1, 0, 1]))],
            ),
            message(2, up | RTF_GATEWAY, 0, &[(0, v6(Ipv6Addr::UNSPECIFIED)), (1, v6(scoped)), (2, vec![0])]),
            // A subnet of the interface's own, and one that leads nowhere.
            message(2, RTF_UP | RTF_PINNED, 0, &[(0, v4([10, 1, 0, 0])), (1, vec![54, 18])]),
            message(1, up | RTF_REJECT, 0, &[(0, v4([10, 2, 0, 0])), (1, v4([127, 0, 0, 1]))]),
        ];
        let entry = |index, net: &str, gateway: Option<&str>, mtu| Entry {
            index,
            net: net.parse().unwrap(),
            gateway: gateway.map(|ip| ip.parse().unwrap()),
            mtu,
        };
        let mut lengths = dump.to_vec();
        // The second message's link address says 54 bytes and must have them.
        lengths[1] = message(
            2,
            up,
            0,
            &[
                (0, v4([10, 9, 0, 0])),
                (1, [vec![54, 18], vec![0; 52]].concat()),
                (2, vec![6, AF_INET, 0, 0, 255, 255]),
            ],
        );
        assert_eq!(
            parse(&lengths.concat()),
            [
                entry(2, "0.0.0.0/0", Some("10.1.0.1"), 0),
                entry(2, "10.9.0.0/16", None, 0),
                entry(3, "1.2.3.4/32", Some("10.1.0.1"), 1400),
                entry(2, "::/0", Some("fe80::1"), 0),
            ]
        );
    }

    #[test]
    fn cut_off_dumps_are_no_panic() {
        let whole =
            message(2, RTF_UP | RTF_STATIC, 0, &[(0, v4([10, 9, 0, 0])), (2, vec![6, 2, 0, 0, 255, 255])]);
        for length in 0..whole.len() {
            let mut cut = whole[..length].to_vec();
            assert_eq!(parse(&cut), []);
            if let Some(field) = cut.get_mut(..2) {
                field.copy_from_slice(&u16::try_from(length).unwrap().to_ne_bytes());
                let _ = parse(&cut);
            }
        }
    }
}

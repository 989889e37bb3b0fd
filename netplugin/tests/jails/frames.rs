//! Ethernet frames made by hand.

pub fn ether(to: [u8; 6], from: [u8; 6], kind: u16, rest: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), rest].concat()
}

pub fn arp_answer(from: [u8; 6], sender: [u8; 6], ip: &str, to: [u8; 6], target: &str) -> Vec<u8> {
    let octets = |ip: &str| ip.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let body = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &sender, &octets(ip), &to, &octets(target), &[0; 18]].concat();
    ether(to, from, 0x0806, &body)
}

pub fn udp4(from_mac: [u8; 6], to_mac: [u8; 6], from: &str, to: &str, port: u16) -> Vec<u8> {
    udp(from_mac, to_mac, (from, 0x1000), (to, port), b"!")
}

/// A UDP packet with these ports and this in it.
pub fn udp(from_mac: [u8; 6], to_mac: [u8; 6], from: (&str, u16), to: (&str, u16), data: &[u8]) -> Vec<u8> {
    let octets = |ip: &str| ip.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let length = u16::try_from(8 + data.len()).unwrap();
    let mut head = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0].to_vec();
    head[2..4].copy_from_slice(&(length + 20).to_be_bytes());
    head.extend(octets(from.0));
    head.extend(octets(to.0));
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    for word in [from.1, to.1, length, 0] {
        head.extend(word.to_be_bytes());
    }
    head.extend(data);
    ether(to_mac, from_mac, 0x0800, &head)
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | u32::from(two.get(1).copied().unwrap_or_default()))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// A question of DHCP's of this kind, with this number.
pub fn dhcp_question(kind: u8, xid: [u8; 4], mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&xid);
    message[28..34].copy_from_slice(&mac);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind, 255]);
    message
}

/// A router advertisement (RFC 4861) to all nodes with a lifetime of half an hour and prefixes to make addresses of.
pub fn advertisement(mac: [u8; 6], from: &str, prefixes: &[&str]) -> Vec<u8> {
    let octets = |ip: &str| ip.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut message = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    for prefix in prefixes {
        message.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
        message.extend(octets(prefix));
    }
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    let (source, to) = (octets(from), octets("ff02::1"));
    let pseudo = [&source[..], &to, &[0, 0], &length, &[0, 0, 0, 58], &message].concat();
    let sum = checksum(&pseudo);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let packet = [&[0x60, 0, 0, 0][..], &length, &[58, 255], &source, &to, &message].concat();
    ether([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd, &packet)
}

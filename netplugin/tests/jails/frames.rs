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
    let octets = |ip: &str| ip.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let mut head = [0x45, 0, 0, 29, 0, 1, 0, 0, 64, 17, 0, 0].to_vec();
    head.extend(octets(from));
    head.extend(octets(to));
    let mut sum: u32 = head.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap();
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    let [high, low] = port.to_be_bytes();
    head.extend([0x10, 0, high, low, 0, 9, 0, 0, b'!']);
    ether(to_mac, from_mac, 0x0800, &head)
}

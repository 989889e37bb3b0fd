//! Frames made by hand, and a tap on an interface.

use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::Ns;
use super::flow::receive_buffer;

pub const BROADCAST: [u8; 6] = [0xff; 6];

/// A packet socket on one interface: sends any frame, sees all that the interface receives.
pub struct Tap {
    fd: OwnedFd,
}

impl Tap {
    pub fn open(ns: &Ns, interface: &str) -> Self {
        let index: u32 = ns
            .ip(&format!("-o link show {interface}"))
            .split(':')
            .next()
            .and_then(|index| index.trim().parse().ok())
            .expect("an index");
        ns.run(|| {
            let protocol = (libc::ETH_P_ALL as u16).to_be();
            // SAFETY: plain system call, the descriptor is checked and owned from here on.
            let fd = unsafe {
                let fd =
                    libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol));
                assert!(fd >= 0, "{}", io::Error::last_os_error());
                OwnedFd::from_raw_fd(fd)
            };
            // SAFETY: all zeros is a valid sockaddr_ll.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = i32::try_from(index).unwrap();
            // SAFETY: the address is a sockaddr_ll of the length given, alive during the call.
            let bound = unsafe {
                libc::bind(
                    fd.as_raw_fd(),
                    (&raw const address).cast(),
                    std::mem::size_of_val(&address) as u32,
                )
            };
            assert_eq!(bound, 0, "{}", io::Error::last_os_error());
            // A frame that came is there however late it is looked for.
            receive_buffer(&fd, 16 << 20);
            Self { fd }
        })
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the buffer is as long as said and alive during the call.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(usize::try_from(sent).ok(), Some(frame.len()), "{}", io::Error::last_os_error());
    }

    /// The next frame that came in, if one does in time. What the interface sends is not looked at.
    pub fn receive(&self, patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, as said.
            let ready = unsafe { libc::poll(&raw mut poll, 1, i32::try_from(left.as_millis()).unwrap()) };
            if ready <= 0 {
                return None;
            }
            let mut buffer = vec![0_u8; 65536];
            // SAFETY: all zeros is a valid sockaddr_ll.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut len = std::mem::size_of_val(&from) as u32;
            // SAFETY: buffer and address are as long as said and alive during the call.
            let n = unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut len,
                )
            };
            buffer.truncate(usize::try_from(n).ok()?);
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                return Some(buffer);
            }
        }
    }

    /// Whether a frame with these bytes in it comes in time.
    pub fn sees(&self, needle: &[u8], patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            match self.receive(left) {
                Some(frame) if contains(&frame, needle) => return true,
                Some(_) => {}
                None => return false,
            }
        }
        false
    }
}

pub fn contains(frame: &[u8], needle: &[u8]) -> bool {
    frame.windows(needle.len()).any(|window| window == needle)
}

pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), body].concat()
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IPv4 packet around a payload.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

/// A UDP datagram without a checksum (IPv4 permits that).
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

/// An ARP message: operation 1 asks, 2 answers.
pub fn arp(operation: u16, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    [
        &[0, 1, 8, 0, 6, 4][..],
        &operation.to_be_bytes(),
        &sender.0,
        &sender.1.octets(),
        &target.0,
        &target.1.octets(),
    ]
    .concat()
}

/// An IPv6 packet around a payload, with extension headers already in it if `next` says so.
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// An ICMPv6 message with its checksum.
pub fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0][..], body].concat();
    let len = (message.len() as u32).to_be_bytes();
    let sum = checksum(&[&from.octets(), &to.octets(), &len, &[0, 0, 0, 58], &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The multicast Ethernet address of an IPv6 group.
pub fn group_mac(group: Ipv6Addr) -> [u8; 6] {
    let octets = group.octets();
    [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
}

/// A wire between two interfaces of one namespace that takes its time and loses frames; it lives as long as the test.
/// (Not every kernel has netem.)
pub fn slow_wire(ns: &Ns, ends: [&str; 2], delay: Duration, lose_every: usize) {
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (Tap::open(ns, ends[from]), Tap::open(ns, ends[to]));
        for tap in [&from, &to] {
            // Frames keep their offloaded checksums and segmentation on the way.
            let on: libc::c_int = 1;
            // SAFETY: the option's value is an int, as said, alive during the call.
            let set = unsafe {
                libc::setsockopt(
                    tap.fd.as_raw_fd(),
                    libc::SOL_PACKET,
                    15, // PACKET_VNET_HDR
                    (&raw const on).cast(),
                    std::mem::size_of_val(&on) as u32,
                )
            };
            assert_eq!(set, 0, "{}", io::Error::last_os_error());
        }
        let (sender, receiver) = std::sync::mpsc::channel::<(Instant, Vec<u8>)>();
        std::thread::spawn(move || {
            let mut count = 0_usize;
            loop {
                let Some(frame) = from.receive(Duration::from_secs(3600)) else { continue };
                count += 1;
                if !count.is_multiple_of(lose_every) && sender.send((Instant::now() + delay, frame)).is_err()
                {
                    break;
                }
            }
        });
        std::thread::spawn(move || {
            while let Ok((due, frame)) = receiver.recv() {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                // SAFETY: the buffer is as long as said and alive during the call. An interface that is down loses it.
                let _ = unsafe { libc::send(to.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            }
        });
    }
}

//! Brings every TCP connection to a network namespace's own addresses to one listener, whatever port was dialled.
//!
//! By a program of type `BPF_PROG_TYPE_SK_LOOKUP` (Linux 5.9, `Documentation/bpf/prog_sk_lookup.rst`), attached to the
//! namespace: it is asked which socket a connection is for. Attachment, program and map last as long as their
//! descriptors, so whatever becomes of this process, the kernel undoes all of it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Commands and types of `bpf(2)`, include/uapi/linux/bpf.h.
mod bpf {
    pub(super) const MAP_CREATE: libc::c_long = 0;
    pub(super) const MAP_UPDATE_ELEM: libc::c_long = 2;
    pub(super) const PROG_LOAD: libc::c_long = 5;
    pub(super) const LINK_CREATE: libc::c_long = 28;
    pub(super) const MAP_TYPE_SOCKMAP: u32 = 15;
    pub(super) const PROG_TYPE_SK_LOOKUP: u32 = 30;
    pub(super) const ATTACH_SK_LOOKUP: u32 = 36;
    pub(super) const PSEUDO_MAP_FD: u8 = 1;
    pub(super) const FUNC_MAP_LOOKUP_ELEM: i32 = 1;
    pub(super) const FUNC_SK_RELEASE: i32 = 86;
    pub(super) const FUNC_SK_ASSIGN: i32 = 124;
}

/// `struct bpf_sk_lookup`: offsets of `family` and `protocol`.
const CONTEXT_FAMILY: i16 = 8;
const CONTEXT_PROTOCOL: i16 = 12;
/// Places of the map.
const PLACES: u32 = 2;

/// While it lives, connections arrive at the listeners.
#[derive(Debug)]
pub(super) struct Steering {
    /// Holds the program, which holds the map, which holds no listener: a closed one leaves it.
    _link: OwnedFd,
}

/// Listens on the loopback addresses of the calling thread's namespace: IPv4 first, IPv6 if there is such.
pub(super) fn listen() -> io::Result<Vec<TcpListener>> {
    let mut listeners = vec![TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?];
    if let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        listeners.push(listener);
    }
    for listener in &listeners {
        listener.set_nonblocking(true)?;
    }
    Ok(listeners)
}

impl Steering {
    /// Attaches to the namespace `netns`. The listeners are IPv4's and, if there are two, IPv6's.
    pub(super) fn to(listeners: &[TcpListener], netns: BorrowedFd<'_>) -> io::Result<Self> {
        let map = create_map()?;
        for (place, listener) in (0_u32..PLACES).zip(listeners) {
            put(map.as_fd(), place, listener.as_fd())?;
        }
        let program = load(&program(map.as_raw_fd()))?;
        let link = words(&[raw(program.as_fd()), raw(netns), bpf::ATTACH_SK_LOOKUP, 0]);
        // SAFETY: the attribute has the fields of LINK_CREATE, none of them a pointer.
        Ok(Self { _link: unsafe { call_for_descriptor(bpf::LINK_CREATE, &link) }? })
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// An attribute of 32-bit fields.
fn words(fields: &[u32]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_ne_bytes()).collect()
}

fn pointer<T>(to: *const T) -> [u8; 8] {
    (to as u64).to_ne_bytes()
}

fn create_map() -> io::Result<OwnedFd> {
    let (key, value) = (4, 8);
    let attribute = words(&[bpf::MAP_TYPE_SOCKMAP, key, value, PLACES, 0]);
    // SAFETY: the attribute has the fields of MAP_CREATE, none of them a pointer.
    unsafe { call_for_descriptor(bpf::MAP_CREATE, &attribute) }
}

fn put(map: BorrowedFd<'_>, place: u32, listener: BorrowedFd<'_>) -> io::Result<()> {
    let socket = u64::from(raw(listener));
    let mut attribute = words(&[raw(map), 0]);
    attribute.extend(pointer(&raw const place));
    attribute.extend(pointer(&raw const socket));
    attribute.extend(0_u64.to_ne_bytes());
    // SAFETY: the attribute has the fields of MAP_UPDATE_ELEM; its pointers lead to a key of 4 and a value of 8 bytes,
    // as the map was made for, which live until the call returns.
    unsafe { call(bpf::MAP_UPDATE_ELEM, &attribute) }.map(drop)
}

/// One instruction: code, registers, offset, immediate (Documentation/bpf/standardization/instruction-set.rst).
fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let mut bytes = [code, from << 4 | to, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&immediate.to_ne_bytes());
    bytes
}

/// "A TCP connection of IPv4 is for the map's first socket, one of IPv6 for its second; all else goes its way."
fn program(map: i32) -> Vec<u8> {
    const PASS: i32 = 1;
    const MOVE: u8 = 0xbf;
    const MOVE_IMMEDIATE: u8 = 0xb7;
    const ADD_IMMEDIATE: u8 = 0x07;
    const LOAD_WORD: u8 = 0x61;
    const STORE_WORD: u8 = 0x62;
    const LOAD_MAP: u8 = 0x18;
    const JUMP_IF_EQUAL: u8 = 0x15;
    const JUMP_UNLESS_EQUAL: u8 = 0x55;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    [
        instruction(MOVE, 6, 1, 0, 0),
        instruction(LOAD_WORD, 2, 6, CONTEXT_PROTOCOL, 0),
        instruction(JUMP_UNLESS_EQUAL, 2, 0, 17, libc::IPPROTO_TCP),
        // The key, on the stack.
        instruction(STORE_WORD, 10, 0, -4, 0),
        instruction(LOAD_WORD, 2, 6, CONTEXT_FAMILY, 0),
        instruction(JUMP_UNLESS_EQUAL, 2, 0, 1, libc::AF_INET6),
        instruction(STORE_WORD, 10, 0, -4, 1),
        instruction(MOVE, 2, 10, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, -4),
        // Two words long.
        instruction(LOAD_MAP, 1, bpf::PSEUDO_MAP_FD, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(CALL, 0, 0, 0, bpf::FUNC_MAP_LOOKUP_ELEM),
        instruction(JUMP_IF_EQUAL, 0, 0, 7, 0),
        instruction(MOVE, 7, 0, 0, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE, 2, 7, 0, 0),
        instruction(MOVE_IMMEDIATE, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, bpf::FUNC_SK_ASSIGN),
        instruction(MOVE, 1, 7, 0, 0),
        // Without a socket the jump ends behind this.
        instruction(CALL, 0, 0, 0, bpf::FUNC_SK_RELEASE),
        instruction(MOVE_IMMEDIATE, 0, 0, 0, PASS),
        instruction(EXIT, 0, 0, 0, 0),
    ]
    .concat()
}

fn load(instructions: &[u8]) -> io::Result<OwnedFd> {
    let licence = c"Dual BSD/GPL";
    let count = u32::try_from(instructions.len() / 8).map_err(io::Error::other)?;
    let mut attribute = words(&[bpf::PROG_TYPE_SK_LOOKUP, count]);
    attribute.extend(pointer(instructions.as_ptr()));
    attribute.extend(pointer(licence.as_ptr()));
    // No log; kernel version, flags; a name; no device; what it will be attached as.
    attribute.extend(words(&[0, 0, 0, 0, 0, 0]));
    attribute.extend(b"skep_loopback\0\0\0");
    attribute.extend(words(&[0, bpf::ATTACH_SK_LOOKUP]));
    // SAFETY: the attribute has the fields of PROG_LOAD; its pointers lead to `count` instructions and a text with a
    // zero at its end, which live until the call returns.
    unsafe { call_for_descriptor(bpf::PROG_LOAD, &attribute) }
}

/// # Safety
/// `attribute` is what the command takes: its pointers are good until this returns. What it is short of counts as zero.
unsafe fn call(command: libc::c_long, attribute: &[u8]) -> io::Result<libc::c_long> {
    // SAFETY: as the caller promises; the size is the attribute's own.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), attribute.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
/// As [`call`], and the command answers a new descriptor.
unsafe fn call_for_descriptor(command: libc::c_long, attribute: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: as the caller promises.
    let fd = unsafe { call(command, attribute) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use skep_netlink::Netns;

    use super::*;

    /// Needs root: makes a network namespace.
    #[test]
    fn connections_to_any_port_arrive_and_keep_their_port() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let netns = Netns::create().unwrap();
        netns
            .run(|| {
                let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
                assert!(up.success());
                let listeners = listen().unwrap();
                let here = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
                let steering = Steering::to(&listeners, here.as_fd()).unwrap();
                for port in [1, 80, 65535] {
                    for (listener, address) in listeners.iter().zip(["127.0.0.1", "::1"]) {
                        let dialled = TcpStream::connect((address, port)).unwrap();
                        let (accepted, _) = listener.accept().unwrap();
                        assert_eq!(accepted.local_addr().unwrap(), dialled.peer_addr().unwrap());
                        assert_eq!(accepted.local_addr().unwrap().port(), port);
                    }
                }
                // What is not TCP goes its way.
                let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                udp.send_to(b"x", udp.local_addr().unwrap()).unwrap();
                udp.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
                assert_eq!(udp.recv(&mut [0; 4]).unwrap(), 1);
                drop(steering);
                let refused = TcpStream::connect(("127.0.0.1", 80)).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
                Ok::<_, skep_netlink::NetnsError>(())
            })
            .unwrap();
    }
}

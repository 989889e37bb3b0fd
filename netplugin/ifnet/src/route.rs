//! Routes and neighbours, by route(4).

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::write;

use crate::error::Error;
use crate::interface::shown;
use crate::sys::{allow, kernel, socket};
pub use crate::table::Entry;
use crate::table::parse;

// net/route.h
const RTM_VERSION: u8 = 5;
const RTM_ADD: u8 = 1;
const RTM_DELETE: u8 = 2;
const RTF_GATEWAY: i32 = 0x2;
const RTF_HOST: i32 = 0x4;
const RTF_UP: i32 = 0x1;
const RTF_STATIC: i32 = 0x800;
const RTF_LLDATA: i32 = 0x400;
const RTA_DST: i32 = 0x1;
const RTA_GATEWAY: i32 = 0x2;
const RTA_NETMASK: i32 = 0x4;
const RTV_EXPIRE: u64 = 0x4;

/// `struct rt_msghdr` with `struct rt_metrics` in it.
#[repr(C)]
#[derive(Default)]
struct Header {
    len: u16,
    version: u8,
    kind: u8,
    index: u16,
    spare: u16,
    flags: i32,
    addresses: i32,
    pid: i32,
    sequence: i32,
    errno: i32,
    mask: i32,
    initialised: u64,
    metrics: [u64; 14],
}

const _: () = assert!(size_of::<Header>() == 152);

/// Appends a socket address, padded to eight bytes as the kernel expects.
fn push(message: &mut Vec<u8>, address: &[u8]) {
    message.extend_from_slice(address);
    message.resize(message.len().next_multiple_of(8), 0);
}

fn ip(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => [&[16, 2, 0, 0][..], &ip.octets(), &[0; 8]].concat(),
        IpAddr::V6(ip) => [&[28, 28, 0, 0, 0, 0, 0, 0][..], &ip.octets(), &[0; 4]].concat(),
    }
}

/// `struct sockaddr_dl` of net/if_dl.h, with an Ethernet address or without.
fn link(index: u16, mac: Option<[u8; 6]>) -> Vec<u8> {
    let [low, high] = index.to_ne_bytes();
    let mut address = vec![54, 18, low, high, 6, 0, if mac.is_some() { 6 } else { 0 }, 0];
    address.extend(mac.into_iter().flatten());
    address.resize(54, 0);
    address
}

fn send(kind: u8, flags: i32, present: i32, expire: bool, addresses: &[Vec<u8>]) -> io::Result<()> {
    let socket = socket(libc::PF_ROUTE, libc::SOCK_RAW, 0)?;
    let header = Header {
        version: RTM_VERSION,
        kind,
        flags,
        addresses: present,
        sequence: 1,
        // A time of nought is no end of life.
        initialised: if expire { RTV_EXPIRE } else { 0 },
        ..Header::default()
    };
    let mut message = Vec::new();
    message.extend_from_slice(&[0; 2]);
    message.extend_from_slice(&[header.version, header.kind, 0, 0, 0, 0]);
    for word in [header.flags, header.addresses, header.pid, header.sequence, header.errno, header.mask] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message.extend_from_slice(&header.initialised.to_ne_bytes());
    for word in header.metrics {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    for address in addresses {
        push(&mut message, address);
    }
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    message[..2].copy_from_slice(&len.to_ne_bytes());
    write(&socket, &message)?;
    Ok(())
}

/// Removes the route to one address; fine if there is none.
pub fn delete_host(to: IpAddr) -> Result<(), Error> {
    let result = send(RTM_DELETE, RTF_UP | RTF_HOST | RTF_STATIC, RTA_DST, false, &[ip(to)]);
    allow(allow(result, libc::ESRCH), libc::EAFNOSUPPORT)
        .map_err(|error| kernel(format!("remove the route to {to}"), error))
}

fn change(kind: u8, index: u16, net: IpNet, gateway: Option<IpAddr>) -> io::Result<()> {
    let mut flags = RTF_UP | RTF_STATIC;
    let by = match gateway {
        Some(gateway) => {
            flags |= RTF_GATEWAY;
            ip(gateway)
        }
        None => link(index, None),
    };
    if net.prefix_len() == net.max_prefix_len() {
        return send(kind, flags | RTF_HOST, RTA_DST | RTA_GATEWAY, false, &[ip(net.addr()), by]);
    }
    let present = RTA_DST | RTA_GATEWAY | RTA_NETMASK;
    send(kind, flags, present, false, &[ip(net.network()), by, ip(net.netmask())])
}

fn shown_by(gateway: Option<IpAddr>) -> String {
    gateway.map_or_else(|| "on the link".to_owned(), |gateway| format!("by {gateway}"))
}

/// Adds a route by a gateway, or on the link.
pub fn add(index: u16, net: IpNet, gateway: Option<IpAddr>) -> Result<(), Error> {
    change(RTM_ADD, index, net, gateway)
        .map_err(|error| kernel(format!("add a route to {net} {}", shown_by(gateway)), error))
}

/// The same, unless it is there.
pub fn ensure(index: u16, net: IpNet, gateway: Option<IpAddr>) -> Result<(), Error> {
    allow(change(RTM_ADD, index, net, gateway), libc::EEXIST)
        .map_err(|error| kernel(format!("add a route to {net} {}", shown_by(gateway)), error))
}

/// Removes the route by this gateway, or on the link; fine if there is none, or one by another.
pub fn delete(index: u16, net: IpNet, gateway: Option<IpAddr>) -> Result<(), Error> {
    allow(change(RTM_DELETE, index, net, gateway), libc::ESRCH)
        .map_err(|error| kernel(format!("remove the route to {net} {}", shown_by(gateway)), error))
}

/// Writes down for good which Ethernet address a neighbour has.
pub fn add_neighbour(index: u16, address: IpAddr, mac: [u8; 6]) -> Result<(), Error> {
    let flags = RTF_HOST | RTF_STATIC | RTF_LLDATA;
    send(RTM_ADD, flags, RTA_DST | RTA_GATEWAY, true, &[ip(address), link(index, Some(mac))])
        .map_err(|error| kernel(format!("write down that {address} is at {}", shown(mac)), error))
}

/// Forgets a neighbour; fine if it is not known.
pub fn delete_neighbour(index: u16, address: IpAddr) -> Result<(), Error> {
    let result =
        send(RTM_DELETE, RTF_LLDATA, RTA_DST | RTA_GATEWAY, false, &[ip(address), link(index, None)]);
    let result = allow(allow(result, libc::ESRCH), libc::ENOENT);
    allow(result, libc::EADDRNOTAVAIL).map_err(|error| kernel(format!("forget neighbour {address}"), error))
}

/// The routes that somebody made, of the network stack the process is in.
pub fn list() -> Result<Vec<Entry>, Error> {
    // net/route.h: NET_RT_DUMP
    const DUMP: libc::c_int = 1;
    /// How often the table may grow while it is read.
    const TRIES: usize = 8;
    let mib = [libc::CTL_NET, libc::PF_ROUTE, 0, 0, DUMP, 0];
    let ask = |buffer: *mut libc::c_void, length: &mut usize| {
        // SAFETY: mib has six elements; the kernel writes at most `length` bytes behind `buffer`.
        let result = unsafe { libc::sysctl(mib.as_ptr(), 6, buffer, length, std::ptr::null(), 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    let failed = |error| kernel("list routes", error);
    for _ in 0..TRIES {
        let mut length = 0;
        ask(std::ptr::null_mut(), &mut length).map_err(failed)?;
        let mut bytes = vec![0_u8; length + length / 8 + 4096];
        length = bytes.len();
        match ask(bytes.as_mut_ptr().cast(), &mut length) {
            Ok(()) => return Ok(parse(&bytes[..length])),
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(failed(io::ErrorKind::Interrupted.into()))
}

//! The loopback interface, which every container of the sandbox shares: netintro(4).

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `struct in_aliasreq`, `netinet/in_var.h`.
#[repr(C)]
struct Alias {
    name: [libc::c_char; libc::IFNAMSIZ],
    address: libc::sockaddr_in,
    broadcast: libc::sockaddr_in,
    mask: libc::sockaddr_in,
    vhid: libc::c_int,
}

nix::ioctl_write_ptr!(set_flags, b'i', 16, libc::ifreq);
nix::ioctl_write_ptr!(add_address, b'i', 43, Alias);

/// Brings `lo0` up with 127.0.0.1; the kernel gives it `::1` itself.
pub(super) fn up() -> nix::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let alias = Alias {
        name: name(),
        address: internet(Ipv4Addr::LOCALHOST),
        broadcast: internet(Ipv4Addr::UNSPECIFIED),
        mask: internet(Ipv4Addr::new(255, 0, 0, 0)),
        vhid: 0,
    };
    // SAFETY: the request is an initialised in_aliasreq, which is what SIOCAIFADDR reads.
    unsafe { add_address(socket.as_raw_fd(), &raw const alias) }?;
    // SAFETY: an ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = name();
    #[allow(clippy::cast_possible_truncation, reason = "IFF_UP is 1")]
    let flags = libc::IFF_UP as libc::c_short;
    request.ifr_ifru.ifru_flags = [flags, 0];
    // SAFETY: the request is an initialised ifreq naming an interface, which is what SIOCSIFFLAGS reads.
    unsafe { set_flags(socket.as_raw_fd(), &raw const request) }.map(drop)
}

fn name() -> [libc::c_char; libc::IFNAMSIZ] {
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(b"lo0") {
        *to = from.cast_signed();
    }
    name
}

fn internet(address: Ipv4Addr) -> libc::sockaddr_in {
    // SAFETY: a sockaddr_in is plain data, for which all zeroes is a value.
    let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    #[allow(clippy::cast_possible_truncation, reason = "16 bytes, family 2")]
    {
        to.sin_len = size_of::<libc::sockaddr_in>() as u8;
        to.sin_family = libc::AF_INET as libc::sa_family_t;
    }
    to.sin_addr.s_addr = u32::from(address).to_be();
    to
}

//! Addresses of interfaces: netinet/in_var.h and netinet6/in6_var.h.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use crate::error::Error;
use crate::interface::{Control, name_of};
use crate::sys::{allow, ioctl, iow, iowr, kernel};

/// `struct sockaddr_in` of netinet/in.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Ip4 {
    len: u8,
    family: u8,
    port: u16,
    address: [u8; 4],
    zero: [u8; 8],
}

/// `struct sockaddr_in6` of netinet6/in6.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Ip6 {
    len: u8,
    family: u8,
    port: u16,
    flow: u32,
    address: [u8; 16],
    scope: u32,
}

/// `struct in_aliasreq`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Alias4 {
    name: [u8; 16],
    address: Ip4,
    broadcast: Ip4,
    mask: Ip4,
    vhid: i32,
}

/// `struct in6_aliasreq`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Alias6 {
    name: [u8; 16],
    address: Ip6,
    destination: Ip6,
    mask: Ip6,
    flags: i32,
    expire: i64,
    preferred: i64,
    valid_time: u32,
    preferred_time: u32,
    vhid: i32,
}

/// What removes an IPv4 address: `struct ifreq`.
#[repr(C)]
struct Remove4 {
    name: [u8; 16],
    address: Ip4,
}

/// What removes an IPv6 address: `struct in6_ifreq`, whose union is longer than an address.
#[repr(C)]
struct Remove6 {
    name: [u8; 16],
    address: Ip6,
    // Aligned to eight bytes by the union's statistics.
    rest: [u8; 244],
}

/// `struct in6_ndireq` of netinet6/nd6.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Neighbours {
    name: [u8; 16],
    // linkmtu, maxmtu, basereachable, reachable, retrans
    times: [u32; 5],
    flags: u32,
    recalculate: i32,
    limits: [u8; 4],
    random: [u8; 24],
}

// sys/sockio.h, netinet6/in6_var.h
const SIOCDIFADDR: u64 = iow::<Remove4>(b'i', 25);
const SIOCAIFADDR: u64 = iow::<Alias4>(b'i', 43);
const SIOCDIFADDR_IN6: u64 = iow::<Remove6>(b'i', 25);
const SIOCAIFADDR_IN6: u64 = iow::<Alias6>(b'i', 27);
const SIOCGIFINFO_IN6: u64 = iowr::<Neighbours>(b'i', 108);
const SIOCSIFINFO_IN6: u64 = iowr::<Neighbours>(b'i', 109);
const IN6_IFF_NODAD: i32 = 0x20;
const ND6_INFINITE_LIFETIME: u32 = u32::MAX;
/// Accept router advertisements.
const ND6_IFF_ACCEPT_RTADV: u32 = 0x2;
/// No IPv6 at all.
const ND6_IFF_IFDISABLED: u32 = 0x8;
/// Make a link-local address.
const ND6_IFF_AUTO_LINKLOCAL: u32 = 0x20;
/// No search for others with the same address.
const ND6_IFF_NO_DAD: u32 = 0x100;

const _: () = assert!(SIOCAIFADDR == 0x8044_692b && SIOCAIFADDR_IN6 == 0x8088_691b);
const _: () = assert!(SIOCDIFADDR == 0x8020_6919 && SIOCDIFADDR_IN6 == 0x8120_6919);
const _: () = assert!(SIOCSIFINFO_IN6 == 0xc048_696d);

fn ip4(ip: Ipv4Addr) -> Ip4 {
    Ip4 { len: 16, family: 2, port: 0, address: ip.octets(), zero: [0; 8] }
}

fn ip6(ip: Ipv6Addr) -> Ip6 {
    Ip6 { len: 28, family: 28, address: ip.octets(), ..Ip6::default() }
}

impl Control {
    /// Gives an interface an address.
    pub fn add_address(&self, name: &str, net: IpNet) -> Result<(), Error> {
        let add = || -> io::Result<()> {
            match net {
                IpNet::V4(net) => {
                    let mut request = Alias4 {
                        name: name_of(name)?,
                        address: ip4(net.addr()),
                        broadcast: ip4(net.broadcast()),
                        mask: ip4(net.netmask()),
                        vhid: 0,
                    };
                    ioctl(&self.ipv4, SIOCAIFADDR, &mut request)
                }
                IpNet::V6(net) => {
                    let mut request = Alias6 {
                        name: name_of(name)?,
                        address: ip6(net.addr()),
                        mask: ip6(net.netmask()),
                        // Nobody else has our addresses: the allocator and the frames' rules see to it.
                        flags: IN6_IFF_NODAD,
                        valid_time: ND6_INFINITE_LIFETIME,
                        preferred_time: ND6_INFINITE_LIFETIME,
                        ..Alias6::default()
                    };
                    ioctl(&self.ipv6, SIOCAIFADDR_IN6, &mut request)
                }
            }
        };
        add().map_err(|error| kernel(format!("add address {net} to {name}"), error))
    }

    /// Takes an address away; fine if it is not there.
    pub fn delete_address(&self, name: &str, ip: IpAddr) -> Result<(), Error> {
        let remove = || -> io::Result<()> {
            match ip {
                IpAddr::V4(ip) => {
                    let mut request = Remove4 { name: name_of(name)?, address: ip4(ip) };
                    ioctl(&self.ipv4, SIOCDIFADDR, &mut request)
                }
                IpAddr::V6(ip) => {
                    let mut request = Remove6 { name: name_of(name)?, address: ip6(ip), rest: [0; 244] };
                    ioctl(&self.ipv6, SIOCDIFADDR_IN6, &mut request)
                }
            }
        };
        allow(remove(), libc::EADDRNOTAVAIL)
            .map_err(|error| kernel(format!("remove address {ip} from {name}"), error))
    }

    /// IPv6 with the routes that routers advertise, and with no address but those that are given: the kernel makes none from
    /// the prefixes it hears where the link-local one has a prefix of another length (`in6_ifadd` of netinet6/nd6_rtr.c).
    pub fn set_ipv6_with_routers(&self, name: &str, link_local: Ipv6Addr) -> Result<(), Error> {
        /// That of all link-local addresses (RFC 4291, 2.5.6), not the 64 bits that the kernel gives its own.
        const LEN: u8 = 10;
        self.set_neighbour_flags(
            name,
            ND6_IFF_IFDISABLED | ND6_IFF_AUTO_LINKLOCAL,
            ND6_IFF_ACCEPT_RTADV | ND6_IFF_NO_DAD,
        )?;
        self.raise(name)?;
        let wrong = |_| kernel(format!("add address {link_local}"), io::ErrorKind::InvalidInput.into());
        self.add_address(name, Ipv6Net::new(link_local, LEN).map_err(wrong)?.into())
    }

    /// IPv6 with a link-local address and without others' advice, or no IPv6.
    pub fn set_ipv6(&self, name: &str, enabled: bool) -> Result<(), Error> {
        let set = if enabled { ND6_IFF_AUTO_LINKLOCAL | ND6_IFF_NO_DAD } else { ND6_IFF_IFDISABLED };
        self.set_neighbour_flags(name, ND6_IFF_ACCEPT_RTADV | ND6_IFF_IFDISABLED, set)
    }

    /// Whether routes come from what routers advertise on an interface.
    pub fn hears_routers(&self, name: &str) -> Result<bool, Error> {
        let ask = || {
            let mut request = Neighbours { name: name_of(name)?, ..Neighbours::default() };
            ioctl(&self.ipv6, SIOCGIFINFO_IN6, &mut request)?;
            Ok(request.flags & ND6_IFF_ACCEPT_RTADV != 0)
        };
        ask().map_err(|error| kernel(format!("ask for the IPv6 flags of {name}"), error))
    }

    fn set_neighbour_flags(&self, name: &str, clear: u32, set: u32) -> Result<(), Error> {
        let change = || {
            let mut request = Neighbours { name: name_of(name)?, ..Neighbours::default() };
            ioctl(&self.ipv6, SIOCGIFINFO_IN6, &mut request)?;
            request.flags = request.flags & !clear | set;
            ioctl(&self.ipv6, SIOCSIFINFO_IN6, &mut request)
        };
        change().map_err(|error| kernel(format!("set the IPv6 flags of {name}"), error))
    }
}

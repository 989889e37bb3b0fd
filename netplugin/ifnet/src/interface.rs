//! Interfaces, by the ioctls of netintro(4).

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::sys::{allow, ioctl, iow, iowr, kernel, socket};

/// `struct ifreq` of net/if.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IfReq {
    name: [u8; 16],
    value: [u64; 2],
}

/// `struct ifgroupreq` of net/if.h.
#[repr(C)]
struct IfGroupReq {
    name: [u8; 16],
    len: u32,
    // The union's pointer aligns it to eight bytes.
    _pad: u32,
    group: [u8; 16],
}

/// `struct ifdrv` of net/if.h.
#[repr(C)]
struct IfDrv {
    name: [u8; 16],
    command: u64,
    len: usize,
    data: *mut libc::c_void,
}

// sys/sockio.h
const SIOCSIFFLAGS: u64 = iow::<IfReq>(b'i', 16);
const SIOCGIFFLAGS: u64 = iowr::<IfReq>(b'i', 17);
const SIOCSIFCAP: u64 = iow::<IfReq>(b'i', 30);
const SIOCGIFCAP: u64 = iowr::<IfReq>(b'i', 31);
const SIOCSIFNAME: u64 = iow::<IfReq>(b'i', 40);
const SIOCSIFMTU: u64 = iow::<IfReq>(b'i', 52);
const SIOCSIFLLADDR: u64 = iow::<IfReq>(b'i', 60);
const SIOCSIFVNET: u64 = iowr::<IfReq>(b'i', 90);
const SIOCIFDESTROY: u64 = iow::<IfReq>(b'i', 121);
const SIOCIFCREATE2: u64 = iowr::<IfReq>(b'i', 124);
const SIOCSDRVSPEC: u64 = iow::<IfDrv>(b'i', 123);
const SIOCGDRVSPEC: u64 = iowr::<IfDrv>(b'i', 123);
const SIOCAIFGROUP: u64 = iow::<IfGroupReq>(b'i', 135);
const SIOCGIFGROUP: u64 = iowr::<IfGroupReq>(b'i', 136);
const SIOCDIFGROUP: u64 = iow::<IfGroupReq>(b'i', 137);

/// `IFCAP_TXCSUM` of net/if.h: IPv4 packets leave without checksums, which the card is to make.
const IFCAP_TXCSUM: u32 = 1 << 1;
/// The same with `IFCAP_TXCSUM_IPV6`.
const IFCAP_TXCSUMS: u32 = IFCAP_TXCSUM | 1 << 22;

// What sys/sockio.h gives on amd64: a structure of another length would be another request.
const _: () =
    assert!(SIOCIFCREATE2 == 0xc020_697c && SIOCSDRVSPEC == 0x8028_697b && SIOCAIFGROUP == 0x8028_6987);

/// What the kernel tells of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u16,
    /// Whether it is up.
    pub up: bool,
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Packets and bytes received, then sent.
    pub carried: [u64; 4],
    /// Packets that failed and that were dropped on receiving, then on sending.
    pub lost: [u64; 4],
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Whether it is the loopback.
    pub loopback: bool,
}

/// Asks the kernel about interfaces, and changes them.
#[derive(Debug)]
pub struct Control {
    pub(crate) ipv4: OwnedFd,
    pub(crate) ipv6: OwnedFd,
}

/// An interface's name as requests carry it.
pub fn name_of(name: &str) -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    if name.len() > 15 {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}

/// An Ethernet address as people write it.
pub(crate) fn shown(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn words(bytes: &[u8]) -> [u64; 2] {
    let mut all = [0; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    let (low, high) = all.split_at(8);
    [low, high].map(|half| half.try_into().map_or(0, u64::from_ne_bytes))
}

fn request(name: &str, value: &[u8]) -> io::Result<IfReq> {
    Ok(IfReq { name: name_of(name)?, value: words(value) })
}

impl Control {
    /// Opens the sockets that requests go by.
    pub fn open() -> Result<Self, Error> {
        let open = |domain| socket(domain, libc::SOCK_DGRAM, 0);
        let failed = |error| kernel("open a socket to the interfaces", error);
        Ok(Self { ipv4: open(libc::AF_INET).map_err(failed)?, ipv6: open(libc::AF_INET6).map_err(failed)? })
    }

    fn change(&self, what: &str, code: u64, name: &str, value: &[u8]) -> Result<(), Error> {
        request(name, value)
            .and_then(|mut request| ioctl(&self.ipv4, code, &mut request))
            .map_err(|error| kernel(format!("{what} interface {name}"), error))
    }

    /// Has the kernel make the checksums of what leaves by an interface, and by the other end if it is one of an epair
    /// (epair(4) keeps both ends alike): what is behind it sees packets as they are. if_bridge(4) does so with its ports.
    pub fn make_checksums(&self, name: &str) -> Result<(), Error> {
        self.keep_checksums(name, IFCAP_TXCSUMS)
    }

    /// The same for a loopback, whose driver knows one switch for both families: packets that pf sends on to somebody else
    /// have checksums.
    pub fn make_loopback_checksums(&self, name: &str) -> Result<(), Error> {
        self.keep_checksums(name, IFCAP_TXCSUM)
    }

    fn keep_checksums(&self, name: &str, capabilities: u32) -> Result<(), Error> {
        let failed = |error| kernel(format!("ask for the capabilities of interface {name}"), error);
        let mut asked = request(name, &[]).map_err(failed)?;
        ioctl(&self.ipv4, SIOCGIFCAP, &mut asked).map_err(failed)?;
        // ifr_reqcap: what it can do; ifr_curcap: what is on.
        let enabled = (asked.value[0] >> 32) as u32;
        if enabled & capabilities == 0 {
            return Ok(());
        }
        let wanted = enabled & !capabilities;
        self.change("turn off the checksum offload of", SIOCSIFCAP, name, &wanted.to_ne_bytes())
    }

    /// Makes an interface of a kind (`bridge`, `epair`, `tap`); its name.
    pub fn create(&self, kind: &str) -> Result<String, Error> {
        self.create_with(kind, std::ptr::null_mut())
    }

    /// Makes an interface with parameters, which the kind's driver reads behind `data`.
    pub fn create_with(&self, kind: &str, data: *mut libc::c_void) -> Result<String, Error> {
        let failed = |error| kernel(format!("create a {kind} interface"), error);
        let mut request = request(kind, &(data as usize).to_ne_bytes()).map_err(failed)?;
        ioctl(&self.ipv4, SIOCIFCREATE2, &mut request).map_err(failed)?;
        let len = request.name.iter().position(|byte| *byte == 0).unwrap_or(16);
        Ok(String::from_utf8_lossy(&request.name[..len]).into_owned())
    }

    /// Removes an interface; fine if there is none.
    pub fn destroy(&self, name: &str) -> Result<(), Error> {
        let result =
            request(name, &[]).and_then(|mut request| ioctl(&self.ipv4, SIOCIFDESTROY, &mut request));
        allow(result, libc::ENXIO).map_err(|error| kernel(format!("remove interface {name}"), error))
    }

    /// Gives an interface another name.
    pub fn rename(&self, name: &str, new: &str) -> Result<(), Error> {
        let bytes = name_of(new).map_err(|error| kernel(format!("rename {name} to {new}"), error))?;
        // The new name is where the pointer points to.
        let pointer = (bytes.as_ptr() as usize).to_ne_bytes();
        self.change(&format!("give the name {new} to"), SIOCSIFNAME, name, &pointer)
    }

    /// Sets an interface's MTU, in bytes.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), Error> {
        self.change(&format!("set the MTU {mtu} of"), SIOCSIFMTU, name, &mtu.to_ne_bytes())
    }

    /// Sets an interface's Ethernet address.
    pub fn set_mac(&self, name: &str, mac: [u8; 6]) -> Result<(), Error> {
        // struct sockaddr: length of the address, family, address.
        let mut address = [0; 16];
        address[0] = 6;
        address[1] = u8::try_from(libc::AF_LINK).unwrap_or_default();
        address[2..8].copy_from_slice(&mac);
        self.change(&format!("set the Ethernet address {} of", shown(mac)), SIOCSIFLLADDR, name, &address)
    }

    /// Puts an interface into a group; fine if it is in it.
    pub fn add_group(&self, name: &str, group: &str) -> Result<(), Error> {
        let add = || {
            let mut request = IfGroupReq { name: name_of(name)?, len: 0, _pad: 0, group: name_of(group)? };
            allow(ioctl(&self.ipv4, SIOCAIFGROUP, &mut request), libc::EEXIST)
        };
        add().map_err(|error| kernel(format!("put interface {name} into group {group}"), error))
    }

    /// Takes an interface out of a group; fine if it is not in it.
    pub fn remove_group(&self, name: &str, group: &str) -> Result<(), Error> {
        let remove = || {
            let mut request = IfGroupReq { name: name_of(name)?, len: 0, _pad: 0, group: name_of(group)? };
            allow(ioctl(&self.ipv4, SIOCDIFGROUP, &mut request), libc::ENOENT)
        };
        remove().map_err(|error| kernel(format!("take interface {name} out of group {group}"), error))
    }

    /// The groups that an interface is in.
    pub fn groups(&self, name: &str) -> Result<Vec<String>, Error> {
        /// Room for names that come between the two questions.
        const MORE: usize = 8;
        let ask = || {
            let mut request = IfGroupReq { name: name_of(name)?, len: 0, _pad: 0, group: [0; 16] };
            ioctl(&self.ipv4, SIOCGIFGROUP, &mut request)?;
            let mut names = vec![[0_u8; 16]; request.len as usize / 16 + MORE];
            request.len = (names.len() * 16) as u32;
            // The pointer is the other member of the union that `group` is in.
            request.group[..8].copy_from_slice(&(names.as_mut_ptr() as usize).to_ne_bytes());
            ioctl(&self.ipv4, SIOCGIFGROUP, &mut request)?;
            // The kernel does not tell how many it wrote: what it did not write is empty.
            names.retain(|name| name[0] != 0);
            Ok(names)
        };
        let names: Vec<[u8; 16]> =
            ask().map_err(|error| kernel(format!("ask for the groups of interface {name}"), error))?;
        let text = |name: &[u8; 16]| {
            let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            String::from_utf8_lossy(&name[..len]).into_owned()
        };
        Ok(names.iter().map(text).collect())
    }

    /// Moves an interface into a jail's network stack.
    pub fn move_into(&self, name: &str, jail: i32) -> Result<(), Error> {
        self.change(&format!("move into jail {jail}"), SIOCSIFVNET, name, &jail.to_ne_bytes())
    }

    /// Brings an interface up.
    pub fn raise(&self, name: &str) -> Result<(), Error> {
        self.set_up(name, true).map_err(|error| kernel(format!("raise interface {name}"), error))
    }

    /// Brings an interface down; fine if there is none.
    pub fn lower(&self, name: &str) -> Result<(), Error> {
        allow(self.set_up(name, false), libc::ENXIO)
            .map_err(|error| kernel(format!("lower interface {name}"), error))
    }

    /// Whether an interface's driver works: some come up and do not.
    pub fn is_running(&self, name: &str) -> Result<bool, Error> {
        // net/if.h
        const IFF_DRV_RUNNING: u64 = 0x40;
        let ask = || {
            let mut flags = request(name, &[])?;
            ioctl(&self.ipv4, SIOCGIFFLAGS, &mut flags)?;
            Ok(flags.value[0] & IFF_DRV_RUNNING != 0)
        };
        ask().map_err(|error| kernel(format!("look at interface {name}"), error))
    }

    fn set_up(&self, name: &str, up: bool) -> io::Result<()> {
        let mut flags = request(name, &[])?;
        ioctl(&self.ipv4, SIOCGIFFLAGS, &mut flags)?;
        // ifr_flags and ifr_flagshigh are the first two of the value's 16-bit words; IFF_UP is bit 0.
        flags.value[0] = flags.value[0] & !1 | u64::from(up);
        ioctl(&self.ipv4, SIOCSIFFLAGS, &mut flags)
    }

    /// A command of the interface's driver, with the structure it takes.
    pub fn driver<T>(&self, name: &str, command: u64, get: bool, data: &mut T) -> io::Result<()> {
        let mut request = IfDrv {
            name: name_of(name)?,
            command,
            len: size_of::<T>(),
            data: std::ptr::from_mut(data).cast(),
        };
        // The driver reads and writes `len` bytes behind `data`, which lives until the call returns.
        ioctl(&self.ipv4, if get { SIOCGDRVSPEC } else { SIOCSDRVSPEC }, &mut request)
    }
}

/// The interface called `name`.
pub fn find(name: &str) -> Result<Option<Link>, Error> {
    Ok(look(|one| one == name)?.pop())
}

/// The interface called `name`, which must be there.
pub fn need(name: &str) -> Result<Link, Error> {
    find(name)?
        .ok_or_else(|| kernel(format!("look at interface {name}"), io::Error::from_raw_os_error(libc::ENXIO)))
}

/// Every interface of the network stack the process is in.
pub fn links() -> Result<Vec<Link>, Error> {
    look(|_| true)
}

/// The interfaces whose names are wanted.
fn look(wanted: impl Fn(&str) -> bool) -> Result<Vec<Link>, Error> {
    let mut list = std::ptr::null_mut();
    // SAFETY: getifaddrs writes one pointer.
    if unsafe { libc::getifaddrs(&raw mut list) } < 0 {
        return Err(kernel("list interfaces", io::Error::last_os_error()));
    }
    let mut found: Vec<Link> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut next = list;
    // SAFETY: the list was made by getifaddrs and is not freed before the loop ends; each entry's name is a C string,
    // and its address, where there is one, has as many bytes as its family's structure.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: see above.
        let name = unsafe { std::ffi::CStr::from_ptr(entry.ifa_name) }.to_string_lossy();
        if !wanted(&name) {
            continue;
        }
        let at = *places.entry(name.into_owned()).or_insert_with_key(|name| {
            found.push(Link { name: name.clone(), ..Link::default() });
            found.len() - 1
        });
        let link = &mut found[at];
        link.up = entry.ifa_flags & libc::IFF_UP.cast_unsigned() != 0;
        link.loopback = entry.ifa_flags & libc::IFF_LOOPBACK.cast_unsigned() != 0;
        // SAFETY: see above.
        unsafe { read_entry(link, entry) };
    }
    // SAFETY: made by getifaddrs, freed once.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// # Safety
///
/// `entry` is one of getifaddrs(3)'s.
unsafe fn read_entry(link: &mut Link, entry: &libc::ifaddrs) {
    // SAFETY: by the caller's promise.
    let Some(address) = (unsafe { entry.ifa_addr.as_ref() }) else { return };
    match i32::from(address.sa_family) {
        libc::AF_LINK => {
            // SAFETY: the family says what it is; ifa_data of AF_LINK is a struct if_data.
            let (sdl, data) = unsafe {
                (
                    &*entry.ifa_addr.cast::<libc::sockaddr_dl>(),
                    entry.ifa_data.cast::<libc::if_data>().as_ref(),
                )
            };
            link.index = sdl.sdl_index;
            let start = usize::from(sdl.sdl_nlen);
            if sdl.sdl_alen == 6
                && let Some(bytes) = sdl.sdl_data.get(start..start + 6)
            {
                let mut mac = [0; 6];
                for (to, from) in mac.iter_mut().zip(bytes) {
                    *to = from.to_ne_bytes()[0];
                }
                link.mac = Some(mac);
            }
            if let Some(data) = data {
                link.mtu = data.ifi_mtu;
                link.carried = [data.ifi_ipackets, data.ifi_ibytes, data.ifi_opackets, data.ifi_obytes];
                link.lost = [data.ifi_ierrors, data.ifi_iqdrops, data.ifi_oerrors, data.ifi_oqdrops];
            }
        }
        libc::AF_INET | libc::AF_INET6 => {
            // SAFETY: both are addresses of the family, or the mask is missing.
            let (ip, mask) =
                unsafe { (read_ip(entry.ifa_addr), read_ip_of(entry.ifa_netmask, address.sa_family)) };
            if let (Some(ip), Some(mask)) = (ip, mask) {
                let len = match mask {
                    IpAddr::V4(mask) => u32::from(mask).leading_ones(),
                    IpAddr::V6(mask) => u128::from(mask).leading_ones(),
                };
                link.addresses.extend(u8::try_from(len).ok().and_then(|len| IpNet::new(ip, len).ok()));
            }
        }
        _ => {}
    }
}

/// # Safety
///
/// `address` points to a socket address that is as long as its family's.
unsafe fn read_ip(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: by the caller's promise.
    unsafe { read_ip_of(address, address.as_ref()?.sa_family) }
}

/// # Safety
///
/// `address` is null or points to a socket address of this family.
unsafe fn read_ip_of(address: *const libc::sockaddr, family: u8) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    if i32::from(family) == libc::AF_INET {
        // SAFETY: by the caller's promise.
        let address = unsafe { &*address.cast::<libc::sockaddr_in>() };
        return Some(IpAddr::V4(u32::from_be(address.sin_addr.s_addr).into()));
    }
    // SAFETY: by the caller's promise.
    let mut octets = unsafe { (*address.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr };
    if octets[0] == 0xfe && octets[1] & 0xc0 == 0x80 {
        // The kernel keeps the scope there.
        octets[2..4].fill(0);
    }
    Some(IpAddr::V6(octets.into()))
}

//! Taps: the host's ends of the VM's network devices.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use skep_netlink::Route;

use crate::network::traffic::{Count, HostEnd};

/// Where their numbers begin: whoever lists the interfaces of a namespace by number finds the container's first.
const FIRST: u32 = 1 << 24;

/// The number of the interface of the VM's device `number`, in its namespace.
fn index(number: usize) -> io::Result<u32> {
    u32::try_from(number).ok().and_then(|number| FIRST.checked_add(number)).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("no interface can have the number of device {number}"),
        )
    })
}

/// What the tap of the VM's device `number` carried, in the namespace of `route`.
pub(super) fn carried(route: &mut Route, number: usize) -> io::Result<HostEnd> {
    let mut question = LinkMessage::default();
    question.header.index = index(number)?;
    let answer = route.get(Message::GetLink(question))?;
    let Some(Message::NewLink(link)) = answer else { return Err(io::ErrorKind::NotFound.into()) };
    let stats = link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(stats),
        _ => None,
    });
    let stats = stats.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no word of it"))?;
    Ok(HostEnd {
        taken: Count {
            packets: stats.rx_packets,
            bytes: stats.rx_bytes,
            errors: stats.rx_errors,
            dropped: stats.rx_dropped,
        },
        given: Count {
            packets: stats.tx_packets,
            bytes: stats.tx_bytes,
            errors: stats.tx_errors,
            dropped: stats.tx_dropped,
        },
    })
}

/// Makes a tap in the calling thread's network namespace; it lasts as long as its descriptor. Source of facts: the
/// kernel's `Documentation/networking/tuntap.rst`, `include/uapi/linux/if_tun.h`.
pub(super) fn open(name: &str, number: usize) -> io::Result<OwnedFd> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let index = index(number)?;
    // SAFETY: an ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    #[expect(clippy::cast_possible_truncation, reason = "flags of 15 bits")]
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFINDEX reads an unsigned int, which lives until the call returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFINDEX, &raw const index) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives until the call returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun.into())
}

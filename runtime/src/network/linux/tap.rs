//! Taps: the host's ends of the VM's network devices.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Where their numbers begin: whoever lists the interfaces of a namespace by number finds the container's first.
const FIRST: u32 = 1 << 24;

/// Makes a tap in the calling thread's network namespace; it lasts as long as its descriptor. Source of facts: the
/// kernel's `Documentation/networking/tuntap.rst`, `include/uapi/linux/if_tun.h`.
pub(super) fn open(name: &str, number: usize) -> io::Result<OwnedFd> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let index = FIRST + u32::try_from(number).map_err(io::Error::other)?;
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

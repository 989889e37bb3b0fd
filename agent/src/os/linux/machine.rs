//! The machine as a whole: its end, its randomness.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;

use nix::sys::reboot::{RebootMode, reboot};
use nix::time::ClockId;

use crate::os::ENTROPY_MAX;

nix::ioctl_write_ptr_bad!(add_entropy, nix::request_code_write!(b'R', 0x03, 8), EntropyHead);

/// Counts from boot, suspended time included.
pub(crate) const BOOT_CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;

/// Resets the machine; returns why it could not.
pub(crate) fn reset() -> nix::Error {
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    error
}

/// Powers the machine off; returns why it could not.
pub(crate) fn power_off() -> nix::Error {
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    error
}

/// `struct rand_pool_info` of linux/random.h, with room for its buffer.
#[repr(C)]
struct EntropyHead {
    bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; ENTROPY_MAX],
}

/// Mixes the host's entropy in and counts it in full: the host is trusted.
pub(crate) fn credit(entropy: &[u8]) -> std::io::Result<()> {
    let mut info = EntropyHead { bits: 0, bytes: 0, buffer: [0; ENTROPY_MAX] };
    let length = entropy.len().min(ENTROPY_MAX);
    info.buffer[..length].copy_from_slice(&entropy[..length]);
    info.bytes = libc::c_int::try_from(length).map_err(std::io::Error::other)?;
    info.bits = info.bytes * 8;
    let mut random = std::fs::OpenOptions::new().write(true).open("/dev/random")?;
    random.flush()?;
    // SAFETY: RNDADDENTROPY reads a rand_pool_info and as many bytes behind it as that says, all of them here.
    unsafe { add_entropy(random.as_raw_fd(), &raw const info) }?;
    Ok(())
}

/// The agent's own resident size (`VmRSS` of proc(5)).
pub(crate) fn resident_kib() -> Option<u64> {
    resident_kib_of(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn resident_kib_of(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_size_is_read() {
        assert_eq!(resident_kib_of("VmHWM:\t    9000 kB\nVmRSS:\t    4096 kB\nRssAnon: 1 kB\n"), Some(4096));
        assert_eq!(resident_kib_of("VmRSS: lots"), None);
        assert!(resident_kib().is_some_and(|kib| kib > 0));
    }
}

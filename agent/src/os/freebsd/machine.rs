//! The machine as a whole: its end, its clock, its randomness.

use std::io::Write as _;

use nix::time::ClockId;

/// Counts from boot, suspended time included: `clock_gettime(2)`.
pub(crate) const BOOT_CLOCK: ClockId = ClockId::CLOCK_UPTIME;

/// `sys/reboot.h`.
const RB_NOSYNC: libc::c_int = 0x004;

/// Resets the machine; returns why it could not.
pub(crate) fn reset() -> nix::Error {
    // What the host shares is the host's: nothing has to reach a disk of the guest's.
    end(RB_NOSYNC)
}

/// Powers the machine off; returns why it could not.
pub(crate) fn power_off() -> nix::Error {
    end(RB_NOSYNC | libc::RB_POWEROFF)
}

fn end(how: libc::c_int) -> nix::Error {
    // SAFETY: touches no memory.
    unsafe { libc::reboot(how) };
    nix::Error::last()
}

/// Mixes the host's entropy in: random(4) takes what is written.
pub(crate) fn credit(entropy: &[u8]) -> std::io::Result<()> {
    std::fs::OpenOptions::new().write(true).open("/dev/random")?.write_all(entropy)
}

/// The most that the agent itself has had resident.
pub(crate) fn resident_kib() -> Option<u64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).ok()?;
    u64::try_from(usage.max_rss()).ok()
}

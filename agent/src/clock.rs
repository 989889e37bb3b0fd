//! The guest's clocks, as the protocol carries them: nanoseconds in an `i64`.

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::os::machine::BOOT_CLOCK;

/// Nanoseconds since the guest booted, suspended time included.
pub(crate) fn boottime_ns() -> i64 {
    read(BOOT_CLOCK)
}

/// Nanoseconds since the epoch, as the guest believes.
pub(crate) fn realtime_ns() -> i64 {
    read(ClockId::CLOCK_REALTIME)
}

/// Steps the guest's clock to the host's.
pub(crate) fn set_realtime(ns: i64) -> nix::Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, nix::sys::time::TimeSpec::nanoseconds(ns))
}

fn read(clock: ClockId) -> i64 {
    // Both clocks exist in every kernel that starts this program, so the call cannot fail.
    clock_gettime(clock).map_or(0, |time| time.num_nanoseconds())
}

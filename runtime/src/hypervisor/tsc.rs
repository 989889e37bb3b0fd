//! The rate of the host's time stamp counter, which a guest reads as its own.
//!
//! A Linux guest that is not told compares it with emulated timers, and on a busy host gets it wrong: under software
//! emulation on a loaded machine, 9 boots of 75 had a clock that ran 2.6 to 18 times too fast or stood still, until
//! the guest's own watchdog noticed. QEMU's emulator hands out the host's counter
//! (`cpu_get_host_ticks`, include/qemu/timer.h), bhyve adds an offset.

use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

/// How far apart the two readings are at least: each is off by less than a microsecond, so the rate by less than
/// 200 parts in a million, and the guest refines it by itself within 1 %.
const SPAN: Duration = Duration::from_millis(10);
/// How often a reading is tried: a thread may lose its processor in the midst of one.
const TRIES: usize = 16;

/// The counter at a time.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    ticks: u64,
}

static FIRST: LazyLock<Option<Reading>> = LazyLock::new(read);
static PARAMETER: OnceLock<Option<String>> = OnceLock::new();

/// Takes the first reading, so that [`parameter`] need not wait later.
pub(super) fn prepare() {
    LazyLock::force(&FIRST);
}

/// The kernel parameter that tells the rate (`tsc_early_khz`, Documentation/admin-guide/kernel-parameters.txt), with a
/// space before it; empty where the rate is not known.
pub(super) async fn parameter() -> &'static str {
    if let (None, Some(first)) = (PARAMETER.get(), *FIRST) {
        tokio::time::sleep(SPAN.saturating_sub(first.at.elapsed())).await;
    }
    let known = PARAMETER.get_or_init(|| Some(format!(" tsc_early_khz={}", kilohertz((*FIRST)?, read()?)?)));
    known.as_deref().unwrap_or_default()
}

/// Of several readings the one that took least.
fn read() -> Option<Reading> {
    (0..TRIES)
        .filter_map(|_| {
            let at = Instant::now();
            let ticks = counter()?;
            Some((at.elapsed(), Reading { at, ticks }))
        })
        .min_by_key(|(took, _)| *took)
        .map(|(_, reading)| reading)
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::unnecessary_wraps)] // elsewhere there is none
fn counter() -> Option<u64> {
    // SAFETY: every x86_64 processor has the instruction, it touches no memory, and no system that this runs on forbids
    // it to programs.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

/// The rate, unless the readings make no sense.
fn kilohertz(first: Reading, second: Reading) -> Option<u32> {
    let ticks = u128::from(second.ticks.checked_sub(first.ticks)?);
    let nanoseconds = second.at.checked_duration_since(first.at)?.as_nanos();
    let rate = ticks.checked_mul(1_000_000)?.checked_div(nanoseconds)?;
    u32::try_from(rate).ok().filter(|rate| *rate > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_ticks_by_time() {
        let first = Reading { at: Instant::now(), ticks: 1_000 };
        let after = |ticks, ms| Reading { at: first.at + Duration::from_millis(ms), ticks };
        assert_eq!(kilohertz(first, after(25_961_000, 10)), Some(2_596_000));
        // A counter that went back or stands, and no time between.
        assert_eq!(kilohertz(first, after(0, 10)), None);
        assert_eq!(kilohertz(first, after(1_000, 10)), None);
        assert_eq!(kilohertz(first, after(2_000, 0)), None);
    }

    #[cfg(target_arch = "x86_64")]
    #[tokio::test]
    async fn the_guest_is_told_this_machines_rate() {
        prepare();
        let told = parameter().await;
        let khz: u32 = told.strip_prefix(" tsc_early_khz=").unwrap().parse().unwrap();
        // Every processor since 2005, and not by a factor off.
        assert!((500_000..10_000_000).contains(&khz), "{khz}");
        assert_eq!(parameter().await, told);
    }
}

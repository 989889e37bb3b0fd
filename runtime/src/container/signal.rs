//! Signal numbers: callers on this host count as this host does, a Linux guest as Linux does.

use super::ContainerError;

/// Largest signal number of Linux.
const MOST: u32 = 64;

/// The first signal for real-time use: of FreeBSD (`sys/signal.h`) and of Linux' kernel plus the two that its C
/// libraries keep to themselves (signal(7)).
const REAL_TIME: (u32, u32) = (65, 34);

/// Signals that both have under different numbers: FreeBSD's (`sys/signal.h`) and Linux' (signal(7)).
const RENUMBERED: [(u32, u32); 10] = [
    (10, 7),  // BUS
    (12, 31), // SYS
    (16, 23), // URG
    (17, 19), // STOP
    (18, 20), // TSTP
    (19, 18), // CONT
    (20, 17), // CHLD
    (23, 29), // IO
    (30, 10), // USR1
    (31, 12), // USR2
];

/// FreeBSD's that Linux has not: EMT, INFO, THR, LIBRT.
const UNKNOWN: [u32; 4] = [7, 29, 32, 33];

/// What a Linux guest calls the signal that a caller on this host calls `number`.
pub(super) fn for_linux(number: u32) -> Result<u32, ContainerError> {
    let signal = if cfg!(target_os = "freebsd") { from_freebsd(number) } else { Some(number) };
    signal.filter(|signal| *signal <= MOST).ok_or_else(|| ContainerError::Invalid {
        what: "signal".into(),
        reason: if cfg!(target_os = "freebsd") {
            format!("{number}, as FreeBSD counts, is no signal that Linux has")
        } else {
            format!("{number} is not one of 0 to {MOST}")
        },
    })
}

fn from_freebsd(number: u32) -> Option<u32> {
    if let Some((_, linux)) = RENUMBERED.iter().find(|(freebsd, _)| *freebsd == number) {
        return Some(*linux);
    }
    match number {
        unknown if UNKNOWN.contains(&unknown) => None,
        same if same < UNKNOWN[2] => Some(same),
        real_time => Some(real_time.checked_sub(REAL_TIME.0)? + REAL_TIME.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freebsds_numbers_become_those_of_linux() {
        for (freebsd, linux) in
            [(0, 0), (1, 1), (9, 9), (15, 15), (30, 10), (19, 18), (28, 28), (65, 34), (95, 64)]
        {
            assert_eq!(from_freebsd(freebsd), Some(linux), "{freebsd}");
        }
        // Go programs send it to themselves all the time, and ctr passes it on: it must not end anything.
        assert_eq!(from_freebsd(16), Some(23));
        for none in [7, 29, 32, 33, 34, 64] {
            assert_eq!(from_freebsd(none), None, "{none}");
        }
    }

    #[test]
    fn no_two_signals_become_one() {
        let mut all: Vec<u32> = (0..=128).filter_map(from_freebsd).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        assert!(for_linux(15).is_ok());
        let error = for_linux(200).unwrap_err().to_string();
        assert!(error.contains("200"), "{error}");
    }
}

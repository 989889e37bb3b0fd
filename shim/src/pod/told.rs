//! Figures that never go down.

use std::sync::atomic::{AtomicU64, Ordering};

/// The most processor time that was told, microseconds.
#[derive(Debug, Default)]
pub(super) struct Told(AtomicU64);

impl Told {
    /// `us`, or what was told before if that is more: such a figure never goes down, but the guest's clock and this
    /// host's do not count alike.
    pub(super) fn at_least(&self, us: u64) -> u64 {
        self.0.fetch_max(us, Ordering::Relaxed).max(us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_never_goes_down() {
        let told = Told::default();
        assert_eq!([5, 3, 9].map(|us| told.at_least(us)), [5, 5, 9]);
    }
}

//! When each phase was over.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::record::{self, RecordError};

/// More marks than any caller makes.
const MOST_MARKS: usize = 256;

/// A clock that notes when each phase was over.
#[derive(Debug)]
pub struct Timings {
    start: Instant,
    marks: Mutex<Vec<Mark>>,
}

/// The end of a phase.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Which phase.
    pub name: String,
    /// Microseconds since the sandbox was asked for.
    pub at_us: u64,
}

/// `timings.json`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TimingsFile {
    /// 1.
    pub version: u32,
    /// In the order in which the phases ended.
    pub marks: Vec<Mark>,
    /// Calls to the guest's agent that were answered so far.
    pub round_trips: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self { start: Instant::now(), marks: Mutex::new(Vec::new()) }
    }
}

impl Timings {
    /// Notes that a phase is over.
    pub fn mark(&self, name: &str) {
        self.mark_at(name, self.start.elapsed());
    }

    /// Notes that a phase was over so long after the start.
    pub fn mark_at(&self, name: &str, at: Duration) {
        let at_us = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(phase = name, at_us);
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.len() < MOST_MARKS {
            marks.push(Mark { name: name.to_owned(), at_us });
        }
    }

    /// Notes that a phase was over at that time.
    pub fn mark_when(&self, name: &str, at: Instant) {
        self.mark_at(name, at.saturating_duration_since(self.start));
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// All marks in the order of their making.
    pub fn marks(&self) -> Vec<Mark> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn save(&self, path: &Path, round_trips: u64) -> Result<(), RecordError> {
        record::write(path, &TimingsFile { version: 1, marks: self.marks(), round_trips })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_kept_in_order_and_bounded() {
        let before = Instant::now();
        let timings = Timings::default();
        timings.mark("vmm-started");
        timings.mark_at("later", Duration::from_millis(7));
        timings.mark_when("before", before);
        let marks = timings.marks();
        assert_eq!(marks[0].name, "vmm-started");
        assert_eq!(marks[1], Mark { name: "later".into(), at_us: 7000 });
        assert_eq!(marks[2], Mark { name: "before".into(), at_us: 0 });
        for _ in 0..1000 {
            timings.mark("again");
        }
        assert_eq!(timings.marks().len(), MOST_MARKS);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("timings.json");
        timings.save(&path, 3).unwrap();
        let file: TimingsFile = record::read(&path, 1).unwrap().unwrap();
        assert_eq!((file.round_trips, file.marks.len()), (3, MOST_MARKS));
    }
}

//! How long each phase of a task took.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::progress::seconds;

/// The phases so far, in order.
#[derive(Debug, Default)]
pub(crate) struct Phases(Vec<(String, Duration)>);

impl Phases {
    /// Runs a phase and notes its time.
    pub(crate) fn time<T>(&mut self, name: &str, phase: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = phase()?;
        self.add(name, started.elapsed());
        Ok(result)
    }

    /// Notes a time that was taken elsewhere.
    pub(crate) fn add(&mut self, name: &str, time: Duration) {
        self.0.push((name.to_owned(), time));
    }

    /// One line for each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let width = self.0.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
        self.0.iter().map(|(name, time)| format!("{name:<width$}  {:>12}", seconds(*time))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_line_up() {
        let mut phases = Phases::default();
        phases.add("a", Duration::from_secs(1));
        phases.add("long name", Duration::from_secs(100));
        assert_eq!(phases.lines(), ["a                1.00 s", "long name       100.0 s"]);
    }
}

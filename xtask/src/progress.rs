//! What the user sees of a long step: a spinner on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a step that runs outside a terminal says that it still does.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// One step, from its announcement to its result.
pub(crate) struct Step {
    what: String,
    bar: Option<ProgressBar>,
    started: Instant,
    last_beat: Instant,
    last_note: String,
}

impl Step {
    /// Announces `what` ("building the guest kernel").
    pub(crate) fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = ProgressBar::new_spinner();
        let bar = if bar.is_hidden() {
            println!("      {what} ...");
            None
        } else {
            if let Ok(style) =
                ProgressStyle::with_template("  {spinner}   {prefix}  {elapsed}  {wide_msg:.dim}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            Some(bar)
        };
        let now = Instant::now();
        Self { what, bar, started: now, last_beat: now, last_note: String::new() }
    }

    /// Shows what the step is at.
    pub(crate) fn note(&mut self, note: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(note.to_owned());
        } else {
            note.clone_into(&mut self.last_note);
            self.beat();
        }
    }

    /// To be called often while nothing new is to be said: now and then it says that the step still goes on.
    pub(crate) fn beat(&mut self) {
        if self.bar.is_none() && self.last_beat.elapsed() >= HEARTBEAT {
            self.last_beat = Instant::now();
            println!("      ... {} ({}): {}", self.what, seconds(self.started.elapsed()), self.last_note);
        }
    }

    /// Ends the step well. `result` says what came of it.
    pub(crate) fn done(mut self, result: &str) {
        let bar = self.bar.take();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let separator = if result.is_empty() { "" } else { ": " };
        println!("  ok  {}{separator}{result} ({})", self.what, seconds(self.started.elapsed()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A heading between phases.
pub(crate) fn heading(text: &str) {
    println!("\n== {text}");
}

/// A line that stays.
pub(crate) fn line(text: &str) {
    println!("      {text}");
}

/// A duration as a human reads it: "0.42 s", "12.3 s", "4 min 10 s".
pub(crate) fn seconds(duration: Duration) -> String {
    let total = duration.as_secs_f64();
    if total < 10.0 {
        format!("{total:.2} s")
    } else if total < 120.0 {
        format!("{total:.1} s")
    } else {
        format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60)
    }
}

/// A size as a human reads it, in MB of 10^6 bytes.
pub(crate) fn megabytes(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // shown with two decimals
    let megabytes = bytes as f64 / 1e6;
    format!("{megabytes:.2} MB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_the_digits_that_matter() {
        assert_eq!(seconds(Duration::from_millis(421)), "0.42 s");
        assert_eq!(seconds(Duration::from_millis(12_340)), "12.3 s");
        assert_eq!(seconds(Duration::from_secs(250)), "4 min 10 s");
    }
}

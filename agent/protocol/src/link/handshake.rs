//! How a session begins, on either side.

use std::time::Duration;

/// First and longest pause between two announcements or hellos.
const GUEST_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
const HOST_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// Two hellos are never closer, however often a guest announces itself.
const LEAST_PAUSE: Duration = Duration::from_millis(5);

/// Says something again and again, less and less often.
#[derive(Debug)]
pub(super) struct Repeat {
    at: Duration,
    pause: Duration,
    longest: Duration,
    said: Option<Duration>,
}

impl Repeat {
    fn new(now: Duration, (first, longest): (Duration, Duration)) -> Self {
        Self { at: now, pause: first, longest, said: None }
    }

    /// A guest's announcements.
    pub(super) fn announcing(now: Duration) -> Self {
        Self::new(now, GUEST_PAUSE)
    }

    /// A host's hellos.
    pub(super) fn greeting(now: Duration) -> Self {
        Self::new(now, HOST_PAUSE)
    }

    pub(super) fn deadline(&self) -> Duration {
        self.at
    }

    /// Whether it is time; the next time is set.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        if now < self.at {
            return false;
        }
        self.said = Some(now);
        self.at = now + self.pause;
        self.pause = (self.pause * 2).min(self.longest);
        true
    }

    /// The peer gave a reason to say it now.
    pub(super) fn hurry(&mut self, now: Duration) {
        let soonest = self.said.map_or(now, |said| said + LEAST_PAUSE).max(now);
        self.at = self.at.min(soonest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn announces_less_and_less_often() {
        let mut repeat = Repeat::announcing(ms(5));
        let times: Vec<_> = (0..400).filter(|t| repeat.is_due(ms(*t))).collect();
        assert_eq!(times, [5, 15, 35, 75, 155, 315]);
        let times: Vec<_> = (400..1200).filter(|t| repeat.is_due(ms(*t))).collect();
        assert_eq!(times, [475 + 40, 715, 915, 1115]);
    }

    #[test]
    fn an_announcement_is_answered_at_once_but_not_for_ever() {
        let mut repeat = Repeat::greeting(ms(0));
        assert!(repeat.is_due(ms(0)) && !repeat.is_due(ms(6)));
        repeat.hurry(ms(7));
        assert!(repeat.is_due(ms(7)));
        repeat.hurry(ms(8));
        assert!(!repeat.is_due(ms(11)) && repeat.is_due(ms(12)));
    }
}

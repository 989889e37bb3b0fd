//! How long the agent waits for what it starts itself: less than the host waits for the agent, so that the host is told
//! what was waited for.

use std::sync::OnceLock;
use std::time::Duration;

/// How long the host waits for an answer where it does not say otherwise.
pub(crate) const CALL: Duration = Duration::from_secs(30);

static HOST: OnceLock<Duration> = OnceLock::new();

/// Takes what the host said at boot.
pub(crate) fn install(call: Duration) {
    // Said once, before anything waits.
    let _ = HOST.set(call);
}

/// How long a helper may take, and a process from being let go to running its program.
pub(crate) fn helper() -> Duration {
    within(*HOST.get().unwrap_or(&CALL))
}

fn within(call: Duration) -> Duration {
    call * 5 / 6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_hears_of_it_in_time() {
        assert_eq!(within(CALL), Duration::from_secs(25));
        assert_eq!(within(Duration::from_secs(120)), Duration::from_secs(100));
        assert!(within(Duration::from_secs(1)) < Duration::from_secs(1));
    }
}

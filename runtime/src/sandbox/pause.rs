//! Stopping a sandbox's virtual CPUs and letting them run again.

use std::time::{SystemTime, UNIX_EPOCH};

use skep_protocol::api;

use super::{Sandbox, SandboxError, State};

impl Sandbox {
    /// Stops its virtual CPUs: nothing in it runs, answers or is told until [`Sandbox::resume`]. It can be destroyed.
    pub async fn pause(&self) -> Result<(), SandboxError> {
        self.transition(State::pause)?;
        // From here on its silence means nothing.
        self.session.set_paused(true);
        if let Err(error) = self.vm.pause().await {
            self.session.set_paused(false);
            let _ = self.transition(State::resume);
            return Err(error.into());
        }
        Ok(())
    }

    /// Lets them run again and sets the guest's clock, which has stood still.
    pub async fn resume(&self) -> Result<(), SandboxError> {
        self.transition(State::resume)?;
        if let Err(error) = self.vm.resume().await {
            let _ = self.transition(State::pause);
            return Err(error.into());
        }
        self.session.set_paused(false);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let request = api::SetClockRequest {
            realtime_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            ..api::SetClockRequest::default()
        };
        let answer = self.session.agent().set_clock(&request).await?;
        let behind = (request.realtime_ns.saturating_sub(answer.was_ns)) / 1_000_000;
        tracing::debug!(sandbox = self.id, "the guest's clock was {behind} ms behind");
        Ok(())
    }
}

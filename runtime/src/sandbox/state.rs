//! Where a sandbox is in its life: pure.

use std::fmt;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its agent has answered.
    Ready,
    /// Its virtual CPUs are stopped.
    Paused,
    /// It is being undone.
    Destroying,
    /// Undoing it has failed; something is left, and destroying it again goes on.
    Broken,
    /// Nothing of it is left.
    Destroyed,
}

/// Something cannot happen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sandbox is {state}")]
pub struct StateError {
    /// Where it is.
    pub state: State,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Destroying => "being destroyed",
            Self::Broken => "partly destroyed",
            Self::Destroyed => "destroyed",
        })
    }
}

impl State {
    /// Whether containers may be made in it.
    pub fn is_ready(self) -> Result<(), StateError> {
        if self == Self::Ready { Ok(()) } else { Err(StateError { state: self }) }
    }

    /// Its virtual CPUs are to stop.
    pub(super) fn pause(self) -> Result<Self, StateError> {
        self.is_ready().map(|()| Self::Paused)
    }

    /// They are to run again.
    pub(super) fn resume(self) -> Result<Self, StateError> {
        if self == Self::Paused { Ok(Self::Ready) } else { Err(StateError { state: self }) }
    }

    /// Somebody destroys it: possible in every state. What is destroyed stays so.
    #[expect(clippy::unnecessary_wraps, reason = "a transition like the others")]
    pub(super) fn destroy_begins(self) -> Result<Self, StateError> {
        Ok(if self == Self::Destroyed { Self::Destroyed } else { Self::Destroying })
    }

    /// Undoing has come to its end, with or without errors.
    pub(super) fn destroy_ends(self, ok: bool) -> Self {
        match (self, ok) {
            (Self::Destroyed, _) | (_, true) => Self::Destroyed,
            (_, false) => Self::Broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [State; 5] = [State::Ready, State::Paused, State::Destroying, State::Broken, State::Destroyed];

    #[test]
    fn every_state_allows_destroying() {
        for state in ALL {
            let begun = state.destroy_begins().unwrap();
            assert_eq!(begun.destroy_ends(true), State::Destroyed, "{state}");
        }
    }

    #[test]
    fn what_failed_can_be_destroyed_again_and_what_is_gone_stays_gone() {
        let broken = State::Ready.destroy_begins().unwrap().destroy_ends(false);
        assert_eq!(broken, State::Broken);
        assert_eq!(broken.destroy_begins().unwrap(), State::Destroying);
        assert_eq!(State::Destroyed.destroy_begins().unwrap(), State::Destroyed);
        assert_eq!(State::Destroyed.destroy_ends(false), State::Destroyed);
    }

    #[test]
    fn pausing_and_resuming_alternate() {
        assert_eq!(State::Ready.pause().unwrap().resume(), Ok(State::Ready));
        for state in ALL {
            assert_eq!(state.pause().is_ok(), state == State::Ready);
            assert_eq!(state.resume().is_ok(), state == State::Paused);
        }
    }

    #[test]
    fn only_a_ready_sandbox_takes_containers() {
        for state in ALL {
            assert_eq!(state.is_ready().is_ok(), state == State::Ready);
        }
    }
}

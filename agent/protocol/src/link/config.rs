//! What a link is told and what it tells.

use super::limits::Limits;

/// What a link is made with.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// What this side takes.
    pub limits: Limits,
    /// What this side sends at most, whatever the peer says that it takes.
    pub most: Limits,
    /// Version of what is spoken over the link; the peer is told, and tells its own.
    pub version: u32,
    /// So many probes go unanswered before the session ends; 0: no end.
    pub patience: u32,
}

impl Config {
    /// A host's: about five minutes of silence while data is unacknowledged end a session.
    pub const HOST: Self = Self {
        limits: Limits::HOST,
        most: Limits::TO_ANY_GUEST,
        version: crate::PROTOCOL_VERSION,
        patience: 13,
    };

    /// A host's, on a port that the VMM paces: it takes from either side no more than the other has room for.
    pub const PACED_HOST: Self = Self { limits: Limits::PACED_HOST, most: Limits::PACED_GUEST, ..Self::HOST };

    /// This guest's. It trusts its host.
    pub const GUEST: Self = Self {
        limits: Limits::this_guest(),
        most: Limits::PACED_HOST,
        version: crate::PROTOCOL_VERSION,
        patience: 0,
    };

    /// This guest's, on a port that the VMM paces.
    pub const PACED_GUEST: Self = Self { limits: Limits::this_paced_guest(), ..Self::GUEST };
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// By [`super::Link::close`].
    #[error("closed by this side")]
    Closed,
    /// The peer said so.
    #[error("closed by the peer")]
    PeerClosed,
    /// The host began another session, or the guest announced itself anew.
    #[error("the peer began anew")]
    Superseded,
    /// Too many probes went unanswered.
    #[error("the peer answered none of {0} probes")]
    Silent(u32),
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A session began.
    Began {
        /// Its number.
        session: u32,
    },
    /// The session ended. A guest's link waits for the next one; a host's is over.
    Ended {
        /// Its number.
        session: u32,
        /// Why.
        end: End,
    },
    /// The guest speaks another version; a host's link is over.
    Version {
        /// The peer's.
        peer: u32,
    },
}

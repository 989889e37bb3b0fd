//! A DHCP client (RFC 2131) that asks for sandboxes, which do not ask themselves: where the system has no plugin for that.
//!
//! What messages look like is smoltcp's; when which is sent is [`Client`]'s, which knows neither clock nor socket; how long a
//! lease holds is [`Lease`]'s. [`exchange()`] joins them with a [`Line`] to the server.
//!
//! No search for somebody else with the address (RFC 2131, 2.2, asks for one) is made: servers look before they offer.

mod client;
mod config;
mod exchange;
mod lease;
mod message;

pub use client::{Client, Outcome, Step};
pub use config::DhcpConfig;
pub(crate) use exchange::number;
pub use exchange::{Line, exchange};
pub use lease::{Due, Lease, now};
pub use message::{Answer, AnswerKind, Identity, Offered};

use std::net::Ipv4Addr;

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    /// The way to the server failed.
    #[error("cannot ask a DHCP server on {nic}: {error}")]
    Line {
        /// The network card.
        nic: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Nobody answered.
    #[error("no DHCP server answered on {nic} within {seconds} s")]
    Silent {
        /// The network card.
        nic: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A server said no.
    #[error("DHCP server {server} refused: {why}")]
    Refused {
        /// The server.
        server: Ipv4Addr,
        /// In its words, or ours.
        why: String,
    },
    /// Without an uplink there is no server.
    #[error("ipam.type dhcp: wants an `uplink`, the network card behind which the DHCP server is")]
    NoUplink,
}

//! A DHCP client (RFC 2131) that asks for sandboxes, which do not ask themselves: where the system has no plugin for that.
//!
//! What messages look like is smoltcp's; when which is sent is [`Client`]'s, which knows neither clock nor socket; how long a
//! lease holds is [`Lease`]'s. [`exchange()`] joins them with a [`Line`] to the server.
//!
//! Before an address is used, the network outside is asked whether somebody has it ([`Claim`]); then it is declined.

mod arp;
mod client;
mod config;
mod exchange;
mod lease;
mod message;

pub use arp::Claim;
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
    /// What a server gives, somebody has.
    #[error(
        "DHCP server {server} gives {}, which {} has already: look for who was given the address by hand, or for a \
         second server, and exclude it from the server's range",
        claim.address, claim.mac
    )]
    Taken {
        /// The server.
        server: Ipv4Addr,
        /// The address, and who has it.
        claim: Claim,
    },
    /// Without an uplink there is no server.
    #[error("ipam.type dhcp: wants an `uplink`, the network card behind which the DHCP server is")]
    NoUplink,
}

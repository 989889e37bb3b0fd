//! A flow, as far as a policy looks at it.

use std::net::IpAddr;

/// A direction, seen from the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Opened by the sandbox.
    Egress,
    /// Opened by its peer.
    Ingress,
}

/// The first packet of a flow, as far as a policy looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who opened it.
    pub direction: Direction,
    /// The other end.
    pub peer: IpAddr,
    /// The protocol number of the IP header.
    pub protocol: u8,
    /// The port it was opened to; 0 for protocols without ports.
    pub port: u16,
    /// Whether it came by a port map.
    pub published: bool,
}

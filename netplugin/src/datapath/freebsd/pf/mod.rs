//! pf: anchors of our own, below one anchor `skep` that the main ruleset refers to.
//!
//! - `skep/port/A/B/C/D/<id>`: a sandbox's rules, for packets that come from its port (`in on` it) and for those that go to it,
//!   bridged (`out on` its port) or routed by the host (`out on` the bridge, to its addresses);
//! - `skep/guard/<id>`: who passes for a network's sandbox and comes by another way than its bridge;
//! - `skep/routed`: another way to these, by the address, for what the host routes;
//! - `skep/map/<id>`: a sandbox's published ports;
//! - `skep/net/<id>`: a network's rules: address translation, what reaches the host, who may send VXLAN packets.
//!
//! `port`, `guard` and `routed` come before `net`, and every rule there is `quick`: what none of these decided, its network's
//! does.

#[cfg(target_os = "freebsd")]
pub(super) mod device;
pub(super) mod listing;
#[cfg(target_os = "freebsd")]
pub(super) mod load;
pub(super) mod network;
mod nvlist;
pub(super) mod published;
#[cfg(target_os = "freebsd")]
pub(super) mod rules;
pub(super) mod ruleset;
pub(super) mod sandbox;
pub(super) mod shared;
pub(super) mod states;
#[cfg(target_os = "freebsd")]
mod tables;
pub(super) mod tree;

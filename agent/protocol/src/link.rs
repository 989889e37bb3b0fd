//! The link layer: a reliable byte stream over a console port that loses, cuts off and never says so.
//!
//! Pure state machines: bytes in, bytes out, and the time is passed in. [`Link`] puts them together;
//! `crate::channel` runs it over a real port.
//!
//! # What the port does
//! - It drops what the host sends before the guest reads, and what the guest sends while no host is connected.
//!   So the guest announces itself until a host answers, and the host repeats its hello until it is welcomed.
//! - bhyve closes the host's connection when the guest's buffers run out in the middle of a burst. So what the
//!   host has sent and the guest has not acknowledged stays below what the guest has posted ([`Limits`]), and
//!   nothing is sent again on mere suspicion: silence only costs a probe of one header, and the answer to a
//!   probe proves which frames before it were lost, because a port never reorders.
//! - The guest never learns that the host went away. So each connection of a host begins a session with a new
//!   number, which ends the one before.
//!
//! # Frames
//! [`frame`] has the format. DATA frames are numbered from 0 per direction and session and acknowledged
//! cumulatively by every frame's `ack`. NAK says that the frame `ack` was missed; PING asks for a PONG, which
//! carries the same number and the `ack` of that moment; after a NAK or a PING no DATA goes out until the PONG
//! says where to go on.
//!
//! # Silence
//! A stopped VM is silent for as long as it is stopped, and nothing is wrong with it. Without unacknowledged
//! data nobody asks and nobody minds. With some, probes go out after 0.2 s, 0.4 s ... and every 60 s, and after
//! [`Config::patience`] unanswered ones the session ends; a host that stops the VM itself says so with
//! [`Link::set_paused`], and then even that waits. A guest has no such limit: only a new session ends one.

mod config;
mod decoder;
pub mod frame;
mod handshake;
mod limits;
mod machine;
mod receiver;
mod sender;

pub use config::{Config, End, Event};
pub use decoder::Decoder;
pub use limits::Limits;
pub use machine::Link;

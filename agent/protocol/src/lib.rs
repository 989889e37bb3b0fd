//! The protocol between a Skep host and the agent in its guest.
//!
//! From the wire up:
//! - [`link`]: makes the console port of a microVM, which may lose what it carries, a reliable byte stream;
//!   other channels (a unix socket, vsock) are reliable by themselves.
//! - yamux over the byte stream; each stream begins with a one-line header ([`header`]).
//! - [`api`]: the ttrpc calls on the first stream; one stream more per stdio of a process ([`StdioStream`]).
//!
//! A host uses [`Session`], a guest [`serve_channel`].

pub mod api;
mod calls;
mod channel;
mod closing;
mod connect;
pub mod header;
pub mod link;
mod mux;
mod registry;
mod serve;
mod session;
mod stdio;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use calls::{AgentCalls, CallError};
pub use closing::Closed;
pub use connect::{ConnectError, Endpoint};
pub use registry::{ClaimError, StdioRegistry};
pub use serve::{ChannelKind, serve_channel};
pub use session::{OpenError, Session};
pub use stdio::{Chunk, StdioStream};
pub use ttrpc::Code;

/// Version of the calls and streams; both sides must have the same.
pub const PROTOCOL_VERSION: u32 = 3;

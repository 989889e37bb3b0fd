//! The calls of the agent: messages, ttrpc client and service generated from `proto/agent.proto`.
//!
//! A server implements [`Agent`]. ttrpc drops the future of a call that is under way when its session ends, so
//! what must not stop half done belongs into a task of its own.

#[allow(missing_docs, unused_qualifications, unreachable_pub, rust_2018_idioms, clippy::pedantic)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/api.rs"));
}

pub use generated::agent::*;
pub use generated::agent_ttrpc::{Agent, AgentClient, create_agent};
pub use ttrpc::r#async::TtrpcContext;

/// The error with which a call is answered: `code` and a text for the user.
pub fn error(code: ttrpc::Code, message: impl Into<String>) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message.into()))
}

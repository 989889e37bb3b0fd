//! What the host is told when a call fails: one code and one sentence.
//!
//! The codes are few and mean the same everywhere: `NotFound` is an id that the agent does not know,
//! `InvalidArgument` a fault in the spec or in the image, `FailedPrecondition` a call that does not fit the
//! state of what it names, `Internal` the rest.

use serde::{Deserialize, Serialize};

/// The kind of a failure, as ttrpc carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Code {
    /// The spec, the image or another argument is wrong.
    InvalidArgument,
    /// No such container or process.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// Not now: the container or process is in another state.
    FailedPrecondition,
    /// A bound of the agent's tables is reached.
    ResourceExhausted,
    /// Something did not happen in time.
    DeadlineExceeded,
    /// The guest failed.
    Internal,
}

/// A refused call. It also crosses from a helper process to PID 1, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }
}

impl From<Refusal> for ttrpc::Error {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.code {
            Code::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
            Code::NotFound => ttrpc::Code::NOT_FOUND,
            Code::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
            Code::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
            Code::ResourceExhausted => ttrpc::Code::RESOURCE_EXHAUSTED,
            Code::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
            Code::Internal => ttrpc::Code::INTERNAL,
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, refusal.message))
    }
}

/// An error with all its causes, outermost first, without saying the same twice.
#[cfg(target_os = "linux")]
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[derive(Debug, thiserror::Error)]
    #[error("cannot mount /x")]
    struct Outer(#[source] std::io::Error);

    #[cfg(target_os = "linux")]
    #[test]
    fn a_chain_names_every_cause_once() {
        let error = Outer(std::io::Error::other("no such device"));
        assert_eq!(chain(&error), "cannot mount /x: no such device");
    }

    #[test]
    fn a_refusal_keeps_code_and_text_over_ttrpc() {
        let ttrpc::Error::RpcStatus(status) = Refusal::not_found("container \"a\": not found").into() else {
            panic!("not a status");
        };
        assert_eq!(status.code(), ttrpc::Code::NOT_FOUND);
        assert_eq!(status.message(), "container \"a\": not found");
    }
}

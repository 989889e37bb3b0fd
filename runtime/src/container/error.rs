//! What can go wrong with a container, and of which kind it is.

use std::borrow::Cow;

use skep_protocol::{CallError, Code};

use super::{spec::SpecError, stdio::StdioError};
use crate::{network::NetworkError, share::ShareError};

/// Kinds of errors that callers tell apart. Named as gRPC's and ttrpc's codes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such thing, or no more.
    NotFound,
    /// There is one already.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// A microVM can't, or Skep can't yet.
    Unimplemented,
    /// The request makes no sense.
    InvalidArgument,
    /// Something did not answer in time.
    DeadlineExceeded,
    /// The VM is gone.
    Unavailable,
    /// All else.
    Unknown,
}

/// An operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// There is no such process.
    #[error("container {container} has no process {exec}")]
    NoProcess {
        /// The container.
        container: String,
        /// The exec's id.
        exec: String,
    },
    /// There is a process of that id.
    #[error("process {exec} of container {container} already exists")]
    ProcessExists {
        /// The container.
        container: String,
        /// The exec's id.
        exec: String,
    },
    /// The process has exited, so there is nothing to signal.
    #[error("process already finished: {what}")]
    Finished {
        /// Which.
        what: String,
    },
    /// The operation does not fit the state.
    #[error("cannot {operation} {what}: it is {state}")]
    State {
        /// What was asked.
        operation: &'static str,
        /// Of what.
        what: String,
        /// The state it is in.
        state: &'static str,
    },
    /// A value out of range.
    #[error("{what}: {reason}")]
    Invalid {
        /// Which.
        what: Cow<'static, str>,
        /// What is wrong with it.
        reason: String,
    },
    /// The specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A hook of the host.
    #[error(transparent)]
    Hook(#[from] super::HookError),
    /// Standard streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// Root or volumes.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The process that stands for it on this host.
    #[error(transparent)]
    StandIn(#[from] crate::stand_in::StandInError),
    /// The sandbox's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The agent refused or did not answer.
    #[error(transparent)]
    Agent(#[from] CallError),
    /// The VM ended.
    #[error("{operation}: the sandbox's VM has ended: {reason}")]
    Lost {
        /// What was under way.
        operation: &'static str,
        /// How the VM ended.
        reason: String,
    },
    /// A task of this process failed.
    #[error("{operation}: {reason}")]
    Internal {
        /// What was under way.
        operation: &'static str,
        /// What happened.
        reason: String,
    },
}

impl ContainerError {
    /// Of which kind this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoProcess { .. } | Self::Finished { .. } => ErrorKind::NotFound,
            Self::ProcessExists { .. } => ErrorKind::AlreadyExists,
            Self::State { .. } => ErrorKind::FailedPrecondition,
            Self::Invalid { .. } | Self::Spec(SpecError::Invalid { .. }) => ErrorKind::InvalidArgument,
            Self::Spec(SpecError::Unsupported { .. }) => ErrorKind::Unimplemented,
            Self::Stdio(error) => match error {
                StdioError::Scheme { .. } => ErrorKind::Unimplemented,
                StdioError::Path { .. } | StdioError::Unfit { .. } => ErrorKind::InvalidArgument,
                StdioError::Taken { .. } => ErrorKind::AlreadyExists,
                StdioError::Open { error, .. } if error.kind() == std::io::ErrorKind::NotFound => {
                    ErrorKind::NotFound
                }
                StdioError::Open { .. } | StdioError::Logger { .. } => ErrorKind::Unknown,
                StdioError::Stream { .. } => ErrorKind::Unavailable,
            },
            Self::Share(error) => match error {
                ShareError::Inner { .. } | ShareError::Unsupported { .. } => ErrorKind::Unimplemented,
                _ => ErrorKind::Unknown,
            },
            Self::Network(error) => of_network(error),
            Self::Agent(error) => of_code(error.code),
            Self::Lost { .. } => ErrorKind::Unavailable,
            Self::Hook(_) | Self::StandIn(_) | Self::Internal { .. } => ErrorKind::Unknown,
        }
    }
}

/// Of which kind an error of the network is.
pub fn of_network(error: &NetworkError) -> ErrorKind {
    match error {
        NetworkError::Namespace { .. } => ErrorKind::InvalidArgument,
        NetworkError::Cni(error) if error.is_callers() => ErrorKind::InvalidArgument,
        NetworkError::Room { .. } | NetworkError::InUse { .. } => ErrorKind::FailedPrecondition,
        NetworkError::Kind { .. } | NetworkError::OfAnother(_) => ErrorKind::Unimplemented,
        NetworkError::Cni(_) | NetworkError::System { .. } | NetworkError::Journal(_) => ErrorKind::Unknown,
    }
}

fn of_code(code: Code) -> ErrorKind {
    match code {
        Code::NOT_FOUND => ErrorKind::NotFound,
        Code::ALREADY_EXISTS => ErrorKind::AlreadyExists,
        Code::FAILED_PRECONDITION => ErrorKind::FailedPrecondition,
        Code::UNIMPLEMENTED => ErrorKind::Unimplemented,
        Code::INVALID_ARGUMENT => ErrorKind::InvalidArgument,
        Code::DEADLINE_EXCEEDED => ErrorKind::DeadlineExceeded,
        Code::UNAVAILABLE => ErrorKind::Unavailable,
        _ => ErrorKind::Unknown,
    }
}

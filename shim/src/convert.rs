//! Between the library's types and containerd's messages; errors get their codes here and nowhere else.

use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::{
    MessageField, MessageFull, well_known_types::any::Any, well_known_types::timestamp::Timestamp,
};
use skep::container::{ContainerError, ErrorKind};
use ttrpc::Code;

/// A request failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    kind: ErrorKind,
    message: String,
}

impl Failure {
    /// Of that kind, with a text for the user.
    pub(crate) fn new(kind: ErrorKind, error: &(impl ToString + ?Sized)) -> Self {
        Self { kind, message: error.to_string() }
    }

    /// Not there.
    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(ErrorKind::NotFound, what)
    }

    /// Can't be done, and why.
    pub(crate) fn unimplemented(why: &str) -> Self {
        Self::new(ErrorKind::Unimplemented, why)
    }
}

impl From<ContainerError> for Failure {
    fn from(error: ContainerError) -> Self {
        Self::new(error.kind(), &error)
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        let code = match failure.kind {
            ErrorKind::NotFound => Code::NOT_FOUND,
            ErrorKind::AlreadyExists => Code::ALREADY_EXISTS,
            ErrorKind::FailedPrecondition => Code::FAILED_PRECONDITION,
            ErrorKind::Unimplemented => Code::UNIMPLEMENTED,
            ErrorKind::InvalidArgument => Code::INVALID_ARGUMENT,
            ErrorKind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
            ErrorKind::Unavailable => Code::UNAVAILABLE,
            ErrorKind::Unknown => Code::UNKNOWN,
        };
        Self::RpcStatus(ttrpc::get_status(code, failure.message))
    }
}

/// An error with its causes, except those whose text it has already.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// A point in time; before 1970 is 1970.
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}

/// A point in time, if there is one.
pub(crate) fn optional_timestamp(at: Option<SystemTime>) -> MessageField<Timestamp> {
    at.map(timestamp).into()
}

/// A message in the envelope as containerd makes it: the type's full name, without the prefix of protobuf's own
/// libraries.
pub(crate) fn any<M: MessageFull>(message: &M) -> Result<Any, protobuf::Error> {
    Ok(Any {
        type_url: M::descriptor().full_name().to_owned(),
        value: message.write_to_bytes()?,
        ..Any::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_containerd_api::topics::TaskExit;
    use std::time::Duration;

    #[test]
    fn kinds_have_codes() {
        let code = |kind| match ttrpc::Error::from(Failure::new(kind, "x")) {
            ttrpc::Error::RpcStatus(status) => status.code(),
            other => panic!("{other}"),
        };
        assert_eq!(code(ErrorKind::NotFound), Code::NOT_FOUND);
        assert_eq!(code(ErrorKind::AlreadyExists), Code::ALREADY_EXISTS);
        assert_eq!(code(ErrorKind::FailedPrecondition), Code::FAILED_PRECONDITION);
        assert_eq!(code(ErrorKind::Unimplemented), Code::UNIMPLEMENTED);
        assert_eq!(code(ErrorKind::InvalidArgument), Code::INVALID_ARGUMENT);
    }

    #[test]
    fn causes_are_told_once() {
        let cause = std::io::Error::other("disk on fire");
        let told = anyhow::Error::new(cause).context("cannot read x: disk on fire").context("start");
        assert_eq!(chain(&told), "start: cannot read x: disk on fire");
    }

    #[test]
    fn times() {
        let at = timestamp(UNIX_EPOCH + Duration::new(5, 7));
        assert_eq!((at.seconds, at.nanos), (5, 7));
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(9)).seconds, 0);
    }

    #[test]
    fn envelopes_have_bare_names() {
        let any = any(&TaskExit { id: "x".into(), ..TaskExit::default() }).unwrap();
        assert_eq!(any.type_url, "containerd.events.TaskExit");
    }
}

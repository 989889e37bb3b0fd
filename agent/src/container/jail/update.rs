//! Changing a container's limits: not possible yet.

use std::convert::Infallible;
use std::path::Path;

use crate::error::Refusal;

/// Says that they cannot be changed.
pub(crate) fn parse(_: &[u8]) -> Result<Infallible, Refusal> {
    Err(Refusal::precondition("resources: a FreeBSD guest cannot limit a container yet"))
}

/// Never gets there.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "as on Linux")]
pub(crate) fn apply(_: &Path, resources: &Infallible) -> Result<(), Refusal> {
    match *resources {}
}

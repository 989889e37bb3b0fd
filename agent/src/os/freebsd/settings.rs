//! What of the kernel belongs to the sandbox as a whole: not supported in FreeBSD guests yet.

use crate::error::Refusal;

/// Refuses to set a parameter: names are those of Linux.
pub(crate) fn set_parameter(name: &str, _: &str) -> Result<(), Refusal> {
    Err(Refusal::invalid(format!("sysctls {name}: not supported in FreeBSD guests yet")))
}

/// FreeBSD has POSIX shared memory in no file system: there is nothing to size.
#[allow(clippy::unnecessary_wraps, reason = "fails on Linux")]
pub(crate) fn size_shm(_: u64) -> Result<(), Refusal> {
    Ok(())
}

/// As [`size_shm`].
#[allow(clippy::unnecessary_wraps, reason = "fails on Linux")]
pub(crate) fn grow_shm(_: u64) -> Result<(), Refusal> {
    Ok(())
}

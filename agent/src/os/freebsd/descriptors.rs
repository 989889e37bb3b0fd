//! Descriptors by their numbers.

/// Closes every descriptor from `first` to `last` in a process that has only copies of others' descriptors.
pub(crate) fn close_range(first: u32, last: u32) -> nix::Result<()> {
    // SAFETY: closes copies of PID 1's descriptors, whose owners never run in this process.
    nix::errno::Errno::result(unsafe { libc::close_range(first, last, 0) }).map(drop)
}

/// Nothing to do: a pipe grows by itself, as far as the kernel has memory for pipes (`sys_pipe.c`).
#[allow(clippy::unnecessary_wraps)] // as on Linux
pub(crate) fn widen_pipe(_: &std::os::fd::OwnedFd) -> nix::Result<()> {
    Ok(())
}

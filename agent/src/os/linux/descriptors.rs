//! Descriptors by their numbers.

/// Closes every descriptor from `first` to `last` in a process that has only copies of others' descriptors.
pub(crate) fn close_range(first: u32, last: u32) -> nix::Result<()> {
    // SAFETY: closes copies of PID 1's descriptors, whose owners never run in this process.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    nix::errno::Errno::result(result).map(drop)
}

/// What a pipe of a process holds: four times what Linux gives it, so that process and agent take turns less often. Under
/// software emulation a turn costs more than the bytes do. It is memory of the process's cgroup while it is full.
const PIPE: i32 = 256 * 1024;

/// Gives a pipe room for [`PIPE`] bytes. A failure leaves it as it is.
pub(crate) fn widen_pipe(end: &std::os::fd::OwnedFd) -> nix::Result<()> {
    nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE)).map(drop)
}

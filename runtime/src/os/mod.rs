//! What differs between Linux and FreeBSD, behind one interface.
//!
//! Each system's module has the same functions; where one of them cannot serve, it says so by an error of the kind
//! [`std::io::ErrorKind::Unsupported`].

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;
mod mount;
mod process;
mod tree;

#[cfg(target_os = "freebsd")]
use freebsd as system;
#[cfg(target_os = "linux")]
use linux as system;

#[cfg(test)]
#[cfg(target_os = "linux")]
pub(crate) use mount::tests::in_private_namespace;
pub use mount::{MountError, MountRequest, memory_filesystem_bytes, mount, mounts_below, unmount};
pub use process::{
    ExitWatch, ProcessError, ProcessIdentity, Signal, own_start_time, processor_us, resident_bytes,
};
pub use tree::{TreeError, remove_tree};

/// Makes `command` run in a network namespace. Only on Linux there are any; elsewhere it will not start.
pub fn enter_netns(command: &mut std::process::Command, netns: std::sync::Arc<std::os::fd::OwnedFd>) {
    use std::os::fd::AsFd as _;
    use std::os::unix::process::CommandExt as _;

    let enter = move || system::enter_netns(netns.as_fd());
    // SAFETY: one system call on a descriptor that the closure owns; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(enter) };
}

/// Gives a pipe or FIFO room for so many bytes, more or less. FreeBSD's grow by themselves (`sys/kern/sys_pipe.c`).
pub fn widen_pipe(pipe: impl std::os::fd::AsFd, bytes: usize) -> std::io::Result<()> {
    system::widen_pipe(pipe.as_fd(), bytes)
}

/// The memory of this host, bytes.
pub fn memory_bytes() -> std::io::Result<u64> {
    let value = |name| {
        // SAFETY: a system call that touches no memory of this process.
        let value = unsafe { libc::sysconf(name) };
        u64::try_from(value).map_err(|_| std::io::Error::last_os_error())
    };
    Ok(value(libc::_SC_PHYS_PAGES)?.saturating_mul(value(libc::_SC_PAGESIZE)?))
}

/// Fills `buffer` from the system's random source.
pub fn random(buffer: &mut [u8]) -> std::io::Result<()> {
    let mut rest = buffer;
    while !rest.is_empty() {
        let n = system::random(rest)?;
        rest = &mut rest[n..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_host_has_memory() {
        assert!(super::memory_bytes().unwrap() > 64 << 20);
    }

    #[test]
    fn random_fills_the_whole_buffer() {
        let mut bytes = [0; 600];
        super::random(&mut bytes).unwrap();
        // Each half with 300 zeros would be one chance in 2^2400.
        assert!(bytes[..300].iter().any(|b| *b != 0) && bytes[300..].iter().any(|b| *b != 0));
    }
}

//! From the kernel's hand-over to a guest that can run containers.

pub(crate) mod cmdline;
#[cfg(target_os = "freebsd")]
pub(crate) mod freebsd;
#[cfg(target_os = "linux")]
pub(crate) mod linux;

use std::os::fd::AsRawFd as _;

pub(crate) use cmdline::Options;
#[cfg(target_os = "freebsd")]
pub(crate) use freebsd::prepare;
#[cfg(target_os = "linux")]
pub(crate) use linux::prepare;

/// What can go wrong before the agent serves. All of it is fatal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("cannot mount {what} on {target}: {source}")]
    Mount { what: &'static str, target: String, source: nix::Error },
    #[cfg(target_os = "linux")]
    #[error("cannot make {path}: {source}")]
    Directory { path: String, source: std::io::Error },
    #[cfg(target_os = "linux")]
    #[error("cannot enter the new root: {0}")]
    Root(nix::Error),
    #[error("cannot read {path}: {source}")]
    Read { path: &'static str, source: std::io::Error },
    #[cfg(target_os = "linux")]
    #[error("cannot write {path}: {source}")]
    Write { path: String, source: std::io::Error },
    #[error("cannot put /dev/null on descriptor {fd}: {source}")]
    Null { fd: i32, source: nix::Error },
    #[cfg(target_os = "freebsd")]
    #[error("cannot read the kernel's environment: {0}")]
    Kenv(nix::Error),
    #[cfg(target_os = "freebsd")]
    #[error("cannot make the rules of devfs: {0}")]
    Devices(std::io::Error),
    #[error("kernel command line: {0}")]
    Cmdline(#[from] cmdline::CmdlineError),
}

/// The kernel's default for how many descriptors a process may have, which is what containers get.
pub(crate) const DESCRIPTORS: libc::rlim_t = 1024;
/// What the agent needs for all its containers' pipes; the kernel's default for the hard limit.
const DESCRIPTORS_MAX: libc::rlim_t = 4096;

/// Sets how many descriptors this process may have, within the hard limit.
pub(crate) fn descriptors(soft: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: DESCRIPTORS_MAX };
    // SAFETY: the limit is a live rlimit.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == -1 {
        tracing::warn!("cannot limit descriptors to {soft}: {}", nix::Error::last());
    }
}

/// The kernel gives PID 1 its console or nothing as descriptors 0 to 2; neither may reach a container.
fn null_stdio() -> Result<(), BootError> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|source| BootError::Read { path: "/dev/null", source })?;
    for fd in 0..=2 {
        // SAFETY: dup2 onto the three standard numbers; nothing in this program owns them.
        if null.as_raw_fd() != fd && unsafe { libc::dup2(null.as_raw_fd(), fd) } == -1 {
            return Err(BootError::Null { fd, source: nix::Error::last() });
        }
    }
    if null.as_raw_fd() <= 2 {
        // It is one of the three: they stay open for good.
        std::mem::forget(null);
    }
    Ok(())
}

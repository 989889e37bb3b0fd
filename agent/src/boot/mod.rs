//! From the kernel's hand-over to a guest that can run containers.

pub(crate) mod cgroups;
pub(crate) mod cmdline;
mod loopback;
pub(crate) mod mounts;

use std::os::fd::AsRawFd as _;
use std::path::Path;

pub(crate) use cmdline::Options;

/// What can go wrong before the agent serves. All of it is fatal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("cannot mount {what} on {target}: {source}")]
    Mount { what: &'static str, target: String, source: nix::Error },
    #[error("cannot make {path}: {source}")]
    Directory { path: String, source: std::io::Error },
    #[error("cannot enter the new root: {0}")]
    Root(nix::Error),
    #[error("cannot read {path}: {source}")]
    Read { path: &'static str, source: std::io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: String, source: std::io::Error },
    #[error("cannot put /dev/null on descriptor {fd}: {source}")]
    Null { fd: i32, source: nix::Error },
    #[error("kernel command line: {0}")]
    Cmdline(#[from] cmdline::CmdlineError),
}

/// Makes the guest a place where containers can live, and reads what the host asked for.
pub(crate) fn prepare() -> Result<Options, BootError> {
    mounts::prepare()?;
    null_stdio()?;
    let line = read("/proc/cmdline")?;
    let options = cmdline::parse(&line)?;
    crate::log::install(options.log);
    cgroups::prepare()?;
    // Hurting the agent ends the sandbox: whatever a container allocates, it is not the one to be killed.
    write(Path::new("/proc/self/oom_score_adj"), "-1000")?;
    descriptors(DESCRIPTORS_MAX);
    if let Err(error) = loopback::up() {
        // A kernel without a network still runs containers.
        tracing::warn!("cannot bring lo up: {error}");
    }
    Ok(options)
}

/// The kernel's default for how many descriptors a process may have, which is what containers get.
pub(crate) const DESCRIPTORS: u64 = 1024;
/// What the agent needs for all its containers' pipes; the kernel's default for the hard limit.
const DESCRIPTORS_MAX: u64 = 4096;

/// Sets how many descriptors this process may have, within the hard limit.
pub(crate) fn descriptors(soft: u64) {
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

fn read(path: &'static str) -> Result<String, BootError> {
    std::fs::read_to_string(path).map_err(|source| BootError::Read { path, source })
}

fn write(path: &Path, value: &str) -> Result<(), BootError> {
    std::fs::write(path, value)
        .map_err(|source| BootError::Write { path: path.display().to_string(), source })
}

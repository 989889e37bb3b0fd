//! The process itself: shows the container's files, passes signals on, and ends with whoever started it.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};

use super::setup::{Setup, answer};

/// Signals that came and were not passed on yet, a bit for each.
static CAME: AtomicU64 = AtomicU64::new(0);

/// What ends this process when it comes: it cannot be caught, or returning from it would bring it again.
const DEADLY: [Signal; 7] = [
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGTRAP,
];

/// Is a stand-in, to its end.
pub(super) fn run() -> ExitCode {
    match live() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", super::NAME);
            ExitCode::FAILURE
        }
    }
}

fn live() -> io::Result<()> {
    let mut host = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // From the first moment on: what comes early is passed on later.
    catch()?;
    let setup = Setup::read(&host)?;
    let entered = enter(&setup);
    drop(setup);
    answer(&host, &entered)?;
    entered?;
    loop {
        let came = CAME.swap(0, Ordering::Relaxed);
        for signal in (1..=u64::BITS).filter(|signal| came & (1 << (signal - 1)) != 0) {
            host.write_all(&[u8::try_from(signal).unwrap_or_default()])?;
        }
        let mut all = [PollFd::new(host.as_fd(), PollFlags::POLLIN)];
        // Signals come in here and nowhere else.
        match ppoll(&mut all, None, Some(SigSet::empty())) {
            // Nothing is ever sent: the other end is gone.
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

extern "C" fn came(signal: libc::c_int) {
    if let Ok(signal) = u32::try_from(signal - 1)
        && signal < u64::BITS
    {
        CAME.fetch_or(1 << signal, Ordering::Relaxed);
    }
}

/// Blocks every signal and notes those that can be caught when they are let in.
fn catch() -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    let action = SigAction::new(SigHandler::Handler(came), SaFlags::empty(), SigSet::all());
    for signal in Signal::iterator().filter(|signal| !DEADLY.contains(signal)) {
        // SAFETY: the handler does nothing but an operation on an atomic.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn enter(setup: &Setup) -> io::Result<()> {
    super::view::enter(setup)?;
    // Whoever takes this process for the container finds one that may do nothing.
    rustix::thread::set_no_new_privs(true)?;
    rustix::thread::set_capabilities(
        None,
        rustix::thread::CapabilitySets {
            effective: rustix::thread::CapabilitySet::empty(),
            permitted: rustix::thread::CapabilitySet::empty(),
            inheritable: rustix::thread::CapabilitySet::empty(),
        },
    )?;
    // Of the program's file only `exe` would be left.
    Ok(rustix::thread::set_name(super::COMMAND)?)
}

/// Elsewhere a process's root is not reached by its pid.
#[cfg(not(target_os = "linux"))]
fn enter(_: &Setup) -> io::Result<()> {
    std::env::set_current_dir("/")
}

//! Helper processes: forks of PID 1 that do one thing which would block it or change it for good.
//!
//! Making a container changes the directory, the OOM score and more of the process that does it, and waits for
//! its children; a fork costs less than a thread would in care, and less than an exec in time. PID 1 has one
//! thread and no locks held across calls, so its fork may run any code.

use std::io;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::{ForkResult, Pid, fork, pipe2};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::container::faults;
use crate::error::{Code, Refusal};
use crate::fdio::FdStream;
use crate::log;
use crate::os::descriptors;
use crate::reaper::{Births, ExitWatch, Reaper, exit_of};

/// The first descriptor handed to a helper; the others follow.
const FIRST_FD: RawFd = 3;
/// Above every descriptor a helper is given, out of the way while they are put in order.
const PARKING: RawFd = log::FD + 1;
/// An answer is one line of JSON.
const ANSWER_MAX: u64 = 64 * 1024;

/// A helper that closed its pipe is about to end.
const END_LIMIT: Duration = Duration::from_secs(1);

/// A helper at work.
#[derive(Debug)]
pub(crate) struct Helper {
    pid: i32,
    answer: OwnedFd,
    exit: ExitWatch,
    births: Births,
}

/// Forks a helper that does `job` and answers with what it returns.
///
/// The helper has the descriptors of `pass` as 3, 4, … (the job gets their numbers), 0 to 2 on /dev/null, the
/// log and nothing else of PID 1. They close on exec.
pub(crate) fn start<T: Serialize>(
    reaper: &Arc<Reaper>,
    pass: &[BorrowedFd<'_>],
    job: impl FnOnce(&[RawFd]) -> Result<T, Refusal>,
) -> Result<Helper, Refusal> {
    let births = reaper.expect_births();
    let (answer, to_parent) = pipe2(OFlag::O_CLOEXEC).map_err(|e| cannot("make a pipe", e))?;
    let mut moved: Vec<RawFd> = pass.iter().map(BorrowedFd::as_raw_fd).collect();
    moved.push(to_parent.as_raw_fd());
    // SAFETY: the process has a single thread, so the child finds no lock taken and may run any code.
    match unsafe { fork() }.map_err(|e| cannot("fork a helper", e))? {
        ForkResult::Child => child(&moved, job),
        ForkResult::Parent { child } => {
            let pid = child.as_raw();
            Ok(Helper { pid, answer, exit: reaper.watch(pid), births })
        }
    }
}

/// Forks a process that is to become something else: `job` returns only why it did not, which is told on the first
/// descriptor of `pass`. It has them as [`start`] says.
pub(crate) fn fork_into(
    reaper: &Arc<Reaper>,
    pass: &[BorrowedFd<'_>],
    job: impl FnOnce(&[RawFd]) -> Refusal,
) -> Result<(i32, ExitWatch), Refusal> {
    let moved: Vec<RawFd> = pass.iter().map(BorrowedFd::as_raw_fd).collect();
    // SAFETY: as in `start`.
    match unsafe { fork() }.map_err(|e| cannot("fork a process", e))? {
        ForkResult::Child => {
            crate::fatal::enter_child();
            let code = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let Ok(fds) = take_over(&moved) else { return 125 };
                let Some(faults) = fds.first() else { return 125 };
                crate::fatal::answer_on(*faults);
                faults::tell(*faults, &job(&fds));
                127
            }))
            .unwrap_or(101);
            // SAFETY: as in `child`.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            let pid = child.as_raw();
            Ok((pid, reaper.watch(pid)))
        }
    }
}

impl Helper {
    /// Waits for the answer. A helper that takes longer than `limit` is killed.
    ///
    /// The guard returned beside it keeps exits of processes unknown so far; drop it when they are known.
    pub(crate) async fn finish<T: DeserializeOwned>(self, limit: Duration) -> Result<(T, Births), Refusal> {
        let Self { pid, answer, mut exit, births } = self;
        let mut line = String::new();
        let mut answer = BufReader::new(FdStream::new(answer).map_err(|e| cannot("wait for a helper", e))?)
            .take(ANSWER_MAX);
        // The pipe alone cannot tell that the helper died: a process it made may hold the other end.
        let answered = async {
            tokio::select! {
                read = answer.read_line(&mut line) => read.map(drop),
                _ = exit_of(&mut exit) => Ok(()),
            }
        };
        let in_time = tokio::time::timeout(limit, answered).await;
        if in_time.is_err() {
            // It may have ended just now, which is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let text = format!("the helper process did not finish within {} s", limit.as_secs());
            return Err(Refusal::new(Code::DeadlineExceeded, text));
        }
        if !line.ends_with('\n') {
            // The exit was noticed first: what the helper wrote before is still in the pipe.
            let rest = tokio::time::timeout(Duration::from_millis(10), answer.read_line(&mut line)).await;
            if !matches!(rest, Ok(Ok(_))) || !line.ends_with('\n') {
                let ended = tokio::time::timeout(END_LIMIT, exit_of(&mut exit)).await;
                let how = ended.map_or("still running".to_owned(), |exit| format!("status {}", exit.status));
                return Err(Refusal::internal(format!("the helper process gave no answer ({how})")));
            }
        }
        let answer: Result<T, Refusal> = serde_json::from_str(&line)
            .map_err(|e| Refusal::internal(format!("the helper process answered what is no answer: {e}")))?;
        Ok((answer?, births))
    }
}

fn cannot(what: &str, error: impl Into<io::Error>) -> Refusal {
    Refusal::internal(format!("cannot {what}: {}", error.into()))
}

/// The helper's life, which ends here and not in the code that forked it.
fn child<T: Serialize>(moved: &[RawFd], job: impl FnOnce(&[RawFd]) -> Result<T, Refusal>) -> ! {
    crate::fatal::enter_child();
    // A panic must not unwind into PID 1's event loop, of which this process holds a dead copy.
    let code = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let Ok(fds) = take_over(moved) else { return 125 };
        let [pass @ .., answer] = fds.as_slice() else { return 125 };
        crate::fatal::answer_on(*answer);
        let result = job(pass);
        // SAFETY: take_over made this descriptor for the answer, and the job was not given it.
        let mut answer = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(*answer) });
        let Ok(mut line) = serde_json::to_vec(&result) else { return 124 };
        line.push(b'\n');
        i32::from(answer.write_all(&line).is_err())
    }))
    .unwrap_or(101);
    // SAFETY: _exit touches nothing of the parent's and runs no handler meant for PID 1.
    unsafe { libc::_exit(code) }
}

/// Turns a copy of PID 1 into a process with default signals and only the descriptors it was given.
fn take_over(moved: &[RawFd]) -> nix::Result<Vec<RawFd>> {
    SigSet::empty().thread_set_mask()?;
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // Rust ignores SIGPIPE, and what is ignored stays so across exec: containers expect otherwise.
    // SAFETY: the default action runs no code of this program.
    unsafe { sigaction(Signal::SIGPIPE, &default) }?;
    crate::boot::descriptors(crate::boot::DESCRIPTORS);
    let mut parked = Vec::with_capacity(moved.len());
    for fd in moved {
        parked.push(raw(|| {
            // SAFETY: fcntl duplicates a descriptor number; whether it is open is for it to say.
            unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, PARKING) }
        })?);
    }
    let mut placed = Vec::with_capacity(moved.len());
    for (target, fd) in (FIRST_FD..).zip(&parked) {
        // SAFETY: as above; whatever had the number is a copy that this process does not need.
        placed.push(raw(|| unsafe { libc::dup3(*fd, target, libc::O_CLOEXEC) })?);
    }
    let first = placed.last().map_or(FIRST_FD, |last| last + 1).cast_unsigned();
    descriptors::close_range(first, (log::FD - 1).cast_unsigned())?;
    descriptors::close_range(PARKING.cast_unsigned(), u32::MAX)?;
    Ok(placed)
}

fn raw(call: impl FnOnce() -> i32) -> nix::Result<RawFd> {
    nix::errno::Errno::result(call())
}

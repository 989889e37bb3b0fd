//! The pipe on which a process tells why it did not become the user's program. Exec closes it.
//!
//! It carries lines: the fault itself as JSON, and what libcontainer logged as plain text.

use std::fs::File;
use std::io::Write as _;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt as _;

use crate::error::{Code, Refusal};
use crate::fdio::FdStream;

/// As many lines as are told, and more.
const MAX: u64 = 64 * 1024;

/// Both ends, until the process has its own.
#[derive(Debug)]
pub(crate) struct FaultPipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// The agent's end.
#[derive(Debug)]
pub(crate) struct Faults(FdStream);

impl FaultPipe {
    pub(crate) fn new() -> Result<Self, Refusal> {
        let (read, write) =
            pipe2(OFlag::O_CLOEXEC).map_err(|e| Refusal::internal(format!("cannot make a pipe: {e}")))?;
        Ok(Self { read, write })
    }

    /// The process's end.
    pub(crate) fn write(&self) -> BorrowedFd<'_> {
        self.write.as_fd()
    }

    /// Gives up the process's end, which it has by now.
    pub(crate) fn into_faults(self) -> Result<Faults, Refusal> {
        let read = FdStream::new(self.read);
        read.map(Faults).map_err(|e| Refusal::internal(format!("cannot wait for a process: {e}")))
    }
}

impl Faults {
    /// Waits until the process runs its program: `Ok`, also for one that was killed before; or its fault.
    pub(crate) async fn started(self, limit: Duration) -> Result<(), Refusal> {
        let mut text = Vec::new();
        let mut pipe = self.0.take(MAX);
        match tokio::time::timeout(limit, pipe.read_to_end(&mut text)).await {
            Err(_) => Err(Refusal::new(
                Code::DeadlineExceeded,
                format!("the process did not run its program within {} s", limit.as_secs()),
            )),
            Ok(Err(e)) => Err(Refusal::internal(format!("cannot wait for a process: {e}"))),
            Ok(Ok(_)) => fault(&text).map_or(Ok(()), Err),
        }
    }

    /// Why a process could not be made, better than its maker knows it.
    pub(crate) async fn explain(self, refusal: Refusal) -> Refusal {
        let mut text = Vec::new();
        // Whatever the process told, it told before its maker failed: what is not there by now will not come,
        // though somebody may still hold the other end.
        let mut pipe = self.0.take(MAX);
        let _ = tokio::time::timeout(Duration::from_millis(50), pipe.read_to_end(&mut text)).await;
        explain(refusal, &text)
    }
}

/// Tells a fault on the pipe of the process that this is.
pub(crate) fn tell(pipe: RawFd, refusal: &Refusal) {
    // SAFETY: the descriptor belongs to this process for as long as it has not exec'd, and is not closed here.
    let mut pipe = ManuallyDrop::new(unsafe { File::from_raw_fd(pipe) });
    if let Ok(mut text) = serde_json::to_vec(refusal) {
        text.push(b'\n');
        // Without a reader there is nobody to tell.
        let _ = pipe.write_all(&text);
    }
}

/// The fault in what a process told, be it as such or as the answer of one that panicked.
fn fault(text: &[u8]) -> Option<Refusal> {
    let told = |line| serde_json::from_slice(line).ok();
    let panicked = |line| serde_json::from_slice::<Result<(), Refusal>>(line).ok()?.err();
    text.split(|b| *b == b'\n').find_map(|line| told(line).or_else(|| panicked(line)))
}

fn explain(refusal: Refusal, text: &[u8]) -> Refusal {
    if let Some(fault) = fault(text) {
        return fault;
    }
    // The first error is the one next to the cause; what follows is its way up.
    let first = text.split(|b| *b == b'\n').find(|line| !line.is_empty());
    match first {
        Some(line) if refusal.code == Code::Internal => {
            // What was to be done stays, the way up goes.
            let what = refusal.message.split(':').next().unwrap_or_default();
            Refusal::internal(format!("{what}: {}", String::from_utf8_lossy(line)))
        }
        _ => refusal,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn after(write: impl FnOnce(BorrowedFd<'_>)) -> Result<(), Refusal> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let pipe = FaultPipe::new().expect("pipe");
            write(pipe.write());
            pipe.into_faults().expect("faults").started(Duration::from_secs(60)).await
        })
    }

    #[test]
    fn a_closed_pipe_is_a_start() {
        assert_eq!(after(|_| ()), Ok(()));
    }

    #[test]
    fn a_fault_is_passed_on_as_it_was_told() {
        let fault = Refusal::invalid("exec \"x\": no such file");
        let text = serde_json::to_vec(&fault).expect("json");
        assert_eq!(after(|write| assert!(nix::unistd::write(write, &text).is_ok())), Err(fault.clone()));
        assert_eq!(after(|write| tell(write.as_raw_fd(), &fault)), Err(fault.clone()));
        let answer = serde_json::to_vec(&Err::<(), _>(&fault)).expect("json");
        assert_eq!(after(|write| assert!(nix::unistd::write(write, &answer).is_ok())), Err(fault));
    }

    #[test]
    fn logged_errors_explain_only_what_failed() {
        assert_eq!(after(|write| assert!(nix::unistd::write(write, b"odd, but fine\n").is_ok())), Ok(()));
        let internal = Refusal::internal("cannot make the container: failed: failed");
        assert_eq!(
            explain(internal.clone(), b"no such mount\nfailed to prepare rootfs\n").message,
            "cannot make the container: no such mount"
        );
        assert_eq!(explain(internal.clone(), b""), internal);
        let fault = Refusal::invalid("exec \"x\": no such file");
        let mut told = b"logged\n".to_vec();
        told.extend(serde_json::to_vec(&fault).expect("json"));
        assert_eq!(explain(internal, &told), fault);
    }
}

//! The pipe on which a process tells why it did not become the user's program. Exec closes it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt as _;

use crate::error::{Code, Refusal};
use crate::fdio::FdStream;

/// A fault is one short JSON object.
const MAX: u64 = 16 * 1024;

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
            Ok(Ok(_)) => read(&text).map_or(Ok(()), Err),
        }
    }

    /// The fault of a process that could not be made, if it told one.
    pub(crate) async fn told(self) -> Option<Refusal> {
        // The process told before its maker failed, so there is nothing to wait for.
        self.started(Duration::from_millis(100)).await.err().filter(|e| e.code != Code::DeadlineExceeded)
    }
}

fn read(text: &[u8]) -> Option<Refusal> {
    if text.is_empty() {
        return None;
    }
    let fault = serde_json::from_slice(text);
    Some(fault.unwrap_or_else(|_| Refusal::internal("the process failed in a way that it could not tell")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(write: impl FnOnce(&OwnedFd)) -> Result<(), Refusal> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let pipe = FaultPipe::new().expect("pipe");
            write(&pipe.write);
            pipe.into_faults().expect("faults").started(Duration::from_secs(10)).await
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
        assert_eq!(after(|write| drop(nix::unistd::write(write, &text))), Err(fault));
    }

    #[test]
    fn what_is_no_fault_is_still_a_failure() {
        let result = after(|write| drop(nix::unistd::write(write, b"{")));
        assert_eq!(result.expect_err("failure").code, crate::error::Code::Internal);
    }
}

//! What QEMU and its helpers say.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::hypervisor::HypervisorError;
use crate::hypervisor::log::{Tail, record};

/// Reads what a process says into a log, until it ends.
pub(super) fn log(
    from: Option<impl Into<OwnedFd>>,
    path: PathBuf,
    tail: &Tail,
) -> Result<JoinHandle<()>, HypervisorError> {
    let receiver = from
        .ok_or_else(|| io::Error::other("there is no pipe"))
        .and_then(|pipe| pipe::Receiver::from_owned_fd(pipe.into()));
    match receiver {
        Ok(receiver) => Ok(tokio::spawn(record(receiver, path, tail.clone()))),
        Err(source) => Err(HypervisorError::File { action: "read for", path, source }),
    }
}

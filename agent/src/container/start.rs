//! Births: from a request to a process with its stdio connected. Runs in PID 1, around the helpers.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

use super::faults::{FaultPipe, Faults};
use super::heads::ProcessHead;
use super::paths::TERMINALS;
use crate::error::Refusal;
use crate::helper;
use crate::limits;
use crate::reaper::{ExitWatch, Reaper};
use crate::stdio::{Streams, Terminal};

/// A process that was just made.
#[derive(Debug)]
pub(crate) struct Born {
    pub(crate) pid: i32,
    pub(crate) exit: ExitWatch,
    pub(crate) terminal: Option<Terminal>,
    /// Where it tells why it does not run its program, if it does not yet.
    pub(crate) faults: Option<Faults>,
}

/// Makes a process by `job` in a helper and connects its stdio to `streams`.
///
/// The job gets the descriptors as `make::create` takes them and the path of the terminal's socket.
pub(crate) async fn bear(
    reaper: &Arc<Reaper>,
    head: &ProcessHead,
    streams: Streams,
    job: impl FnOnce(&[RawFd], Option<&Path>) -> Result<i32, Refusal>,
) -> Result<Born, Refusal> {
    let faults = FaultPipe::new()?;
    let socket = if head.terminal { Some(TerminalSocket::new()?) } else { None };
    let pipes = if head.terminal { None } else { Some(streams.pipes()?) };
    let helper = {
        let mut pass: Vec<BorrowedFd<'_>> = vec![faults.write()];
        if let Some(pipes) = &pipes {
            pass.extend(pipes.process());
        }
        let path = socket.as_ref().map(|socket| socket.path.clone());
        helper::start(reaper, &pass, |fds| job(fds, path.as_deref()))?
    };
    // The helper has the process's ends now: held on to, they would keep its output from ending.
    let ends = pipes.map(super::super::stdio::Pipes::into_ends);
    let faults = faults.into_faults()?;
    let (pid, births) = match helper.finish::<i32>(limits::helper()).await {
        Ok(made) => made,
        // The process itself knows best why it could not be.
        Err(refusal) => return Err(faults.explain(refusal).await),
    };
    let exit = reaper.watch(pid);
    drop(births);
    let internal = |e: std::io::Error| Refusal::internal(format!("cannot connect a process's stdio: {e}"));
    let mut terminal = None;
    if let Some(socket) = socket {
        let master = socket.receive().map_err(internal)?;
        if let Some(size) = head.size()
            && let Err(error) = master.resize(size.height, size.width)
        {
            tracing::warn!("cannot size a terminal: {error}");
        }
        streams.pump_terminal(&master);
        terminal = Some(master);
    } else if let Some(ends) = ends {
        streams.pump_pipes(ends).map_err(internal)?;
    }
    Ok(Born { pid, exit, terminal, faults: Some(faults) })
}

/// A socket on which libcontainer hands over the terminal that it made inside the container.
#[derive(Debug)]
struct TerminalSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl TerminalSocket {
    fn new() -> Result<Self, Refusal> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = Path::new(TERMINALS).join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let listener = UnixListener::bind(&path)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|e| Refusal::internal(format!("cannot listen on {}: {e}", path.display())))?;
        Ok(Self { path, listener })
    }

    /// Takes the terminal. The process is made by now, so it has been sent.
    fn receive(&self) -> std::io::Result<Terminal> {
        let (stream, _) = self.listener.accept()?;
        receive_terminal(&stream)
    }
}

/// Takes a terminal that was sent.
pub(crate) fn receive_terminal(stream: &UnixStream) -> std::io::Result<Terminal> {
    let mut byte = [0; 64];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel made these descriptors for this process just now.
            let mut fds = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            if let Some(master) = fds.next() {
                return Terminal::new(master);
            }
        }
    }
    Err(std::io::Error::other("no terminal came from the container"))
}

impl Drop for TerminalSocket {
    fn drop(&mut self) {
        // A name left behind is in a directory of the agent's own, and no name is used twice.
        let _ = std::fs::remove_file(&self.path);
    }
}

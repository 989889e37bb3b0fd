//! Adding a process to a container: one fork of PID 1, which enters the jail and becomes the program.

use std::convert::Infallible;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use oci_spec::runtime::Process;

use super::head::LinuxHead;
use super::members::jid;
use super::process;
use crate::container::faults::FaultPipe;
use crate::container::heads::ProcessHead;
use crate::container::start::Born;
use crate::container::{Paths, wanted};
use crate::error::Refusal;
use crate::helper;
use crate::reaper::Reaper;
use crate::stdio::{Ends, Streams, Terminal};

/// What a process joins besides the jail: nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Joint;

impl Joint {
    /// The spec says nothing of it.
    pub(crate) fn new(_: &LinuxHead) -> Self {
        Self
    }
}

/// A container as its new processes see it.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) paths: &'a Paths,
    #[allow(dead_code, reason = "what Linux needs")]
    pub(crate) joint: &'a Joint,
    #[allow(dead_code, reason = "what Linux needs")]
    pub(crate) init: i32,
}

impl Target<'_> {
    /// Makes a process that runs its program by the time this returns, within `limit`.
    pub(crate) async fn join(
        &self,
        reaper: &Arc<Reaper>,
        head: &ProcessHead,
        process: &[u8],
        streams: Streams,
        limit: Duration,
    ) -> Result<Born, Refusal> {
        let process: Process = wanted::parse("process", process)?;
        process::check(&process)?;
        let jid = jid(&self.paths.group)?
            .ok_or_else(|| Refusal::precondition("the container has no processes any more"))?;
        let faults = FaultPipe::new()?;
        let stdio = if head.terminal { Stdio::terminal(head)? } else { Stdio::pipes(&streams)? };
        let (pid, exit) = {
            let mut pass: Vec<BorrowedFd<'_>> = vec![faults.write()];
            pass.extend(stdio.process());
            let enter = |fds: &[RawFd]| {
                let Err(refusal) = become_program(jid, &process, fds);
                refusal
            };
            helper::fork_into(reaper, &pass, enter)?
        };
        // The process has its ends now: held on to, they would keep its output from ending.
        let ours = stdio.into_ours();
        if let Err(refusal) = faults.into_faults()?.started(limit).await {
            // One that told its fault is ending. That it has ended is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            return Err(refusal);
        }
        let terminal = ours
            .connect(streams)
            .map_err(|e| Refusal::internal(format!("cannot connect a process's stdio: {e}")))?;
        Ok(Born { pid, exit, terminal, faults: None })
    }
}

/// The child's life until it is the program.
fn become_program(jid: i32, process: &Process, fds: &[RawFd]) -> Result<Infallible, Refusal> {
    let (stdio, terminal) = match fds {
        [_, terminal] => ([*terminal; 3], true),
        [_, input, output, errors] => ([*input, *output, *errors], false),
        _ => return Err(Refusal::internal(format!("a new process was given {} descriptors", fds.len()))),
    };
    process::enter(jid, process, stdio, terminal)?.ready()?.run()
}

/// Both sides of a process's stdio.
enum Stdio {
    Pipes(crate::stdio::Pipes),
    Terminal { master: Terminal, slave: OwnedFd },
}

/// The agent's side.
enum Ours {
    Pipes(Ends),
    Terminal(Terminal),
}

impl Stdio {
    fn pipes(streams: &Streams) -> Result<Self, Refusal> {
        streams.pipes().map(Self::Pipes)
    }

    fn terminal(head: &ProcessHead) -> Result<Self, Refusal> {
        let fail = |e: std::io::Error| Refusal::internal(format!("cannot make a terminal: {e}"));
        let (master, slave) = process::terminal().map_err(fail)?;
        let master = Terminal::new(master).map_err(fail)?;
        if let Some(size) = head.size() {
            let size = size.window();
            master.resize(size.ws_row, size.ws_col).map_err(|e| fail(e.into()))?;
        }
        Ok(Self::Terminal { master, slave })
    }

    /// What the process is given.
    fn process(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Pipes(pipes) => pipes.process().into(),
            Self::Terminal { slave, .. } => vec![slave.as_fd()],
        }
    }

    fn into_ours(self) -> Ours {
        match self {
            Self::Pipes(pipes) => Ours::Pipes(pipes.into_ends()),
            Self::Terminal { master, .. } => Ours::Terminal(master),
        }
    }
}

impl Ours {
    fn connect(self, streams: Streams) -> std::io::Result<Option<Terminal>> {
        match self {
            Self::Pipes(ends) => streams.pump_pipes(ends).map(|()| None),
            Self::Terminal(master) => {
                streams.pump_terminal(&master);
                Ok(Some(master))
            }
        }
    }
}

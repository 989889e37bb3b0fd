//! A process of this host that stands for a container: its pid is the task's.
//!
//! Callers of an OCI runtime expect a pid of their own for each container, and do things by it: they look at its
//! namespaces, reach its files through `/proc/<pid>/root` (`nerdctl cp`), list it and send it signals. The container's
//! processes are another kernel's. So each container has a process here that runs nothing of it: it is in the sandbox's
//! network namespace, shows the container's files as far as they are this host's (`view.rs`), passes signals on, and
//! ends with the container. It is this same program, started under another name, and holds no privileges.

mod program;
mod setup;
#[cfg(target_os = "linux")]
mod view;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

pub use setup::{Mounted, Setup};

use crate::journal::{EntryId, Journal, JournalError};
use crate::os::{ExitWatch, ProcessError, ProcessIdentity, Signal};

/// What it is called, in its command line and in lists of processes.
const NAME: &str = "skep-container";
#[cfg(target_os = "linux")]
const COMMAND: &std::ffi::CStr = c"skep-container";
/// Said to whoever lists it.
const NOTE: &str = "(its processes are in a microVM)";
/// How long it may take to be ready, or to go.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest reason for not being ready.
const REASON: usize = 1024;
/// Signals that wait for a container to take them; more are lost, as the kernel loses them.
const SIGNALS: usize = 16;

/// There is no process that stands for a container.
#[derive(Debug, thiserror::Error)]
pub enum StandInError {
    /// It cannot be recorded or started.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It cannot be watched.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It cannot be spoken with.
    #[error("the process that stands for the container on this host: {0}")]
    System(#[from] io::Error),
    /// It is not what it should be.
    #[error("the process that stands for the container on this host cannot show its files: {0}")]
    Refused(String),
}

/// Whether this process was started to be a stand-in. To be asked first of all in `main`: it then is one, and what
/// it returns is the process's exit code.
pub fn main() -> Option<ExitCode> {
    std::env::args_os().next().is_some_and(|name| name == NAME).then(program::run)
}

/// The command that starts one for container `id`, if the program that runs this asks [`main`].
pub fn command(id: &str) -> io::Result<Command> {
    // The very file that runs, even if another has its name by now.
    let mut command = if cfg!(target_os = "linux") {
        Command::new("/proc/self/exe")
    } else {
        Command::new(std::env::current_exe()?)
    };
    command.arg0(NAME).args([id, NOTE]).env_clear().current_dir("/");
    Ok(command)
}

/// What happened to a stand-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody sent it a signal, by this host's number, which is meant for the container.
    Signal(u32),
    /// Somebody killed it.
    Killed,
}

/// A process that stands for a container. It ends when this is dropped, at the latest.
#[derive(Debug)]
pub struct StandIn {
    process: ProcessIdentity,
    end: watch::Sender<bool>,
    gone: watch::Receiver<bool>,
}

/// One that runs and does not know yet what for.
#[derive(Debug)]
pub struct Starting {
    stand_in: StandIn,
    host: UnixStream,
    events: mpsc::Sender<Event>,
    happened: mpsc::Receiver<Event>,
}

impl StandIn {
    /// Starts it.
    pub fn start(journal: &Arc<Journal>, mut command: Command) -> Result<Starting, StandInError> {
        let (host, its) = std::os::unix::net::UnixStream::pair()?;
        host.set_nonblocking(true)?;
        let host = UnixStream::from_std(host)?;
        command.stdin(OwnedFd::from(its)).stdout(Stdio::null()).stderr(Stdio::null());
        let (child, process, entry) = journal.spawn("stand-in", command, &[])?;
        let watched = process.watch();
        let (end, asked) = watch::channel(false);
        let (went, gone) = watch::channel(false);
        let (events, happened) = mpsc::channel(SIGNALS);
        let keeper = Keeper { child, process, journal: Arc::clone(journal), entry };
        match watched {
            Ok(watch) => tokio::spawn(keeper.keep(watch, asked, went, events.clone())),
            Err(error) => {
                keeper.bury();
                return Err(error.into());
            }
        };
        Ok(Starting { stand_in: Self { process, end, gone }, host, events, happened })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Ends it and waits until it is gone.
    pub async fn end(&self) {
        self.end.send_replace(true);
        let mut gone = self.gone.clone();
        if tokio::time::timeout(LIMIT, gone.wait_for(|gone| *gone)).await.is_err() {
            tracing::warn!(pid = self.pid(), limit = ?LIMIT, "the process that stands for a container has not ended");
        }
    }
}

impl Starting {
    /// Ends it before it was of any use.
    pub async fn give_up(self) {
        self.stand_in.end().await;
    }

    /// Makes it show what `setup` says. What happens to it from then on comes by the receiver.
    pub async fn enter(self, setup: &Setup) -> Result<(StandIn, mpsc::Receiver<Event>), StandInError> {
        let Self { stand_in, mut host, events, happened } = self;
        let exchange = async {
            host.write_all(&setup.encode()?).await?;
            let mut said = Vec::new();
            loop {
                match host.read_u8().await? {
                    b'\n' => return Ok(said),
                    _ if said.len() == REASON => return Err(io::ErrorKind::InvalidData.into()),
                    byte => said.push(byte),
                }
            }
        };
        let said = match tokio::time::timeout(LIMIT, exchange).await {
            Ok(Ok(said)) => said,
            Ok(Err(error)) => {
                stand_in.end().await;
                return Err(StandInError::System(error));
            }
            Err(_) => {
                stand_in.end().await;
                return Err(StandInError::System(io::ErrorKind::TimedOut.into()));
            }
        };
        if !said.is_empty() {
            stand_in.end().await;
            return Err(StandInError::Refused(String::from_utf8_lossy(&said).into_owned()));
        }
        tokio::spawn(async move {
            while let Ok(signal) = host.read_u8().await {
                let _ = events.try_send(Event::Signal(signal.into()));
            }
        });
        Ok((stand_in, happened))
    }
}

/// Waits for the end of a stand-in.
struct Keeper {
    child: Child,
    process: ProcessIdentity,
    journal: Arc<Journal>,
    entry: EntryId,
}

impl Keeper {
    async fn keep(
        self,
        watch: Option<ExitWatch>,
        mut asked: watch::Receiver<bool>,
        went: watch::Sender<bool>,
        events: mpsc::Sender<Event>,
    ) {
        let exited = async {
            match &watch {
                Some(watch) => watch.exited().await.is_ok(),
                None => true,
            }
        };
        let by_itself = tokio::select! {
            _ = exited => true,
            // An error: its owner is gone.
            () = async { let _ = asked.wait_for(|asked| *asked).await; } => false,
        };
        if !by_itself {
            if let Err(error) = self.process.signal(Signal::KILL) {
                tracing::warn!(%error, "ending the process that stands for a container");
            }
            if let Some(watch) = &watch {
                let _ = tokio::time::timeout(LIMIT, watch.exited()).await;
            }
        }
        self.bury();
        went.send_replace(true);
        if by_itself {
            // Nobody may care any more.
            let _ = events.send(Event::Killed).await;
        }
    }

    /// Reaps it, which has ended or is killed now, and strikes it off.
    fn bury(mut self) {
        let _ = self.child.kill();
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "waiting for the process that stands for a container");
        }
        if let Err(error) = self.journal.strike(self.entry) {
            tracing::warn!(%error, "striking the process that stands for a container off");
        }
    }
}

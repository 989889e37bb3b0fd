//! Loggers: programs of the host that are given a container's output.
//!
//! The contract is that of containerd's own shim: descriptors 3 and 4 are the two outputs, 5 is closed when the program
//! is ready, the environment says whose output it is, and the end of both outputs is the program's. It is the caller's
//! program: it runs with the rights of whoever runs the shim.

use std::{
    io,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::pipe::PipeFlags;
use tokio::{io::AsyncReadExt, net::unix::pipe, sync::watch};

use super::{LoggerCommand, Place, StdioError};
use crate::{
    journal::LOGGER,
    os::{ProcessIdentity, Signal},
};

/// How long a logger may take to be ready.
const READY: Duration = Duration::from_secs(10);
/// How long it may write after the end of the output, before and after it is asked to end.
const LAST_LINES: Duration = Duration::from_secs(2);

/// A logger that is ready.
#[derive(Debug)]
pub(super) struct Logger {
    process: ProcessIdentity,
    /// Closed when it has ended and was reaped.
    ended: watch::Receiver<()>,
}

/// The writing ends of its pipes.
pub(super) struct Outputs {
    pub(super) stdout: pipe::Sender,
    /// Unused with a terminal; kept open all the same, so that both ends come together.
    pub(super) stderr: pipe::Sender,
}

impl Logger {
    /// Starts `command` and waits until it is ready.
    pub(super) async fn start(
        command: &LoggerCommand,
        place: &Place<'_>,
    ) -> Result<(Self, Outputs), StdioError> {
        let fail = |reason: String| StdioError::Logger { program: command.program.clone(), reason };
        let failed = |error: io::Error| fail(error.to_string());
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
        let (stdout, stderr, ready) =
            (pipe().map_err(failed)?, pipe().map_err(failed)?, pipe().map_err(failed)?);
        // While both ends are open: kqueue watches no pipe whose reader is gone (FreeBSD's sys/kern/sys_pipe.c,
        // `pipe_kqfilter`), so writing to one that a quick end left behind would wait for ever.
        let outputs = Outputs {
            stdout: pipe::Sender::from_owned_fd(stdout.1).map_err(failed)?,
            stderr: pipe::Sender::from_owned_fd(stderr.1).map_err(failed)?,
        };
        let mut program = Command::new(&command.program);
        program
            .args(&command.arguments)
            .env_clear()
            .env("CONTAINER_ID", place.id)
            .env("CONTAINER_NAMESPACE", place.namespace)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let spawned = place.journal.spawn_numbered(LOGGER, program, &[stdout.0, stderr.0, ready.1]);
        let (child, process, entry) = spawned.map_err(|error| fail(error.to_string()))?;
        let logger = Self::adopt(child, process, {
            let journal = Arc::clone(place.journal);
            move || {
                if let Err(error) = journal.strike(entry) {
                    tracing::warn!(%error, "a logger stays in the journal");
                }
            }
        });
        let mut ready = pipe::Receiver::from_owned_fd(ready.0).map_err(failed)?;
        let Ok(said) = tokio::time::timeout(READY, ready.read(&mut [0])).await else {
            logger.signal(Signal::KILL);
            return Err(fail(format!("not ready after {} s", READY.as_secs())));
        };
        let said = said.map_err(failed)?;
        if command.says_ready && said == 0 {
            logger.signal(Signal::KILL);
            return Err(fail(
                "it ended, or closed descriptor 5, without a byte to say that it is ready".into(),
            ));
        }
        Ok((logger, outputs))
    }

    /// Looks after a child: reaps it when it ends, and then says so to `forget`.
    fn adopt(mut child: Child, process: ProcessIdentity, forget: impl FnOnce() + Send + 'static) -> Self {
        let (ending, ended) = watch::channel(());
        let watch = process.watch();
        tokio::spawn(async move {
            let exited = match watch {
                Ok(Some(watch)) => watch.exited().await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = exited {
                tracing::warn!(%error, "waiting for a logger");
            }
            // Has exited, so this does not block; or can't be watched, and then a thread has to wait.
            match tokio::task::spawn_blocking(move || child.wait()).await {
                Ok(Ok(status)) if !status.success() => tracing::warn!("a logger ended: {status}"),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "reaping a logger"),
                Err(error) => tracing::warn!(%error, "reaping a logger"),
            }
            forget();
            drop(ending);
        });
        Self { process, ended }
    }

    /// Waits for its end, now that its input has ended, and hastens it if need be.
    pub(super) async fn finish(mut self) {
        for signal in [Signal::TERM, Signal::KILL] {
            if self.ended(LAST_LINES).await {
                return;
            }
            tracing::warn!(pid = self.process.pid, ?signal, "a logger does not end with what it logs");
            self.signal(signal);
        }
        self.ended(LAST_LINES).await;
    }

    async fn ended(&mut self, limit: Duration) -> bool {
        let ended = async { while self.ended.changed().await.is_ok() {} };
        tokio::time::timeout(limit, ended).await.is_ok()
    }

    fn signal(&self, signal: Signal) {
        if let Err(error) = self.process.signal(signal) {
            tracing::warn!(%error, "a logger");
        }
    }
}

//! Standard streams of a process: from what the caller named (FIFOs, files, loggers, streams) to those of the guest.
//!
//! A FIFO's ends are held so that clients may come and go: output is written while a reader of our own keeps it open,
//! and input does not end when one client closes it but when the caller says so.

mod ends;
mod logger;
mod pump;
mod streams;
mod target;

use std::{io, path::PathBuf, sync::Arc};

use skep_protocol::{OpenError, Session, api};

pub(super) use pump::Patience;
pub use pump::Pumps;
pub use streams::{Attached, Delivery, End, Held, Reader, Streams, Writer};
pub use target::{LoggerCommand, Target};

use crate::journal::Journal;

use ends::{Input, Output};
use logger::Logger;

/// What a caller names for a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioRequest {
    /// Where input comes from.
    pub stdin: Target,
    /// Where output goes.
    pub stdout: Target,
    /// Where errors go; unused with a terminal, which has one output.
    pub stderr: Target,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// Standard streams could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// A scheme that is not served.
    #[error(
        "{stream}: {uri}: the scheme {scheme} is not known; fifo, file, binary, binary-v2 and ttrpc+unix are"
    )]
    Scheme {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// What was named.
        uri: String,
        /// Its scheme.
        scheme: String,
    },
    /// Not a path.
    #[error("{stream}: {uri}: not an absolute path")]
    Path {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// What was named.
        uri: String,
    },
    /// A known scheme that does not fit here.
    #[error("{stream}: {uri}: {reason}")]
    Unfit {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// What was named.
        uri: String,
        /// Why not.
        reason: &'static str,
    },
    /// Another process has the stream of this name.
    #[error("{stream}: there is a stream {id} already")]
    Taken {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// Its name.
        id: String,
    },
    /// A logger could not be started.
    #[error("the logger {}: {reason}", program.display())]
    Logger {
        /// Its path.
        program: PathBuf,
        /// What happened.
        reason: String,
    },
    /// A FIFO or file could not be opened.
    #[error("{stream}: cannot open {}: {error}", path.display())]
    Open {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The guest's end could not be opened.
    #[error("{stream}: cannot open a stream to the guest: {error}")]
    Stream {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// Why not.
        error: OpenError,
    },
}

impl StdioRequest {
    /// Reads what containerd sends: paths or URIs, empty for none. A file or a logger that is named as standard output
    /// is given both outputs, whatever is named as the other.
    pub fn parse(stdin: &str, stdout: &str, stderr: &str, terminal: bool) -> Result<Self, StdioError> {
        let stdin = Target::parse("stdin", stdin)?;
        let stdout = Target::parse("stdout", stdout)?;
        let stderr = match &stdout {
            _ if terminal => Target::None,
            Target::File(_) | Target::Logger(_) => stdout.clone(),
            _ => match Target::parse("stderr", stderr)? {
                Target::Logger(_) => {
                    return Err(StdioError::Unfit {
                        stream: "stderr",
                        uri: stderr.to_owned(),
                        reason: "a logger takes both outputs: name it as stdout",
                    });
                }
                target => target,
            },
        };
        Ok(Self { stdin, stdout, stderr, terminal })
    }
}

/// What standard streams need to know of their process and its host.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// containerd's namespace, which loggers are told.
    pub namespace: &'a str,
    /// What loggers are told as the container's id: as by containerd's own shim, an exec's id if it is one.
    pub id: &'a str,
    /// Where processes of the host are recorded.
    pub journal: &'a Arc<Journal>,
    /// The streams that have names.
    pub streams: &'a Arc<Streams>,
}

/// The host's ends, opened.
#[derive(Debug)]
pub struct Stdio {
    input: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    logger: Option<Logger>,
    terminal: bool,
}

impl Stdio {
    /// Opens what `request` names. Waits for a logger to be ready, else never for whoever has the other ends.
    pub async fn open(request: &StdioRequest, place: &Place<'_>) -> Result<Self, StdioError> {
        let mut stdio = Self {
            input: Input::open("stdin", &request.stdin, place.streams).await?,
            stdout: Output::open("stdout", &request.stdout, place.streams).await?,
            stderr: Output::open("stderr", &request.stderr, place.streams).await?,
            logger: None,
            terminal: request.terminal,
        };
        if let Target::Logger(command) = &request.stdout {
            let (logger, outputs) = Logger::start(command, place).await?;
            stdio.stdout = Some(Output::pipe(outputs.stdout));
            stdio.stderr = Some(Output::pipe(outputs.stderr));
            stdio.logger = Some(logger);
        }
        Ok(stdio)
    }

    /// Opens the guest's ends and starts moving bytes. The tokens go into the call that creates the process.
    pub async fn connect(self, session: &Session) -> Result<(api::Stdio, Pumps), StdioError> {
        let mut tokens = api::Stdio::new();
        let mut pumps = Pumps::new(self.terminal, self.logger);
        if let Some(input) = self.input {
            tokens.stdin = session.draw_token();
            pumps.input(open(session, "stdin", tokens.stdin).await?, input);
        }
        match (self.stdout, self.stderr) {
            // A logger's second pipe, with a terminal: nothing is written to it, and it ends with the first.
            (Some(stdout), Some(unused)) if self.terminal => {
                tokens.stdout = session.draw_token();
                pumps.output(open(session, "stdout", tokens.stdout).await?, stdout.with(unused), "stdout");
            }
            (stdout, stderr) => {
                if let Some(output) = stdout {
                    tokens.stdout = session.draw_token();
                    pumps.output(open(session, "stdout", tokens.stdout).await?, output, "stdout");
                }
                if let Some(output) = stderr {
                    tokens.stderr = session.draw_token();
                    pumps.output(open(session, "stderr", tokens.stderr).await?, output, "stderr");
                }
            }
        }
        Ok((tokens, pumps))
    }
}

async fn open(
    session: &Session,
    stream: &'static str,
    token: u64,
) -> Result<skep_protocol::StdioStream, StdioError> {
    session.open_stdio(token).await.map_err(|error| StdioError::Stream { stream, error })
}

#[cfg(test)]
mod tests;

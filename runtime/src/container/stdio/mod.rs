//! Standard streams of a process: from what the caller named (FIFOs, files) to the streams of the guest.
//!
//! A FIFO's ends are held so that clients may come and go: output is written while a reader of our own keeps it open,
//! and input does not end when one client closes it but when the caller says so.

mod fifo;
mod pump;
mod target;

use std::{io, path::PathBuf};

use skep_protocol::{OpenError, Session, api};

pub use pump::Pumps;
pub use target::Target;

use fifo::{Input, Output};

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
    #[error("{stream}: {uri}: the scheme {scheme} is not supported yet; fifo:// and file:// are")]
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
    /// Reads what containerd sends: paths or URIs, empty for none.
    pub fn parse(stdin: &str, stdout: &str, stderr: &str, terminal: bool) -> Result<Self, StdioError> {
        Ok(Self {
            stdin: Target::parse("stdin", stdin)?,
            stdout: Target::parse("stdout", stdout)?,
            stderr: if terminal { Target::None } else { Target::parse("stderr", stderr)? },
            terminal,
        })
    }
}

/// The host's ends, opened.
#[derive(Debug)]
pub struct Stdio {
    input: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    terminal: bool,
}

impl Stdio {
    /// Opens what `request` names. Never waits for whoever has the other ends.
    pub async fn open(request: &StdioRequest) -> Result<Self, StdioError> {
        Ok(Self {
            input: Input::open("stdin", &request.stdin).await?,
            stdout: Output::open("stdout", &request.stdout).await?,
            stderr: Output::open("stderr", &request.stderr).await?,
            terminal: request.terminal,
        })
    }

    /// Opens the guest's ends and starts moving bytes. The tokens go into the call that creates the process.
    pub async fn connect(self, session: &Session) -> Result<(api::Stdio, Pumps), StdioError> {
        let mut tokens = api::Stdio::new();
        let pumps = Pumps::new(self.terminal);
        if let Some(input) = self.input {
            tokens.stdin = session.draw_token();
            pumps.input(open(session, "stdin", tokens.stdin).await?, input);
        }
        if let Some(output) = self.stdout {
            tokens.stdout = session.draw_token();
            pumps.output(open(session, "stdout", tokens.stdout).await?, output, "stdout");
        }
        if let Some(output) = self.stderr {
            tokens.stderr = session.draw_token();
            pumps.output(open(session, "stderr", tokens.stderr).await?, output, "stderr");
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

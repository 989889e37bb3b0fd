//! The host's ends of standard streams.

use std::{
    os::{fd::OwnedFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use rustix::fs::{Mode, OFlags};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::unix::pipe,
};

use super::{
    StdioError, Target,
    streams::{Delivery, Streams},
};

/// What a FIFO of input holds: four times what Linux gives it, so that a client and this process take turns less often.
const INPUT: usize = 256 * 1024;

/// Where output goes.
pub(super) struct Output {
    pub(super) sink: Pin<Box<dyn AsyncWrite + Send>>,
    /// A FIFO's reader: without one a writer is told that the pipe is broken as soon as a client leaves.
    _held: Option<OwnedFd>,
    /// Ends with this one.
    _with: Option<Box<Output>>,
    /// A stream whose client has to take the rest after the sink is closed.
    pub(super) delivery: Option<Delivery>,
}

/// Where input comes from.
pub(super) enum Input {
    /// A FIFO, which is opened when the process starts: a client's open waits for that, so that it cannot write all and
    /// say that its input has ended while whoever it says that to has not heard of the process.
    Fifo(PathBuf),
    /// Something open.
    Open(Source),
}

/// An open input.
pub(super) struct Source {
    pub(super) bytes: Pin<Box<dyn AsyncRead + Send>>,
    /// Without it the input ends as soon as a client leaves: a FIFO's writer, or its like for streams.
    pub(super) held: Option<Box<dyn Send>>,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").finish_non_exhaustive()
    }
}

impl Output {
    pub(super) async fn open(
        stream: &'static str,
        target: &Target,
        streams: &Arc<Streams>,
    ) -> Result<Option<Self>, StdioError> {
        let path = match target {
            // A logger's are made with it.
            Target::None | Target::Logger(_) => return Ok(None),
            Target::Fifo(path) => path,
            Target::File(path) => {
                if let Some(parent) = path.parent() {
                    tokio::fs::create_dir_all(parent).await.map_err(failed(stream, parent))?;
                }
                return append(path).await.map(Some).map_err(failed(stream, path));
            }
            Target::Stream(id) => {
                let (sink, delivery) = streams.output(id).ok_or_else(|| taken(stream, id))?;
                return Ok(Some(Self {
                    sink: Box::pin(sink),
                    _held: None,
                    delivery: Some(delivery),
                    _with: None,
                }));
            }
        };
        if !is_fifo(path).await.map_err(failed(stream, path))? {
            return append(path).await.map(Some).map_err(failed(stream, path));
        }
        // The reader first: the writer's open would fail without one.
        let reader = open(path, OFlags::RDONLY).map_err(failed(stream, path))?;
        let writer = open(path, OFlags::WRONLY).map_err(failed(stream, path))?;
        let sink = pipe::Sender::from_owned_fd(writer).map_err(failed(stream, path))?;
        Ok(Some(Self { sink: Box::pin(sink), _held: Some(reader), delivery: None, _with: None }))
    }

    /// Keeps `other` open as long as this.
    pub(super) fn with(self, other: Self) -> Self {
        Self { _with: Some(Box::new(other)), ..self }
    }

    /// To a pipe.
    pub(super) fn pipe(writer: pipe::Sender) -> Self {
        Self { sink: Box::pin(writer), _held: None, delivery: None, _with: None }
    }
}

impl Input {
    pub(super) async fn open(
        stream: &'static str,
        target: &Target,
        streams: &Arc<Streams>,
    ) -> Result<Option<Self>, StdioError> {
        let path = match target {
            Target::None | Target::Logger(_) => return Ok(None),
            Target::Fifo(path) | Target::File(path) => path,
            Target::Stream(id) => {
                let (source, held) = streams.input(id).ok_or_else(|| taken(stream, id))?;
                let held: Option<Box<dyn Send>> = Some(Box::new(held));
                return Ok(Some(Self::Open(Source { bytes: Box::pin(source), held })));
            }
        };
        if is_fifo(path).await.map_err(failed(stream, path))? {
            return Ok(Some(Self::Fifo(path.clone())));
        }
        let file = tokio::fs::File::open(path).await.map_err(failed(stream, path))?;
        Ok(Some(Self::Open(Source { bytes: Box::pin(file), held: None })))
    }
}

impl Source {
    /// Never waits for a client.
    pub(super) fn fifo(path: &Path) -> std::io::Result<Self> {
        let reader = open(path, OFlags::RDONLY)?;
        let writer = open(path, OFlags::WRONLY)?;
        if let Err(error) = crate::os::widen_pipe(&reader, INPUT) {
            tracing::debug!(path = %path.display(), %error, "a FIFO stays small");
        }
        let bytes = Box::pin(pipe::Receiver::from_owned_fd(reader)?);
        Ok(Self { bytes, held: Some(Box::new(writer)) })
    }
}

fn taken(stream: &'static str, id: &str) -> StdioError {
    StdioError::Taken { stream, id: id.to_owned() }
}

fn failed<E: Into<std::io::Error>>(stream: &'static str, path: &Path) -> impl FnOnce(E) -> StdioError {
    move |error| StdioError::Open { stream, path: path.to_owned(), error: error.into() }
}

async fn is_fifo(path: &Path) -> std::io::Result<bool> {
    Ok(tokio::fs::metadata(path).await?.file_type().is_fifo())
}

/// Never waits for the other end.
fn open(path: &Path, access: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

async fn append(path: &Path) -> std::io::Result<Output> {
    let file = tokio::fs::OpenOptions::new().append(true).create(true).mode(0o644).open(path).await?;
    Ok(Output { sink: Box::pin(file), _held: None, delivery: None, _with: None })
}

//! The host's ends of standard streams.

use std::{
    os::{fd::OwnedFd, unix::fs::FileTypeExt},
    path::Path,
    pin::Pin,
};

use rustix::fs::{Mode, OFlags};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::unix::pipe,
};

use super::{StdioError, Target};

/// Where output goes.
pub(super) struct Output {
    pub(super) sink: Pin<Box<dyn AsyncWrite + Send>>,
    /// A FIFO's reader: without one a writer is told that the pipe is broken as soon as a client leaves.
    _held: Option<OwnedFd>,
}

/// Where input comes from.
pub(super) struct Input {
    pub(super) source: Pin<Box<dyn AsyncRead + Send>>,
    /// A FIFO's writer: without one the input ends as soon as a client leaves.
    pub(super) held: Option<OwnedFd>,
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
    pub(super) async fn open(stream: &'static str, target: &Target) -> Result<Option<Self>, StdioError> {
        let path = match target {
            Target::None => return Ok(None),
            Target::Fifo(path) => path,
            Target::File(path) => {
                return append(path).await.map(Some).map_err(failed(stream, path));
            }
        };
        if !is_fifo(path).await.map_err(failed(stream, path))? {
            return append(path).await.map(Some).map_err(failed(stream, path));
        }
        // The reader first: the writer's open would fail without one.
        let reader = open(path, OFlags::RDONLY).map_err(failed(stream, path))?;
        let writer = open(path, OFlags::WRONLY).map_err(failed(stream, path))?;
        let sink = pipe::Sender::from_owned_fd(writer).map_err(failed(stream, path))?;
        Ok(Some(Self { sink: Box::pin(sink), _held: Some(reader) }))
    }
}

impl Input {
    pub(super) async fn open(stream: &'static str, target: &Target) -> Result<Option<Self>, StdioError> {
        let (Target::Fifo(path) | Target::File(path)) = target else { return Ok(None) };
        if !is_fifo(path).await.map_err(failed(stream, path))? {
            let file = tokio::fs::File::open(path).await.map_err(failed(stream, path))?;
            return Ok(Some(Self { source: Box::pin(file), held: None }));
        }
        let reader = open(path, OFlags::RDONLY).map_err(failed(stream, path))?;
        let writer = open(path, OFlags::WRONLY).map_err(failed(stream, path))?;
        let source = pipe::Receiver::from_owned_fd(reader).map_err(failed(stream, path))?;
        Ok(Some(Self { source: Box::pin(source), held: Some(writer) }))
    }
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
    let file = tokio::fs::OpenOptions::new().append(true).create(true).open(path).await?;
    Ok(Output { sink: Box::pin(file), _held: None })
}

//! How a session ends: who asks for it, and what is said of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::mux::MuxStream;

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("session with the guest ended: {reason}")]
pub struct Closed {
    /// For people.
    pub reason: String,
}

/// Asks for the end of a session; the first reason counts.
pub(crate) fn ask(close: &watch::Sender<Option<&'static str>>, why: &'static str) {
    close.send_if_modified(|reason| {
        let first = reason.is_none();
        reason.get_or_insert(why);
        first
    });
}

/// The stream of the calls. ttrpc drops it when it fails, be it that the guest sent what is no answer or that a
/// request was given up half written; a session without calls is none.
pub(crate) struct CallsStream {
    stream: MuxStream,
    close: watch::Sender<Option<&'static str>>,
}

impl CallsStream {
    pub(crate) fn new(stream: MuxStream, close: watch::Sender<Option<&'static str>>) -> Self {
        Self { stream, close }
    }
}

impl Drop for CallsStream {
    fn drop(&mut self) {
        ask(&self.close, "its calls broke off");
    }
}

impl AsyncRead for CallsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for CallsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

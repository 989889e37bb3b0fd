//! yamux over a byte stream, driven by one future per session.
//!
//! Only the host opens streams; a guest that opens one ends its session. The window of a stream is yamux's
//! initial 256 KiB and does not grow: growing needs a measured round trip, and [`pings`] never reach the wire.
//! That bounds what a stream buffers on either side.

mod frame;
mod gather;
mod pings;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, ConnectionError, FrameDecodeError, Mode};

use gather::{Demand, Gatherer, Gathering};
use pings::WithoutPings;

use crate::link::{self, Limits};

/// Streams a host has open at once, the calls included.
pub(crate) const MAX_STREAMS: usize = 1024;

/// yamux counts a stream until both sides have dropped it and the driver has noticed, and ends the whole
/// connection at its limit: so its limit has room above ours.
const YAMUX_STREAMS: usize = 4 * MAX_STREAMS;

/// Payload of one yamux data frame: it and its header fill a frame of the link that a paced port carries. What waits of a
/// stream while the channel is slower than the writer is at most its window.
pub(crate) const FRAME_PAYLOAD: usize =
    Limits::PACED_HOST.frame as usize - link::frame::HEADER - frame::HEADER;

/// A stream of the mux.
#[derive(Debug)]
pub(crate) struct MuxStream {
    stream: Compat<yamux::Stream>,
    /// On a host, which gathers what comes small.
    demand: Option<Demand>,
}

impl AsyncRead for MuxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let (Poll::Pending, Some(demand)) = (&read, &self.demand) {
            demand.hungry();
        }
        read
    }
}

impl AsyncWrite for MuxStream {
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

/// Why a session's mux ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MuxError {
    /// The channel broke, or the peer broke yamux's rules.
    #[error("{}", reason(.0))]
    Connection(#[from] ConnectionError),
    /// Only the host opens streams.
    #[error("the guest tried to open a stream")]
    Inbound,
}

/// yamux wraps the channel's own error in words of its own.
fn reason(error: &ConnectionError) -> String {
    match error {
        ConnectionError::Io(error) | ConnectionError::Decode(FrameDecodeError::Io(error)) => {
            error.to_string()
        }
        ConnectionError::Closed => "the peer closed the channel".to_owned(),
        other => format!("yamux: {other}"),
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.set_max_connection_receive_window(None);
    config.set_max_num_streams(YAMUX_STREAMS);
    config.set_split_send_size(FRAME_PAYLOAD);
    config
}

type Request = oneshot::Sender<MuxStream>;

/// Opens streams on a host's session.
#[derive(Debug, Clone)]
pub(crate) struct Opener {
    requests: mpsc::Sender<Request>,
    permits: Arc<Semaphore>,
}

/// Why no stream was opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OpenRefused {
    TooMany,
    Closed,
}

impl Opener {
    /// Opens a stream; the permit is to be dropped after it.
    pub(crate) async fn open(&self) -> Result<(MuxStream, OwnedSemaphorePermit), OpenRefused> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| OpenRefused::TooMany)?;
        let (request, answer) = oneshot::channel();
        self.requests.send(request).await.map_err(|_| OpenRefused::Closed)?;
        Ok((answer.await.map_err(|_| OpenRefused::Closed)?, permit))
    }
}

/// The host's side: an opener, and the future that moves the bytes until the session ends.
///
/// The future ends without error when the last opener is gone, or at `close`: at once, its streams break.
pub(crate) fn host<T>(
    io: T,
    close: impl Future<Output = ()>,
) -> (Opener, impl Future<Output = Result<(), MuxError>>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (requests, mut incoming) = mpsc::channel(16);
    let opener = Opener { requests, permits: Arc::new(Semaphore::new(MAX_STREAMS)) };
    let gatherer = Gatherer::default();
    let io = Gathering::new(WithoutPings::new(io.compat()), gatherer.clone());
    let mut connection = Connection::new(io, config(), Mode::Client);
    let driver = async move {
        let (mut waiting, mut close) = (None, std::pin::pin!(close));
        // Not yamux's own closing, which forgets to wake the readers of its streams: dropping it wakes them.
        poll_fn(|cx| match close.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => poll_host(&mut connection, &gatherer, &mut incoming, &mut waiting, cx),
        })
        .await
    };
    (opener, driver)
}

/// Ready when the last opener is gone, or with the reason for which the connection ended.
fn poll_host<T>(
    connection: &mut Connection<T>,
    gatherer: &Gatherer,
    incoming: &mut mpsc::Receiver<Request>,
    waiting: &mut Option<Request>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), MuxError>>
where
    T: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    loop {
        // First of all the connection, which also forgets the streams that were dropped.
        match connection.poll_next_inbound(cx) {
            Poll::Ready(Some(Ok(_refused))) => return Poll::Ready(Err(MuxError::Inbound)),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
            Poll::Ready(None) => return Poll::Ready(Err(ConnectionError::Closed.into())),
            Poll::Pending => {}
        }
        if waiting.is_none() {
            match incoming.poll_recv(cx) {
                Poll::Ready(Some(request)) => *waiting = Some(request),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        match connection.poll_new_outbound(cx) {
            Poll::Ready(Ok(stream)) => {
                if let Some(request) = waiting.take() {
                    let demand = Some(gatherer.add(stream.id().val()));
                    // Dropping the stream of one who no longer waits resets it.
                    let _ = request.send(MuxStream { stream: stream.compat(), demand });
                }
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// The guest's side: hands each stream the host opens to `accept`, until the session ends.
pub(crate) async fn guest<T>(io: T, mut accept: impl FnMut(MuxStream)) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection::new(WithoutPings::new(io.compat()), config(), Mode::Server);
    loop {
        match poll_fn(|cx| connection.poll_next_inbound(cx)).await {
            Some(Ok(stream)) => accept(MuxStream { stream: stream.compat(), demand: None }),
            Some(Err(error)) => return Err(io::Error::other(error)),
            None => return Ok(()),
        }
    }
}

//! Byte channels between host and guest, reliable and in order; the link layer driven over a port.

use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::link::{Event, Link};

/// What a mux runs over.
pub(crate) trait Bytes: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Bytes for T {}

pub(crate) type ByteChannel = Pin<Box<dyn Bytes>>;

/// An established channel of a host.
pub(crate) struct Channel {
    pub(crate) bytes: ByteChannel,
    /// Tells the sessions of one guest apart.
    pub(crate) session: u32,
    /// The link below it, if there is one.
    pub(crate) link: Option<LinkHandle>,
}

impl Channel {
    pub(crate) fn plain(io: impl Bytes + 'static) -> Self {
        Self { bytes: Box::pin(io), session: draw_session(), link: None }
    }
}

/// A number that nobody who does not see the channel can guess: the keys of the hasher come from the system's
/// random device. Never 0.
pub(crate) fn draw_session() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().hash_one(std::process::id()).to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d]).max(1)
}

/// Steps of a driver before it lets other tasks run.
const STEPS: usize = 32;

/// How long the peer is given to take the word that a session is over.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the driver of a link and the stream of its session share.
#[derive(Debug)]
struct Shared {
    link: Link,
    /// The port is gone; nothing more will come.
    broken: Option<String>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    driver: Option<Waker>,
}

impl Shared {
    fn wake_stream(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }
}

/// Access to a link from outside of its tasks.
#[derive(Debug, Clone)]
pub(crate) struct LinkHandle(Arc<Mutex<Shared>>);

impl LinkHandle {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Link::set_paused`].
    pub(crate) fn set_paused(&self, paused: bool) {
        let mut shared = self.lock();
        shared.link.set_paused(paused);
        shared.wake_driver();
    }

    /// The byte stream of a session that has begun.
    pub(crate) fn stream(&self, session: u32) -> LinkStream {
        LinkStream { link: self.clone(), session }
    }
}

/// Moves the bytes of a link; nothing moves unless it is polled.
#[derive(Debug)]
pub(crate) struct Driver<T> {
    io: T,
    link: LinkHandle,
    /// To be written, from `written` on.
    wire: Vec<u8>,
    written: usize,
    /// The port takes nothing any more. What it still has to give is read to its end.
    write_broken: bool,
    epoch: Instant,
    /// Fires no later than the link's deadline, perhaps before it.
    timer: Pin<Box<Sleep>>,
    timer_at: Option<Duration>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    /// `link` is given time 0.
    pub(crate) fn new(io: T, link: impl FnOnce(Duration) -> Link) -> Self {
        let shared =
            Shared { link: link(Duration::ZERO), broken: None, reader: None, writer: None, driver: None };
        Self {
            io,
            link: LinkHandle(Arc::new(Mutex::new(shared))),
            wire: Vec::new(),
            written: 0,
            write_broken: false,
            epoch: Instant::now(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            timer_at: None,
        }
    }

    pub(crate) fn link(&self) -> &LinkHandle {
        &self.link
    }

    /// Runs the link until something happens to its session, or the port fails.
    pub(crate) async fn next_event(&mut self) -> io::Result<Event> {
        let event = poll_fn(|cx| self.poll_event(cx)).await;
        let mut shared = self.link.lock();
        if let Err(error) = &event {
            shared.broken = Some(error.to_string());
        }
        shared.wake_stream();
        drop(shared);
        event
    }

    /// Runs a host's link to the end of its session.
    pub(crate) async fn run(mut self) {
        let reason = match self.next_event().await {
            Ok(Event::Ended { end, .. }) => end.to_string(),
            Ok(other) => format!("unexpected {other:?}"),
            Err(_) => return,
        };
        self.link.lock().broken = Some(reason);
        // The link has at most its farewell to say.
        let farewell = poll_fn(|cx| self.poll_write(Duration::MAX, cx));
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Event>> {
        self.link.lock().driver = Some(cx.waker().clone());
        for _ in 0..STEPS {
            let now = self.epoch.elapsed();
            if let Some(event) = self.link.lock().link.poll_event() {
                return Poll::Ready(Ok(event));
            }
            let read = self.poll_read(now, cx)?;
            let written = self.poll_write_or_break(now, cx);
            // While the port takes nothing, what a timeout would have to say would wait with the rest.
            let timer = if written.is_ready() { self.poll_timer(now, cx) } else { Poll::Pending };
            if read.is_pending() && timer.is_pending() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when something was read.
    fn poll_read(&mut self, now: Duration, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.link.lock();
        let space = shared.link.space();
        if space.is_empty() {
            return Poll::Pending;
        }
        let mut buf = ReadBuf::new(space);
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf));
        let count = buf.filled().len();
        match read {
            Ok(()) if count > 0 => {}
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => return Poll::Ready(Err(error)),
            _ => {
                let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "the console port was closed");
                return Poll::Ready(Err(closed));
            }
        }
        shared.link.received(count, now);
        // A part of a frame is nothing to read yet, and the writer is woken when something was sent.
        if shared.link.has_received()
            && let Some(reader) = shared.reader.take()
        {
            reader.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_or_break(&mut self, now: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if self.write_broken {
            return Poll::Pending;
        }
        match ready!(self.poll_write(now, cx)) {
            Ok(()) => Poll::Ready(()),
            Err(error) => {
                tracing::debug!(%error, "writing to the console port");
                self.write_broken = true;
                Poll::Pending
            }
        }
    }

    /// Ready when all that is to be written now is.
    fn poll_write(&mut self, now: Duration, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.written == self.wire.len() {
                self.wire.clear();
                self.written = 0;
                let mut shared = self.link.lock();
                if !shared.link.poll_transmit(now, &mut self.wire) {
                    drop(shared);
                    return Pin::new(&mut self.io).poll_flush(cx);
                }
                if let Some(writer) = shared.writer.take() {
                    writer.wake();
                }
            }
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.wire[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
    }

    /// Ready when the link's time had come.
    fn poll_timer(&mut self, now: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.link.lock();
        let Some(at) = shared.link.deadline() else { return Poll::Pending };
        if at <= now {
            shared.link.on_timeout(now);
            return Poll::Ready(());
        }
        if self.timer_at.is_none_or(|set| set > at || set <= now) {
            self.timer.as_mut().reset(self.epoch + at);
            self.timer_at = Some(at);
        }
        ready!(self.timer.as_mut().poll(cx));
        self.timer_at = None;
        Poll::Ready(())
    }
}

/// The reliable byte stream of one session of a link. Dropping it ends the session.
#[derive(Debug)]
pub(crate) struct LinkStream {
    link: LinkHandle,
    session: u32,
}

impl LinkStream {
    fn is_over(&self, shared: &Shared) -> Option<io::Error> {
        let text = match &shared.broken {
            Some(reason) => reason.clone(),
            None if shared.link.session() != Some(self.session) => "the session is over".to_owned(),
            None => return None,
        };
        Some(io::Error::new(io::ErrorKind::ConnectionReset, text))
    }
}

impl Drop for LinkStream {
    fn drop(&mut self) {
        let mut shared = self.link.lock();
        shared.link.close(self.session);
        shared.wake_driver();
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.link.lock();
        let was_full = shared.link.space().is_empty();
        // What came before the port broke is still read.
        let count = if shared.link.session() == Some(self.session) {
            shared.link.read(buf.initialize_unfilled())
        } else {
            0
        };
        if count > 0 {
            buf.advance(count);
            if was_full {
                shared.wake_driver();
            }
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = self.is_over(&shared) {
            return Poll::Ready(Err(error));
        }
        shared.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut shared = self.link.lock();
        if let Some(error) = self.is_over(&shared) {
            return Poll::Ready(Err(error));
        }
        let count = shared.link.write(buf);
        if count == 0 && !buf.is_empty() {
            shared.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        shared.wake_driver();
        Poll::Ready(Ok(count))
    }

    /// What is written goes out by itself.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A session has no half close.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

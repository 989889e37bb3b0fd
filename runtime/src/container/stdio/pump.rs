//! Tasks that move bytes between the host's ends and the guest's.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use skep_protocol::Chunk;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    task::AbortHandle,
    time::Instant,
};

use super::{
    ends::{Input, Output, Source},
    logger::Logger,
    streams::Name,
};

/// Bytes moved at once. What is under way in a stream is bounded by this, the mux's window and the FIFO's buffer.
const BUFFER: usize = 32 * 1024;
/// The same of input: one chunk of a stream, so that none of a few bytes goes after each.
const INPUT: usize = Chunk::ROOM;

/// The moving bytes of one process. Dropping it stops them.
pub struct Pumps {
    terminal: bool,
    tasks: Mutex<Vec<AbortHandle>>,
    input: Mutex<Option<AbortHandle>>,
    held_input: Arc<Mutex<Held>>,
    /// Whether the process may start at any moment, or has.
    begun: watch::Sender<bool>,
    /// Of streams, which have theirs until the process is forgotten.
    names: Vec<Name>,
    logger: Mutex<Option<Logger>>,
    /// Every task of an output has a sender: when the last is dropped, all output is where it belongs.
    draining: Mutex<Option<watch::Sender<Option<Infallible>>>>,
    drained: watch::Receiver<Option<Infallible>>,
    /// Bytes of output that were handed over.
    moved: Arc<AtomicU64>,
}

/// How long output is waited for after its process has ended. The guest may never end it, so all of it is bounded.
#[derive(Debug, Clone, Copy)]
pub(in crate::container) struct Patience {
    /// Without a byte being handed over.
    pub(in crate::container) idle: Duration,
    /// In all.
    pub(in crate::container) most: Duration,
    /// Bytes after which it is more than a process can have left behind.
    pub(in crate::container) bytes: u64,
}

/// What keeps an input from ending when a client leaves.
#[derive(Default)]
enum Held {
    /// Nothing yet.
    #[default]
    Nothing,
    /// The other end.
    End {
        /// Open as long as it is kept.
        _kept: Box<dyn Send>,
    },
    /// Nothing any more: the caller said that there is no more input.
    Closed,
}

impl Held {
    fn hold(&mut self, end: Option<Box<dyn Send>>) {
        if let (Self::Nothing, Some(end)) = (&*self, end) {
            *self = Self::End { _kept: end };
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Pumps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pumps").finish_non_exhaustive()
    }
}

impl Pumps {
    /// Of a process that has no streams.
    pub(in crate::container) fn idle(terminal: bool) -> Self {
        Self::new(terminal, None)
    }

    pub(super) fn new(terminal: bool, logger: Option<Logger>) -> Self {
        let (draining, drained) = watch::channel(None);
        Self {
            terminal,
            tasks: Mutex::default(),
            input: Mutex::default(),
            held_input: Arc::default(),
            begun: watch::Sender::new(false),
            names: Vec::new(),
            logger: Mutex::new(logger),
            draining: Mutex::new(Some(draining)),
            drained,
            moved: Arc::default(),
        }
    }

    pub(super) fn output<S>(&mut self, stream: S, mut output: Output, name: &'static str)
    where
        S: AsyncRead + Unpin + Send + 'static,
    {
        let guard = lock(&self.draining).clone();
        let delivered = output.delivery.take().map(|delivery| {
            let delivered = delivery.done();
            self.names.push(delivery.name);
            delivered
        });
        let moved = Arc::clone(&self.moved);
        let task = tokio::spawn(async move {
            // The guest throws away what comes after a break.
            if let Err(error) = copy(stream, output, &moved).await {
                tracing::warn!(stream = name, %error, "output broke off");
            }
            if let Some(delivered) = delivered {
                delivered.await;
            }
            drop(guard);
        });
        lock(&self.tasks).push(task.abort_handle());
    }

    pub(super) fn input<S>(&self, stream: S, input: Input)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let held = Arc::clone(&self.held_input);
        let mut begun = self.begun.subscribe();
        let mut stream = stream;
        let terminal = self.terminal;
        let open = match input {
            Input::Open(mut source) => {
                lock(&held).hold(source.held.take());
                Ok(source)
            }
            Input::Fifo(path) => Err(path),
        };
        let task = tokio::spawn(async move {
            let source = match open {
                Ok(source) => Some(source),
                Err(path) => {
                    if begun.wait_for(|begun| *begun).await.is_err() {
                        return;
                    }
                    match Source::fifo(&path) {
                        Ok(mut source) => {
                            lock(&held).hold(source.held.take());
                            Some(source)
                        }
                        // Whoever made it has gone with it: there is no input.
                        Err(error) => {
                            tracing::warn!(path = %path.display(), %error, "standard input");
                            None
                        }
                    }
                }
            };
            if let Some(mut source) = source
                && let Err(error) = feed(&mut source.bytes, &mut stream).await
            {
                tracing::debug!(%error, "input broke off");
                return;
            }
            // A terminal ends by what is typed into it, not by its client's leaving.
            if !terminal {
                let _ = stream.shutdown().await;
            }
            // The guest closes its end when the process has read all or is gone; until then dropping ours would
            // look like a break.
            let _ = stream.read(&mut [0]).await;
        });
        *lock(&self.input) = Some(task.abort_handle());
    }

    /// The process is about to start: input is read from now on.
    pub fn begin_input(&self) {
        self.begun.send_replace(true);
    }

    /// No more input than the clients that have the FIFO open now will send.
    pub fn close_input(&self) {
        *lock(&self.held_input) = Held::Closed;
    }

    /// Stops reading input: the process has exited.
    pub fn stop_input(&self) {
        self.close_input();
        if let Some(task) = lock(&self.input).take() {
            task.abort();
        }
    }

    /// Waits until all output has been handed over, with so much patience; whether it has.
    pub(in crate::container) async fn drained(&self, patience: Patience) -> bool {
        lock(&self.draining).take();
        let mut drained = self.drained.clone();
        let end = Instant::now() + patience.most;
        let first = self.moved.load(Ordering::Relaxed);
        let mut before = first;
        loop {
            let limit = end.min(Instant::now() + patience.idle);
            // Nothing is ever sent: the channel's end is the message.
            let closed = async { while drained.changed().await.is_ok() {} };
            if tokio::time::timeout_at(limit, closed).await.is_ok() {
                return true;
            }
            let now = self.moved.load(Ordering::Relaxed);
            if now == before || now - first > patience.bytes || Instant::now() >= end {
                return false;
            }
            before = now;
        }
    }

    /// Ends the outputs, whatever they still hold, and waits for the logger's end.
    pub async fn finish(&self) {
        self.stop();
        let logger = lock(&self.logger).take();
        if let Some(logger) = logger {
            logger.finish().await;
        }
    }

    fn stop(&self) {
        self.stop_input();
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn copy<S: AsyncRead + Unpin>(
    mut stream: S,
    mut output: Output,
    moved: &AtomicU64,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return output.sink.flush().await;
        }
        output.sink.write_all(&buffer[..n]).await?;
        // A file's writer takes bytes before they are written.
        output.sink.flush().await?;
        moved.fetch_add(n as u64, Ordering::Relaxed);
    }
}

async fn feed<R, W>(source: &mut R, stream: &mut W) -> std::io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; INPUT];
    loop {
        let n = source.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n]).await?;
        stream.flush().await?;
    }
}

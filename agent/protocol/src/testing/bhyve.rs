//! bhyve's virtio-console.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What a guest's driver posts.
#[derive(Debug, Clone, Copy)]
pub struct Buffers {
    /// How many.
    pub count: usize,
    /// Bytes each.
    pub size: usize,
}

impl Buffers {
    /// Linux: a page each.
    pub const LINUX: Self = Self { count: 64, size: 4096 };
    /// FreeBSD.
    pub const FREEBSD: Self = Self { count: 64, size: 128 };
}

/// How the bytes travel, besides. bhyve itself does neither.
#[derive(Debug, Clone, Copy)]
pub struct Travel {
    /// At most so many bytes at once, either way.
    pub piece: usize,
    /// A pause before each piece to the guest.
    pub delay: Duration,
}

impl Travel {
    /// As fast and whole as it goes.
    pub const DIRECT: Self = Self { piece: usize::MAX, delay: Duration::ZERO };
}

/// What the port did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections closed because the guest's buffers ran out.
    pub overruns: u64,
    /// Most buffers that waited for the guest at once.
    pub most_waiting: usize,
    /// Bytes to the guest that were dropped.
    pub dropped_down: u64,
    /// Bytes from the guest that were dropped.
    pub dropped_up: u64,
    /// Connections accepted, the refused ones included.
    pub accepted: u64,
    /// Second connections, closed at once.
    pub refused: u64,
    /// Reads and writes on the host's connection that moved bytes.
    pub transfers: u64,
}

#[derive(Debug)]
struct State {
    buffers: Buffers,
    travel: Travel,
    client: Option<Arc<UnixStream>>,
    /// The driver has posted its buffers.
    ready: bool,
    /// The guest has opened the port.
    open: bool,
    stopped: bool,
    /// Filled buffers, and how much of the first has been read.
    filled: VecDeque<Vec<u8>>,
    taken: usize,
    counts: Counts,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug)]
struct Port {
    state: Mutex<State>,
    /// The state changed in a way that matters to the VMM's task.
    changed: Notify,
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn posted(&self) -> usize {
        if self.ready { self.buffers.count - self.filled.len() } else { 0 }
    }

    fn wake_guest(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// The VMM's side. Dropping it ends the VM: the socket closes.
#[derive(Debug)]
pub struct BhyveConsole {
    port: Arc<Port>,
    task: JoinHandle<()>,
}

/// The guest's side of a port that is not open yet.
#[derive(Debug)]
pub struct ClosedPort(Arc<Port>);

/// The guest's side, opened: what the agent reads and writes.
#[derive(Debug)]
pub struct GuestPort {
    port: Arc<Port>,
}

/// A port behind a new unix socket at `socket`. The guest has not booted: its driver comes with
/// [`ClosedPort::probe`].
pub fn bhyve_console(
    socket: &Path,
    buffers: Buffers,
    travel: Travel,
) -> io::Result<(BhyveConsole, ClosedPort)> {
    let listener = UnixListener::bind(socket)?;
    let state = State {
        buffers,
        travel,
        client: None,
        ready: false,
        open: false,
        stopped: false,
        filled: VecDeque::new(),
        taken: 0,
        counts: Counts::default(),
        reader: None,
        writer: None,
    };
    let port = Arc::new(Port { state: Mutex::new(state), changed: Notify::new() });
    let task = tokio::spawn(serve(Arc::clone(&port), listener));
    Ok((BhyveConsole { port: Arc::clone(&port), task }, ClosedPort(port)))
}

impl BhyveConsole {
    /// What the port did so far.
    pub fn counts(&self) -> Counts {
        self.port.lock().counts
    }

    /// Stops the VM, as SIGSTOP does, or lets it go on.
    pub fn set_stopped(&self, stopped: bool) {
        let mut state = self.port.lock();
        state.stopped = stopped;
        state.wake_guest();
        drop(state);
        self.port.changed.notify_one();
    }

    /// Closes the host's connection.
    pub fn disconnect(&self) {
        self.port.lock().client = None;
        self.port.changed.notify_one();
    }
}

impl Drop for BhyveConsole {
    fn drop(&mut self) {
        self.task.abort();
        self.port.lock().client = None;
    }
}

impl ClosedPort {
    /// What the port did so far.
    pub fn counts(&self) -> Counts {
        self.0.lock().counts
    }

    /// The guest's driver finds the port and posts its buffers.
    pub fn probe(&self) {
        self.0.lock().ready = true;
        self.0.changed.notify_one();
    }

    /// The agent opens the port.
    pub fn open(self) -> GuestPort {
        self.probe();
        self.0.lock().open = true;
        GuestPort { port: self.0 }
    }
}

async fn serve(port: Arc<Port>, listener: UnixListener) {
    loop {
        let (stopped, client, delay) = {
            let state = port.lock();
            (state.stopped, state.client.clone(), state.travel.delay)
        };
        if stopped {
            port.changed.notified().await;
            continue;
        }
        let readable = async {
            match &client {
                Some(client) => client.readable().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = port.changed.notified() => {}
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                let mut state = port.lock();
                state.counts.accepted += 1;
                if state.client.is_some() {
                    state.counts.refused += 1;
                } else {
                    state.client = Some(Arc::new(stream));
                }
            }
            _ = readable => {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                if let Some(client) = &client {
                    receive(&mut port.lock(), client);
                }
            }
        }
    }
}

/// The socket has something: what bhyve's callback does about it.
fn receive(state: &mut State, client: &Arc<UnixStream>) {
    if state.stopped || state.client.as_ref().is_none_or(|present| !Arc::ptr_eq(present, client)) {
        return;
    }
    if state.posted() == 0 {
        let mut dummy = [0; 2048];
        match client.try_read(&mut dummy) {
            Ok(0) => state.client = None,
            Ok(count) => state.counts.dropped_down += count as u64,
            Err(_) => {}
        }
        return;
    }
    loop {
        let mut buffer = vec![0; state.buffers.size.min(state.travel.piece)];
        match client.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                state.counts.transfers += 1;
                if state.open {
                    buffer.truncate(count);
                    state.filled.push_back(buffer);
                } else {
                    state.counts.dropped_down += count as u64;
                }
            }
            Err(_) => return,
        }
        state.counts.most_waiting = state.counts.most_waiting.max(state.filled.len());
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        if state.posted() == 0 {
            // Out of buffers within a burst: bhyve goes on to close.
            state.counts.overruns += 1;
            break;
        }
        if !state.travel.delay.is_zero() {
            return;
        }
    }
    state.client = None;
}

impl AsyncRead for GuestPort {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.port.lock();
        let state = &mut *state;
        let Some(first) = state.filled.front().filter(|_| !state.stopped) else {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let rest = &first[state.taken..];
        let count = rest.len().min(buf.remaining()).min(state.travel.piece);
        buf.put_slice(&rest[..count]);
        if count == rest.len() {
            state.taken = 0;
            state.filled.pop_front();
            self.port.changed.notify_one();
        } else {
            state.taken += count;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuestPort {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let client = {
            let mut state = self.port.lock();
            if state.stopped {
                state.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            // The Linux driver's longest write.
            let longest = state.travel.piece.min(32 * 1024);
            let Some(client) = state.client.clone() else {
                let count = buf.len().min(longest);
                state.counts.dropped_up += count as u64;
                return Poll::Ready(Ok(count));
            };
            (client, longest)
        };
        let (client, longest) = client;
        let buf = &buf[..buf.len().min(longest)];
        loop {
            // bhyve holds up the guest's vCPU meanwhile.
            ready!(client.poll_write_ready(cx))?;
            match client.try_write(buf) {
                Ok(count) => {
                    self.port.lock().counts.transfers += 1;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    let mut state = self.port.lock();
                    state.client = None;
                    state.counts.dropped_up += buf.len() as u64;
                    self.port.changed.notify_one();
                    return Poll::Ready(Ok(buf.len()));
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const TINY: Buffers = Buffers { count: 4, size: 10 };

    async fn closed_by_vmm(host: &mut UnixStream) -> bool {
        matches!(host.read(&mut [0; 1]).await, Ok(0) | Err(_))
    }

    #[tokio::test]
    async fn misbehaves_as_bhyve_does() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("console");
        let (vmm, guest) = bhyve_console(&socket, TINY, Travel::DIRECT).unwrap();
        let mut host = UnixStream::connect(&socket).await.unwrap();

        // Dropped: no driver yet, then no reader yet.
        host.write_all(b"early").await.unwrap();
        while vmm.counts().dropped_down < 5 {
            tokio::task::yield_now().await;
        }
        guest.probe();
        host.write_all(b"early").await.unwrap();
        while vmm.counts().dropped_down < 10 {
            tokio::task::yield_now().await;
        }
        let mut guest = guest.open();
        host.write_all(b"hello").await.unwrap();
        let mut five = [0; 5];
        guest.read_exact(&mut five).await.unwrap();
        assert_eq!(&five, b"hello");
        guest.write_all(b"answer").await.unwrap();
        let mut six = [0; 6];
        host.read_exact(&mut six).await.unwrap();
        assert_eq!(&six, b"answer");

        // A second host is turned away, the first stays.
        let mut second = UnixStream::connect(&socket).await.unwrap();
        assert!(closed_by_vmm(&mut second).await);
        assert_eq!(vmm.counts().refused, 1);

        // Closed on overrun; what was in the buffers arrives.
        host.write_all(&[b'x'; 45]).await.unwrap();
        assert!(closed_by_vmm(&mut host).await);
        let mut forty = [0; 40];
        guest.read_exact(&mut forty).await.unwrap();
        assert_eq!((vmm.counts().overruns, vmm.counts().most_waiting), (1, 4));

        // Lost without a word: nobody is connected.
        guest.write_all(b"anyone?").await.unwrap();
        assert_eq!(vmm.counts().dropped_up, 7);
        // The next host is accepted and the guest is not told.
        let mut host = UnixStream::connect(&socket).await.unwrap();
        host.write_all(b"again").await.unwrap();
        guest.read_exact(&mut five).await.unwrap();
        assert_eq!(&five, b"again");
    }

    #[tokio::test]
    async fn a_stopped_vm_takes_nothing_and_goes_on_later() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("console");
        let (vmm, guest) = bhyve_console(&socket, TINY, Travel { piece: 3, delay: Duration::ZERO }).unwrap();
        let mut guest = guest.open();
        let mut host = UnixStream::connect(&socket).await.unwrap();
        vmm.set_stopped(true);
        host.write_all(b"hello").await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(30), guest.read_u8()).await;
        assert!(early.is_err());
        vmm.set_stopped(false);
        assert_eq!(guest.read(&mut [0; 10]).await.unwrap(), 3, "in pieces");
        assert_eq!(guest.read(&mut [0; 10]).await.unwrap(), 2);
    }
}

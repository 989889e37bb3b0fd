//! Connections whose end is heard a little later than it comes.
//!
//! ttrpc drops what it has received and not handed over yet when a connection ends, and closes it without reading on
//! when an answer can't be sent. A client that sends a process's last input and leaves would lose it. So the end of a
//! connection is held back for a while, and what cannot be sent any more waits instead of failing. Who wants to know
//! whether clients have left asks [`Clients`], which hears of it at once.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::Sleep;

/// How long an end is held back: what was received is with its process by then, unless that does not read.
const LINGER: Duration = Duration::from_secs(5);

/// Connections of `listener`, each lingering, and how many of them have a client.
pub(crate) fn accept(
    listener: StdListener,
) -> io::Result<(impl Stream<Item = io::Result<Lingering>> + Send, Clients)> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let count = watch::Sender::new(0);
    let clients = Clients(count.subscribe());
    let connections = futures::stream::unfold((listener, count), async |(listener, count)| {
        let accepted =
            listener.accept().await.map(|(socket, _)| Lingering::new(socket, Present::new(&count)));
        Some((accepted, (listener, count)))
    });
    Ok((connections, clients))
}

/// The clients that have not hung up.
#[derive(Debug)]
pub(crate) struct Clients(watch::Receiver<usize>);

impl Clients {
    /// Waits until there are none, or nobody accepts any more.
    pub(crate) async fn gone(mut self) {
        // An error says that there is nobody left who counts.
        let _ = self.0.wait_for(|count| *count == 0).await;
    }
}

/// A client among those that are counted.
#[derive(Debug)]
struct Present(watch::Sender<usize>);

impl Present {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// A connection whose end is held back.
#[derive(Debug)]
pub(crate) struct Lingering {
    socket: UnixStream,
    /// Until the client has hung up.
    client: Option<Present>,
    /// Nothing can be sent any more.
    deaf: bool,
    /// Nothing will come any more; told when this is over.
    end: Option<(Pin<Box<Sleep>>, Option<io::Error>)>,
}

impl Lingering {
    fn new(socket: UnixStream, client: Present) -> Self {
        Self { socket, client: Some(client), deaf: false, end: None }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.is_none() {
            let before = buf.filled().len();
            let error = match ready!(Pin::new(&mut self.socket).poll_read(cx, buf)) {
                Ok(()) if buf.filled().len() > before || buf.remaining() == 0 => return Poll::Ready(Ok(())),
                Ok(()) => None,
                Err(error) => Some(error),
            };
            self.client = None;
            self.end = Some((Box::pin(tokio::time::sleep(LINGER)), error));
        }
        let Some((sleep, error)) = &mut self.end else { return Poll::Pending };
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(error.take().map_or(Ok(()), Err))
    }
}

impl Lingering {
    /// The reader hears of the end; a writer that waits is dropped with it.
    fn unless_broken<T>(&mut self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match done {
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "a client has left");
                self.deaf = true;
                Poll::Pending
            }
            other => other,
        }
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Pending;
        }
        let done = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.unless_broken(done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Pending;
        }
        let done = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.unless_broken(done)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Pending;
        }
        let done = Pin::new(&mut self.socket).poll_flush(cx);
        self.unless_broken(done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// A client that hung up is gone for whoever waits for that, while its connection still lingers.
    #[tokio::test]
    async fn clients_are_gone_when_they_hang_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (connections, clients) = accept(StdListener::bind(&path).unwrap()).unwrap();
        let mut connections = std::pin::pin!(connections);
        let client = UnixStream::connect(&path).await.unwrap();
        let mut connection = connections.next().await.unwrap().unwrap();
        let mut reader = tokio::spawn(async move { connection.read_u8().await });

        let mut gone = tokio::spawn(clients.gone());
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!gone.is_finished(), "gone with a client there");
        drop(client);
        // The connection hears of it last. A machine may be so slow that both come at once.
        tokio::select! {
            biased;
            gone = &mut gone => gone.unwrap(),
            _ = &mut reader => panic!("the connection's end came before"),
        }
    }
}

//! Keeps yamux's pings off the wire.
//!
//! yamux measures the round trip by pings, which can't be turned off, and reads nothing while its answer to
//! one waits to be written. Two busy peers that ping each other at the same time, with the channel full both
//! ways, would wait for each other for ever. A ping that is never answered is never repeated, and an unknown
//! round trip leaves the windows at their initial size, as we want them. Liveness is not yamux's concern here.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};

use super::frame::{FLAG_ACK, HEADER, TYPE_DATA, TYPE_PING};

/// A byte stream that swallows the ping requests written to it.
#[derive(Debug)]
pub(crate) struct WithoutPings<T> {
    inner: T,
    state: State,
}

#[derive(Debug)]
enum State {
    /// So many bytes of a header are here.
    Header { bytes: [u8; HEADER], have: usize },
    /// A header of which so many bytes are out; then so many bytes of body pass.
    Emit { bytes: [u8; HEADER], out: usize, body: usize },
    /// So many bytes of body pass.
    Body { left: usize },
}

const START: State = State::Header { bytes: [0; HEADER], have: 0 };

impl<T> WithoutPings<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, state: START }
    }
}

fn after_header(bytes: [u8; HEADER]) -> State {
    let [_, kind, _, flags, .., a, b, c, d] = bytes;
    match kind {
        TYPE_PING if flags & FLAG_ACK == 0 => START,
        TYPE_DATA => State::Emit { bytes, out: 0, body: u32::from_be_bytes([a, b, c, d]) as usize },
        _ => State::Emit { bytes, out: 0, body: 0 },
    }
}

impl<T: AsyncWrite + Unpin> WithoutPings<T> {
    fn poll_emit(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let State::Emit { bytes, out, body } = &mut self.state {
            let n = ready!(Pin::new(&mut self.inner).poll_write(cx, &bytes[*out..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *out += n;
            if *out >= HEADER {
                self.state = if *body == 0 { START } else { State::Body { left: *body } };
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WithoutPings<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_emit(cx))?;
        match &mut this.state {
            State::Header { bytes, have } => {
                let n = buf.len().min(HEADER - *have);
                bytes[*have..*have + n].copy_from_slice(&buf[..n]);
                *have += n;
                if *have == HEADER {
                    this.state = after_header(*bytes);
                }
                Poll::Ready(Ok(n))
            }
            State::Body { left } => {
                let n = buf.len().min(*left);
                let n = ready!(Pin::new(&mut this.inner).poll_write(cx, &buf[..n]))?;
                *left -= n;
                if *left == 0 {
                    this.state = START;
                }
                Poll::Ready(Ok(n))
            }
            State::Emit { .. } => unreachable!("poll_emit leaves no header behind"),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_emit(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_emit(cx))?;
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WithoutPings<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::frame;
    use super::*;
    use futures::AsyncWriteExt;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the frames and however they are cut, all but the ping requests arrive.
        #[test]
        fn swallows_ping_requests_only(
            kinds in proptest::collection::vec((0u8..4, 0u8..16, 0usize..40), 0..20),
            cuts in proptest::collection::vec(1usize..30, 1..40),
        ) {
            let (mut all, mut expected) = (Vec::new(), Vec::new());
            for (kind, flags, length) in kinds {
                let body = if kind == TYPE_DATA { vec![TYPE_PING; length] } else { Vec::new() };
                let bytes = frame(kind, flags, 7, &body);
                all.extend_from_slice(&bytes);
                if kind != TYPE_PING || flags & FLAG_ACK != 0 {
                    expected.extend_from_slice(&bytes);
                }
            }
            let mut filter = WithoutPings::new(Vec::new());
            futures::executor::block_on(async {
                let (mut rest, mut cuts) = (&all[..], cuts.iter().cycle());
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                    filter.write_all(now).await.unwrap();
                    rest = later;
                }
                filter.flush().await.unwrap();
            });
            prop_assert_eq!(&filter.inner, &expected);
        }
    }
}

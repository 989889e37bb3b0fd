//! A stream of a process's bytes.
//!
//! The mux alone can't tell a stream that ended from one that broke off with its session. So the bytes travel
//! in chunks, a big-endian u16 length before each, and a chunk of length 0 is the end: what stops without it
//! broke.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use crate::mux::{FRAME_PAYLOAD, MuxStream};

/// Room for the bytes of one chunk, which [`StdioStream::send`] sends as they lie there.
#[derive(Debug)]
pub struct Chunk(Box<[u8]>);

impl Default for Chunk {
    fn default() -> Self {
        Self(vec![0; HEAD + CHUNK].into_boxed_slice())
    }
}

impl Chunk {
    /// How many bytes it has room for.
    pub const ROOM: usize = CHUNK;

    /// The room, to be filled from its beginning.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.0[HEAD..]
    }
}

/// Length of a chunk's head.
const HEAD: usize = 2;

/// Longest chunk written: it and its head fill one frame of the mux.
const CHUNK: usize = FRAME_PAYLOAD - HEAD;
const _: () = assert!(CHUNK <= u16::MAX as usize);

/// Bytes of a process, to or from it.
///
/// `shutdown` is a half close: the peer reads EOF after all that was written before. A stream that breaks
/// (the session ended, or the peer dropped it unfinished) is an error when read, of kind `ConnectionReset`,
/// never EOF. Writing to a stream that the peer dropped is an error of kind `BrokenPipe`.
///
/// A write that was accepted only in part is to be continued before the shutdown; what is cut off there
/// reads as a break at the peer.
#[derive(Debug)]
pub struct StdioStream {
    chunks: Chunked<MuxStream>,
    /// Given back after the stream is dropped: fields drop in this order.
    _permit: Option<OwnedSemaphorePermit>,
}

impl StdioStream {
    pub(crate) fn new(stream: MuxStream, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { chunks: Chunked::new(stream), _permit: permit }
    }

    /// Writes the first `length` bytes of a chunk, all of them: what `write_all` does without a copy on the way. Errors
    /// are those of a write. If it is not awaited to its end, the stream is cut off there, as by a write.
    pub async fn send(&mut self, chunk: &mut Chunk, length: usize) -> io::Result<()> {
        self.chunks.send(chunk, length).await
    }
}

impl AsyncRead for StdioStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.chunks).poll_read(cx, buf)
    }
}

impl AsyncWrite for StdioStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.chunks).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.chunks).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.chunks).poll_shutdown(cx)
    }
}

/// The chunks over any byte stream.
#[derive(Debug)]
struct Chunked<S> {
    io: S,
    read: ReadState,
    write: WriteState,
    /// Copies a chunk behind its head; empty between calls.
    scratch: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    Head,
    /// The first byte of a head is here.
    HalfHead(u8),
    /// So many bytes of the chunk are to come, at least one.
    Chunk(u16),
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteState {
    Idle,
    /// One byte of a head is out, for a chunk of so many bytes.
    HalfHead(u16),
    /// So many bytes of the chunk are promised, at least one.
    Chunk(u16),
    /// The end chunk is out, the close may not be.
    Ended,
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "stdio stream broke off before its end")
}

/// yamux calls writing to a closed stream a zero write.
fn write_error(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WriteZero {
        io::Error::new(io::ErrorKind::BrokenPipe, "the peer closed the stdio stream")
    } else {
        error
    }
}

impl<S> Chunked<S> {
    fn new(io: S) -> Self {
        Self { io, read: ReadState::Head, write: WriteState::Idle, scratch: Vec::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Chunked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            let step = this.poll_step(cx, buf);
            match step {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => break,
                // As many chunks as are there, in one read. What stopped it is met again by the next.
                _ if buf.filled().len() > before => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> Chunked<S> {
    /// Reads a head or some of a chunk; false at the end.
    fn poll_step(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let this = self;
        match this.read {
            ReadState::Ended => Poll::Ready(Ok(false)),
            ReadState::Head | ReadState::HalfHead(_) => {
                let mut head = [0; HEAD];
                let have = if let ReadState::HalfHead(first) = this.read {
                    head[0] = first;
                    1
                } else {
                    0
                };
                let mut part = ReadBuf::new(&mut head[have..]);
                ready!(Pin::new(&mut this.io).poll_read(cx, &mut part))?;
                this.read = match have + part.filled().len() {
                    HEAD => match u16::from_be_bytes(head) {
                        0 => ReadState::Ended,
                        length => ReadState::Chunk(length),
                    },
                    n if n > have => ReadState::HalfHead(head[0]),
                    _ => return Poll::Ready(Err(broken())),
                };
                Poll::Ready(Ok(true))
            }
            ReadState::Chunk(left) => {
                let room = buf.remaining().min(usize::from(left));
                let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
                ready!(Pin::new(&mut this.io).poll_read(cx, &mut part))?;
                let n = part.filled().len();
                if n == 0 {
                    return Poll::Ready(Err(broken()));
                }
                buf.advance(n);
                let n = u16::try_from(n).unwrap_or(left);
                this.read = if n < left { ReadState::Chunk(left - n) } else { ReadState::Head };
                Poll::Ready(Ok(true))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Chunked<S> {
    async fn send(&mut self, chunk: &mut Chunk, length: usize) -> io::Result<()> {
        match self.write {
            _ if length == 0 => return Ok(()),
            WriteState::Idle => {}
            WriteState::Ended => return Err(io::ErrorKind::BrokenPipe.into()),
            WriteState::HalfHead(_) | WriteState::Chunk(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the write before was not finished"));
            }
        }
        let length = u16::try_from(length.min(CHUNK)).unwrap_or(u16::MAX);
        chunk.0[..HEAD].copy_from_slice(&length.to_be_bytes());
        let mut rest = &chunk.0[..HEAD + usize::from(length)];
        // Until all of it is out, a shutdown cuts the stream off.
        self.write = WriteState::Chunk(length);
        while !rest.is_empty() {
            match self.io.write(rest).await.map_err(write_error)? {
                0 => return Err(write_error(io::ErrorKind::WriteZero.into())),
                n => rest = &rest[n..],
            }
        }
        self.write = WriteState::Idle;
        Ok(())
    }

    /// Writes a chunk's head and as much of it as the mux takes; how many of `buf`'s bytes that were.
    fn poll_begin(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let length = u16::try_from(buf.len().min(CHUNK)).unwrap_or(u16::MAX);
        self.scratch.clear();
        self.scratch.extend_from_slice(&length.to_be_bytes());
        self.scratch.extend_from_slice(&buf[..usize::from(length)]);
        let taken = Pin::new(&mut self.io).poll_write(cx, &self.scratch);
        self.scratch.clear();
        match ready!(taken).map_err(write_error)? {
            0 => Poll::Ready(Err(write_error(io::ErrorKind::WriteZero.into()))),
            1 => {
                self.write = WriteState::HalfHead(length);
                Poll::Ready(Ok(0))
            }
            n => {
                self.promised(usize::from(length) - (n - HEAD));
                Poll::Ready(Ok(n - HEAD))
            }
        }
    }

    fn promised(&mut self, left: usize) {
        self.write = match u16::try_from(left) {
            Ok(0) | Err(_) => WriteState::Idle,
            Ok(left) => WriteState::Chunk(left),
        };
    }

    fn poll_half_head(&mut self, cx: &mut Context<'_>, length: u16) -> Poll<io::Result<()>> {
        let [_, second] = length.to_be_bytes();
        if ready!(Pin::new(&mut self.io).poll_write(cx, &[second])).map_err(write_error)? == 0 {
            return Poll::Ready(Err(write_error(io::ErrorKind::WriteZero.into())));
        }
        self.promised(usize::from(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Chunked<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            match this.write {
                WriteState::Idle => match ready!(this.poll_begin(cx, buf))? {
                    0 => {}
                    n => return Poll::Ready(Ok(n)),
                },
                WriteState::HalfHead(length) => ready!(this.poll_half_head(cx, length))?,
                WriteState::Chunk(left) => {
                    let now = &buf[..buf.len().min(usize::from(left))];
                    let n = ready!(Pin::new(&mut this.io).poll_write(cx, now)).map_err(write_error)?;
                    if n == 0 {
                        return Poll::Ready(Err(write_error(io::ErrorKind::WriteZero.into())));
                    }
                    this.promised(usize::from(left) - n);
                    return Poll::Ready(Ok(n));
                }
                WriteState::Ended => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx).map_err(write_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match this.write {
                WriteState::Idle => {
                    match ready!(Pin::new(&mut this.io).poll_write(cx, &[0; HEAD])).map_err(write_error)? {
                        0 => return Poll::Ready(Err(write_error(io::ErrorKind::WriteZero.into()))),
                        1 => this.write = WriteState::HalfHead(0),
                        _ => this.write = WriteState::Ended,
                    }
                }
                WriteState::HalfHead(0) => {
                    ready!(this.poll_half_head(cx, 0))?;
                    this.write = WriteState::Ended;
                }
                // Cut off within a chunk: no end marker, so that the peer reads a break and not an end.
                WriteState::HalfHead(_) | WriteState::Chunk(_) => this.write = WriteState::Ended,
                WriteState::Ended => return Pin::new(&mut this.io).poll_shutdown(cx).map_err(write_error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    fn pair(window: usize) -> (Chunked<DuplexStream>, Chunked<DuplexStream>) {
        let (a, b) = tokio::io::duplex(window);
        (Chunked::new(a), Chunked::new(b))
    }

    #[tokio::test]
    async fn a_half_close_is_eof_and_the_other_way_goes_on() {
        let (mut a, mut b) = pair(1000);
        a.write_all(b"question").await.unwrap();
        a.shutdown().await.unwrap();
        let mut text = String::new();
        b.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        assert_eq!(b.read(&mut [0; 9]).await.unwrap(), 0, "the end stays the end");
        b.write_all(b"answer").await.unwrap();
        b.shutdown().await.unwrap();
        text.clear();
        a.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
    }

    #[tokio::test]
    async fn a_dropped_stream_is_an_error() {
        let (mut a, mut b) = pair(1000);
        a.write_all(b"some").await.unwrap();
        drop(a);
        let mut data = Vec::new();
        let error = b.read_to_end(&mut data).await.unwrap_err();
        assert_eq!((error.kind(), &data[..]), (io::ErrorKind::ConnectionReset, &b"some"[..]));
        assert_eq!(b.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_stream_cut_within_a_chunk_is_an_error() {
        // Room for the head and 3 of 8 bytes: the write is accepted in part and not continued.
        let (mut a, mut b) = pair(HEAD + 3);
        assert_eq!(a.write(b"12345678").await.unwrap(), 3);
        a.shutdown().await.unwrap();
        let mut data = Vec::new();
        assert_eq!(b.read_to_end(&mut data).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(data, b"123");
    }

    #[tokio::test]
    async fn writing_after_the_end_is_an_error() {
        let (mut a, _b) = pair(100);
        a.shutdown().await.unwrap();
        assert_eq!(a.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(a.write(b"").await.unwrap(), 0);
    }

    #[tokio::test]
    async fn chunks_that_are_there_come_in_one_read() {
        let (mut a, mut b) = pair(1000);
        for text in ["one ", "two ", "three"] {
            a.write_all(text.as_bytes()).await.unwrap();
        }
        let mut data = [0; 100];
        assert_eq!(b.read(&mut data).await.unwrap(), 13);
        assert_eq!(&data[..13], b"one two three");
        // And what comes before a break is not lost to it.
        a.write_all(b"last").await.unwrap();
        drop(a);
        assert_eq!(b.read(&mut data).await.unwrap(), 4);
        assert_eq!(b.read(&mut data).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_chunk_that_is_not_sent_to_its_end_is_a_break() {
        let (mut a, mut b) = pair(5);
        let mut chunk = Chunk::default();
        chunk.space()[..8].copy_from_slice(b"12345678");
        let sent = tokio::time::timeout(std::time::Duration::from_millis(20), a.send(&mut chunk, 8)).await;
        assert!(sent.is_err(), "there is room for 3 of 8 bytes");
        assert_eq!(a.send(&mut chunk, 8).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        a.shutdown().await.unwrap();
        let mut data = Vec::new();
        assert_eq!(b.read_to_end(&mut data).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(data, b"123");
        assert_eq!(a.send(&mut chunk, 8).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Any windows and write sizes deliver the same bytes and then EOF.
        #[test]
        fn delivers_what_was_written(
            window in 1usize..40,
            sizes in proptest::collection::vec(1usize..20_000, 0..6),
            room in 1usize..40_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut a, mut b) = pair(window);
                let sent: Vec<u8> = sizes.iter().flat_map(|n| (0..*n).map(|i| u8::try_from(i * 7 % 251).unwrap())).collect();
                let mut data = Vec::new();
                let read = async {
                    let mut buf = vec![0; room];
                    loop {
                        match b.read(&mut buf).await.unwrap() {
                            0 => break,
                            n => data.extend_from_slice(&buf[..n]),
                        }
                    }
                };
                let write = async {
                    let mut rest = &sent[..];
                    let mut chunk = Chunk::default();
                    for (number, size) in sizes.iter().enumerate() {
                        let (now, later) = rest.split_at(*size);
                        if number % 2 == 0 {
                            a.write_all(now).await.unwrap();
                        } else {
                            chunk.space()[..*size].copy_from_slice(now);
                            a.send(&mut chunk, *size).await.unwrap();
                        }
                        rest = later;
                    }
                    a.shutdown().await.unwrap();
                };
                tokio::join!(read, write);
                assert!(data == sent);
            });
        }
    }
}

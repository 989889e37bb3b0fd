//! Gathers small frames from a guest while nobody reads them.
//!
//! yamux bounds the bytes of a stream that wait to be read, but keeps each frame of them apart, at some 60 bytes
//! each: a guest that sends single bytes would make a window of 256 KiB cost 16 MiB. So small frames of a stream
//! whose reader has not come back for more wait here, as plain bytes, and go on as one.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use futures::{AsyncRead, AsyncWrite};

use super::frame::{FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN, HEADER, TYPE_DATA, data_header};

/// Shorter frames are gathered; a window is at most 64 of the others.
const SMALL: usize = 4096;

/// So much of a stream goes on even if its reader has not come back.
const ENOUGH: usize = 8192;

/// The streams of a session as their readers and the channel see them.
#[derive(Debug, Clone, Default)]
pub(super) struct Gatherer(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    streams: HashMap<u32, Waiting>,
    /// Streams whose readers came back while something waits. May hold some that are gone.
    due: VecDeque<u32>,
    /// Reads the channel.
    driver: Option<Waker>,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// The reader has read all there is, and waits.
    hungry: bool,
    /// The guest has acknowledged the stream: that goes on at once, but once.
    acknowledged: bool,
    /// The guest has ended or reset it: nothing may follow.
    ended: bool,
}

/// What a stream's reader holds. The stream is forgotten when it is dropped.
#[derive(Debug)]
pub(crate) struct Demand {
    gatherer: Gatherer,
    id: u32,
}

impl Gatherer {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream that the host has opened.
    pub(super) fn add(&self, id: u32) -> Demand {
        self.lock().streams.insert(id, Waiting::default());
        Demand { gatherer: self.clone(), id }
    }
}

impl Demand {
    /// The reader found nothing to read.
    pub(crate) fn hungry(&self) {
        let mut table = self.gatherer.lock();
        let table = &mut *table;
        let Some(waiting) = table.streams.get_mut(&self.id) else { return };
        if !waiting.hungry && !waiting.bytes.is_empty() {
            table.due.push_back(self.id);
            if let Some(driver) = table.driver.take() {
                driver.wake();
            }
        }
        waiting.hungry = true;
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        self.gatherer.lock().streams.remove(&self.id);
    }
}

/// A byte stream from which small frames come gathered.
#[derive(Debug)]
pub(super) struct Gathering<T> {
    inner: T,
    gatherer: Gatherer,
    /// Ready to be read, from `read` on, before anything else.
    out: Vec<u8>,
    read: usize,
    header: [u8; HEADER],
    have: usize,
    body: Body,
    /// How the channel ended.
    end: Option<io::Result<()>>,
}

/// What comes behind the header read last.
#[derive(Debug, Clone, Copy)]
enum Body {
    /// The next header.
    None,
    /// So many bytes that pass.
    Pass(usize),
    /// So many bytes of this stream that are gathered, and the frame's flags.
    Gather { id: u32, left: usize, flags: u8 },
}

impl<T> Gathering<T> {
    pub(super) fn new(inner: T, gatherer: Gatherer) -> Self {
        Self {
            inner,
            gatherer,
            out: Vec::new(),
            read: 0,
            header: [0; HEADER],
            have: 0,
            body: Body::None,
            end: None,
        }
    }

    /// Puts what waits for this stream in front.
    fn emit(&mut self, id: u32, flags: u8) {
        let mut table = self.gatherer.lock();
        let Some(waiting) = table.streams.get_mut(&id) else { return };
        self.out.extend_from_slice(&data_header(id, flags, waiting.bytes.len()));
        self.out.append(&mut waiting.bytes);
        waiting.hungry = false;
    }

    /// A reader that came back, if something waits for it; `cx` is told of the next one.
    fn emit_due(&mut self, cx: &Context<'_>) -> bool {
        loop {
            let due = {
                let mut table = self.gatherer.lock();
                let due = table.due.pop_front();
                if due.is_none() {
                    table.driver = Some(cx.waker().clone());
                    return false;
                }
                due.filter(|id| table.streams.get(id).is_some_and(|waiting| !waiting.bytes.is_empty()))
            };
            if let Some(id) = due {
                self.emit(id, 0);
                return true;
            }
        }
    }

    /// At the end of the channel: what still waits.
    fn emit_any(&mut self) -> bool {
        let left = {
            let table = self.gatherer.lock();
            table.streams.iter().find(|(_, waiting)| !waiting.bytes.is_empty()).map(|(id, _)| *id)
        };
        left.inspect(|id| self.emit(*id, 0)).is_some()
    }

    /// A header is complete.
    fn begin(&mut self) {
        let [version, kind, high, flags, ..] = self.header;
        let word = |at: usize| {
            u32::from_be_bytes([
                self.header[at],
                self.header[at + 1],
                self.header[at + 2],
                self.header[at + 3],
            ])
        };
        let (id, length) = (word(4), word(8) as usize);
        self.have = 0;
        let is_plain = version == 0 && kind == TYPE_DATA && high == 0 && flags & FLAG_SYN == 0;
        let ended = self.gatherer.lock().streams.get(&id).map(|waiting| waiting.ended);
        let Some(ended) = ended.filter(|_| is_plain) else {
            // yamux knows what to think of it, and keeps nothing of what belongs to no stream.
            self.out.extend_from_slice(&self.header);
            self.body = if kind == TYPE_DATA { Body::Pass(length) } else { Body::None };
            return;
        };
        if length < SMALL || ended {
            self.body = Body::Gather { id, left: length, flags };
            return self.gathered();
        }
        // In order behind what waits.
        if self.gatherer.lock().streams.get(&id).is_some_and(|waiting| !waiting.bytes.is_empty()) {
            self.emit(id, 0);
        }
        self.out.extend_from_slice(&self.header);
        self.body = Body::Pass(length);
        self.mark(id, flags);
    }

    fn mark(&mut self, id: u32, flags: u8) {
        if let Some(waiting) = self.gatherer.lock().streams.get_mut(&id) {
            waiting.acknowledged |= flags & FLAG_ACK != 0;
            waiting.ended |= flags & (FLAG_FIN | FLAG_RST) != 0;
            waiting.hungry = false;
        }
    }

    /// Lets a frame that is complete go on, if it is time.
    fn gathered(&mut self) {
        let Body::Gather { id, left: 0, flags } = self.body else { return };
        self.body = Body::None;
        let news = {
            let mut table = self.gatherer.lock();
            let Some(waiting) = table.streams.get_mut(&id) else { return };
            if waiting.ended {
                return;
            }
            flags & (FLAG_FIN | FLAG_RST) != 0
                || (flags & FLAG_ACK != 0 && !waiting.acknowledged)
                || waiting.bytes.len() >= ENOUGH
                || (waiting.hungry && !waiting.bytes.is_empty())
        };
        if news {
            self.emit(id, flags);
            self.mark(id, flags);
        }
    }
}

impl<T: AsyncRead + Unpin> Gathering<T> {
    /// Reads some of the body that is gathered. Ready when it moved on.
    fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Body::Gather { id, left, flags } = self.body else { return Poll::Ready(Ok(1)) };
        let mut piece = [0; 1024];
        let room = left.min(piece.len());
        let count = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut piece[..room]))?;
        if let Some(waiting) = self.gatherer.lock().streams.get_mut(&id)
            && !waiting.ended
        {
            waiting.bytes.extend_from_slice(&piece[..count]);
        }
        self.body = Body::Gather { id, left: left - count, flags };
        self.gathered();
        Poll::Ready(Ok(count))
    }

    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut self.header[self.have..]))?;
        self.have += count;
        if self.have == HEADER {
            self.begin();
        }
        Poll::Ready(Ok(count))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathering<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            if this.read < this.out.len() {
                let count = buf.len().min(this.out.len() - this.read);
                buf[..count].copy_from_slice(&this.out[this.read..this.read + count]);
                this.read += count;
                return Poll::Ready(Ok(count));
            }
            this.out.clear();
            this.read = 0;
            if matches!(this.body, Body::None) && this.end.is_none() && this.emit_due(cx) {
                continue;
            }
            let step = match this.body {
                _ if this.end.is_some() => {
                    if this.emit_any() {
                        continue;
                    }
                    return Poll::Ready(this.end.replace(Ok(())).unwrap_or(Ok(())).map(|()| 0));
                }
                Body::Pass(0) => {
                    this.body = Body::None;
                    continue;
                }
                Body::Pass(left) => {
                    let room = buf.len().min(left);
                    let count = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buf[..room]))?;
                    this.body = Body::Pass(left - count);
                    return Poll::Ready(Ok(count));
                }
                Body::None => ready!(this.poll_header(cx)),
                Body::Gather { .. } => ready!(this.poll_gather(cx)),
            };
            match step {
                Ok(0) => this.end = Some(Ok(())),
                Ok(_) => {}
                Err(error) => this.end = Some(Err(error)),
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathering<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::frame;
    use super::*;
    use futures::AsyncReadExt;
    use proptest::prelude::*;

    const ID: u32 = 3;

    /// Reads to the end; the frames: kind, flags, stream, body.
    fn frames(gathering: &mut Gathering<&[u8]>) -> Vec<(u8, u8, u32, Vec<u8>)> {
        let mut bytes = Vec::new();
        futures::executor::block_on(gathering.read_to_end(&mut bytes)).unwrap();
        let (mut rest, mut frames) = (&bytes[..], Vec::new());
        while let Some((header, body)) = rest.split_at_checked(HEADER) {
            let word = |at: usize| u32::from_be_bytes(*header[at..].first_chunk().unwrap());
            let (kind, flags, id) = (header[1], header[3], word(4));
            let length = if kind == TYPE_DATA { word(8) as usize } else { 0 };
            let (body, next) = body.split_at(length);
            frames.push((kind, flags, id, body.to_vec()));
            rest = next;
        }
        assert!(rest.is_empty());
        frames
    }

    #[test]
    fn small_frames_that_nobody_waits_for_go_on_as_one() {
        let gatherer = Gatherer::default();
        let _demand = gatherer.add(ID);
        let mut wire = Vec::new();
        for byte in 0..100 {
            wire.extend(frame(TYPE_DATA, 0, ID, &[byte]));
            wire.extend(frame(1, 0, ID, b""));
        }
        let found = frames(&mut Gathering::new(&wire[..], gatherer));
        let data: Vec<_> = found.iter().filter(|(kind, ..)| *kind == TYPE_DATA).collect();
        assert_eq!((data.len(), found.len()), (1, 101));
        assert_eq!(data[0].3, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_reader_that_waits_gets_each_frame_at_once() {
        let gatherer = Gatherer::default();
        let demand = gatherer.add(ID);
        let wire = [frame(TYPE_DATA, 0, ID, b"one"), frame(TYPE_DATA, 0, ID, b"two")].concat();
        let mut gathering = Gathering::new(&wire[..], gatherer);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut buf = [0; 100];
        let mut read =
            |gathering: &mut Gathering<&[u8]>| match Pin::new(gathering).poll_read(&mut cx, &mut buf) {
                Poll::Ready(Ok(count)) => buf[..count].to_vec(),
                other => panic!("{other:?}"),
            };
        demand.hungry();
        assert_eq!(read(&mut gathering), frame(TYPE_DATA, 0, ID, b"one"));
        demand.hungry();
        assert_eq!(read(&mut gathering), frame(TYPE_DATA, 0, ID, b"two"));
    }

    /// A channel that has these bytes and then nothing, without ending.
    struct Quiet<'a>(&'a [u8]);

    impl AsyncRead for Quiet<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            if self.0.is_empty() { Poll::Pending } else { Pin::new(&mut self.0).poll_read(cx, buf) }
        }
    }

    #[test]
    fn what_waits_goes_on_when_its_reader_comes_back() {
        let gatherer = Gatherer::default();
        let demand = gatherer.add(ID);
        let wire = [frame(TYPE_DATA, 0, ID, b"one"), frame(TYPE_DATA, 0, ID, b"two")].concat();
        let mut gathering = Gathering::new(Quiet(&wire), gatherer);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut buf = [0; 100];
        assert!(Pin::new(&mut gathering).poll_read(&mut cx, &mut buf).is_pending());
        demand.hungry();
        match Pin::new(&mut gathering).poll_read(&mut cx, &mut buf) {
            Poll::Ready(Ok(count)) => assert_eq!(buf[..count], frame(TYPE_DATA, 0, ID, b"onetwo")),
            other => panic!("{other:?}"),
        }
        assert!(Pin::new(&mut gathering).poll_read(&mut cx, &mut buf).is_pending());
    }

    #[test]
    fn nothing_follows_an_end() {
        let gatherer = Gatherer::default();
        let _demand = gatherer.add(ID);
        let mut wire = frame(TYPE_DATA, 0, ID, b"last ");
        for _ in 0..100 {
            wire.extend(frame(TYPE_DATA, FLAG_FIN, ID, b"words"));
        }
        wire.extend(frame(TYPE_DATA, 0, ID, &[1; 9000]));
        let found = frames(&mut Gathering::new(&wire[..], gatherer));
        assert_eq!(found, [(TYPE_DATA, FLAG_FIN, ID, b"last words".to_vec())]);
    }

    proptest! {
        /// Each stream's bytes arrive in order, in few frames, and what is not ours passes untouched.
        #[test]
        fn keeps_all_bytes_in_order(
            sent in proptest::collection::vec((0u32..4, 0usize..6000, prop_oneof![Just(0), Just(FLAG_ACK)]), 0..60),
        ) {
            let gatherer = Gatherer::default();
            let _demands = [gatherer.add(1), gatherer.add(3)];
            let (mut wire, mut expected) = (Vec::new(), [const { Vec::new() }; 4]);
            for (number, (id, length, flags)) in sent.into_iter().enumerate() {
                let body: Vec<u8> = (0..length).map(|i| u8::try_from((i + number) % 251).unwrap()).collect();
                wire.extend(frame(TYPE_DATA, flags, id, &body));
                expected[id as usize].extend(body);
            }
            let found = frames(&mut Gathering::new(&wire[..], gatherer));
            let mut got = [const { Vec::new() }; 4];
            let mut small = [0; 4];
            for (_, _, id, body) in found {
                small[id as usize] += usize::from(body.len() < SMALL);
                got[id as usize].extend(body);
            }
            prop_assert_eq!(&got, &expected);
            // One for the acknowledgement, one at the end, and one before each frame that is not small.
            for id in [1, 3] {
                prop_assert!(small[id] <= 2 + expected[id].len() / SMALL, "{small:?}");
            }
        }
    }
}

//! Standard streams that have names: a client connects to the shim and asks for one, instead of opening a FIFO.
//!
//! What a FIFO gives, these give as well: a process can be there before its client, output waits while there is none and
//! goes on when one comes back, and a client that leaves does not end the input. What waits is bounded by one buffer.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch},
};

/// Bytes that wait for their reader: as many as in a FIFO of Linux.
const BUFFER: usize = 64 * 1024;

/// The named streams of a shim's processes.
#[derive(Debug, Default)]
pub struct Streams {
    known: Mutex<HashMap<String, Entry>>,
    /// Changes whenever a stream is added.
    added: watch::Sender<()>,
}

#[derive(Debug)]
struct Entry {
    stream: Stream,
    /// Counts clients: each is told when another comes. Gone when the process is forgotten.
    clients: watch::Sender<u64>,
}

#[derive(Debug, Clone)]
enum Stream {
    Output(Arc<AsyncMutex<OutputState>>),
    Input(Arc<AsyncMutex<InputState>>),
}

#[derive(Debug)]
struct OutputState {
    reader: DuplexStream,
    /// Read and not known to have reached a client.
    pending: Vec<u8>,
    delivered: watch::Sender<bool>,
}

#[derive(Debug)]
struct InputState {
    /// None once the input has ended.
    writer: Option<DuplexStream>,
}

/// Takes a stream's name back when its process is forgotten.
#[derive(Debug)]
pub(super) struct Name {
    streams: Arc<Streams>,
    id: String,
}

impl Drop for Name {
    fn drop(&mut self) {
        lock(&self.streams.known).remove(&self.id);
    }
}

/// The rest of an output, on its way to a client after the process's end.
#[derive(Debug)]
pub struct Delivery {
    delivered: watch::Receiver<bool>,
    pub(super) name: Name,
}

impl Delivery {
    /// Returns when a client has had everything.
    pub fn done(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut delivered = self.delivered.clone();
        async move {
            // An error: nobody can take it any more.
            let _ = delivered.wait_for(|delivered| *delivered).await;
        }
    }
}

/// Keeps an input open while no client is connected.
#[derive(Debug)]
pub struct Held {
    _name: Name,
    _open: watch::Sender<()>,
}

/// A client's end of a stream. There is one at a time, the latest.
#[derive(Debug)]
pub struct Attached {
    /// What it can do.
    pub end: End,
    clients: watch::Receiver<u64>,
    /// Its own number.
    number: u64,
}

/// What a client can do with a stream.
#[derive(Debug)]
pub enum End {
    /// Output, to be read.
    Output(Reader),
    /// Input, to be written.
    Input(Writer),
}

/// Reads an output. What was read and not [`Reader::consume`]d is there for the next client.
#[derive(Debug)]
pub struct Reader {
    state: OwnedMutexGuard<OutputState>,
}

/// Writes an input.
#[derive(Debug)]
pub struct Writer {
    state: OwnedMutexGuard<InputState>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    /// An output of that name, if no process has one.
    pub fn output(self: &Arc<Self>, id: &str) -> Option<(DuplexStream, Delivery)> {
        let (sink, reader) = tokio::io::duplex(BUFFER);
        let (delivered, delivery) = watch::channel(false);
        let state = OutputState { reader, pending: Vec::new(), delivered };
        let name = self.add(id, Stream::Output(Arc::new(AsyncMutex::new(state))))?;
        Some((sink, Delivery { delivered: delivery, name }))
    }

    /// An input of that name, if no process has one.
    pub fn input(self: &Arc<Self>, id: &str) -> Option<(DuplexStream, Held)> {
        let (writer, source) = tokio::io::duplex(BUFFER);
        let state = Arc::new(AsyncMutex::new(InputState { writer: Some(writer) }));
        let name = self.add(id, Stream::Input(Arc::clone(&state)))?;
        let (open, mut closed) = watch::channel(());
        tokio::spawn(async move {
            while closed.changed().await.is_ok() {}
            // A client that is connected now is heard to its end.
            state.lock().await.writer = None;
        });
        Some((source, Held { _name: name, _open: open }))
    }

    fn add(self: &Arc<Self>, id: &str, stream: Stream) -> Option<Name> {
        let mut known = lock(&self.known);
        if known.contains_key(id) {
            return None;
        }
        known.insert(id.to_owned(), Entry { stream, clients: watch::Sender::new(0) });
        drop(known);
        self.added.send_replace(());
        Some(Name { streams: Arc::clone(self), id: id.to_owned() })
    }

    /// Waits until there is a stream of that name, and until the client that has it has left: it is told to.
    pub async fn attach(&self, id: &str) -> Attached {
        let mut added = self.added.subscribe();
        let (stream, clients, number) = loop {
            added.mark_unchanged();
            if let Some(entry) = lock(&self.known).get(id) {
                let mut number = 0;
                entry.clients.send_modify(|clients| {
                    *clients += 1;
                    number = *clients;
                });
                break (entry.stream.clone(), entry.clients.subscribe(), number);
            }
            // The sender is here as long as this is.
            let _ = added.changed().await;
        };
        let end = match stream {
            Stream::Output(state) => End::Output(Reader { state: state.lock_owned().await }),
            Stream::Input(state) => End::Input(Writer { state: state.lock_owned().await }),
        };
        Attached { end, clients, number }
    }
}

impl Attached {
    /// The end, and a future that is done when another client has come,
    /// or the process is forgotten. A client that died without a word is noticed by nothing else.
    pub fn split(self) -> (End, impl Future<Output = ()> + Send + use<>) {
        let Self { end, mut clients, number } = self;
        let superseded = async move {
            let _ = clients.wait_for(|latest| *latest != number).await;
        };
        (end, superseded)
    }
}

impl Reader {
    /// The next bytes, at most `most` of them; none at the end. The same again until they are consumed.
    pub async fn next(&mut self, most: usize) -> io::Result<&[u8]> {
        let state = &mut *self.state;
        if state.pending.is_empty() {
            let mut buffer = vec![0; most];
            let n = state.reader.read(&mut buffer).await?;
            buffer.truncate(n);
            state.pending = buffer;
        }
        let end = state.pending.len().min(most);
        Ok(&state.pending[..end])
    }

    /// Whether bytes were read that are not consumed yet.
    pub fn is_full(&self) -> bool {
        !self.state.pending.is_empty()
    }

    /// So many bytes are with the client.
    pub fn consume(&mut self, count: usize) {
        let pending = &mut self.state.pending;
        pending.drain(..count.min(pending.len()));
    }

    /// The client has been told of the end.
    pub fn finish(self) {
        self.state.delivered.send_replace(true);
    }
}

impl Writer {
    /// Hands bytes to the process; an error if it reads no more.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.state.writer {
            Some(writer) => writer.write_all(bytes).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn reader(streams: &Streams, id: &str) -> Reader {
        match streams.attach(id).await.end {
            End::Output(reader) => reader,
            End::Input(_) => panic!("{id} is an input"),
        }
    }

    async fn writer(streams: &Streams, id: &str) -> Writer {
        match streams.attach(id).await.end {
            End::Input(writer) => writer,
            End::Output(_) => panic!("{id} is an output"),
        }
    }

    #[tokio::test]
    async fn output_waits_for_its_client_and_for_the_next() {
        let streams = Arc::new(Streams::default());
        let early = tokio::spawn({
            let streams = Arc::clone(&streams);
            async move { reader(&streams, "out").await.next(3).await.unwrap().to_vec() }
        });
        tokio::task::yield_now().await;
        let (mut sink, delivery) = streams.output("out").unwrap();
        assert!(streams.output("out").is_none(), "a name was given twice");
        sink.write_all(b"abcdef").await.unwrap();
        // It left without having got what it read.
        assert_eq!(early.await.unwrap(), b"abc");
        drop(sink);
        let mut second = reader(&streams, "out").await;
        assert_eq!(second.next(2).await.unwrap(), b"ab");
        second.consume(2);
        assert_eq!(second.next(9).await.unwrap(), b"c");
        second.consume(1);
        assert_eq!(second.next(9).await.unwrap(), b"def");
        second.consume(3);
        assert!(second.next(9).await.unwrap().is_empty());
        assert!(tokio::time::timeout(Duration::from_millis(20), delivery.done()).await.is_err());
        second.finish();
        delivery.done().await;
        drop(delivery);
        assert!(streams.output("out").is_some());
    }

    #[tokio::test]
    async fn input_ends_by_word_and_after_its_client() {
        let streams = Arc::new(Streams::default());
        let (mut source, held) = streams.input("in").unwrap();
        writer(&streams, "in").await.write(b"one ").await.unwrap();
        let mut last = writer(&streams, "in").await;
        drop(held);
        tokio::task::yield_now().await;
        last.write(b"two").await.unwrap();
        drop(last);
        let mut text = String::new();
        source.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "one two");
    }

    #[tokio::test]
    async fn the_latest_client_has_the_stream() {
        let streams = Arc::new(Streams::default());
        let (_sink, delivery) = streams.output("out").unwrap();
        let (first, mut superseded) = {
            let (end, superseded) = streams.attach("out").await.split();
            (end, Box::pin(superseded))
        };
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut superseded).await.is_err());
        let second = tokio::spawn({
            let streams = Arc::clone(&streams);
            async move { streams.attach("out").await.split() }
        });
        superseded.await;
        drop(first);
        let (_second, forgotten) = second.await.unwrap();
        drop(delivery);
        forgotten.await;
    }

    #[tokio::test]
    async fn a_process_that_reads_no_more_is_told() {
        let streams = Arc::new(Streams::default());
        let (source, _held) = streams.input("in").unwrap();
        drop(source);
        assert!(writer(&streams, "in").await.write(b"x").await.is_err());
    }
}

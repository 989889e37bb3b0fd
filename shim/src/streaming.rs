//! The streaming service: containerd 2 can connect to standard streams here (`io_type = "streaming"`) instead of opening
//! FIFOs.
//!
//! The first message of a stream names it and is answered by an empty one. Then data go one way in messages of their
//! own, and the other way goes the number of bytes that the sender of data may send more.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use protobuf::{
    Message, MessageFull,
    well_known_types::{any::Any, empty::Empty},
};
use skep::container::{
    ErrorKind,
    stdio::{End, Reader, Streams, Writer},
};
use skep_containerd_api::{
    Streaming,
    streaming::StreamInit,
    transfer::{Data, WindowUpdate},
};
use ttrpc::r#async::{ServerStream, TtrpcContext};

use crate::convert::{Failure, any};

/// Bytes of one message, as containerd itself sends at most.
const CHUNK: usize = 32 * 1024;
/// Bytes a client may send before it hears of their use.
const WINDOW: usize = 2 * CHUNK;
/// How long telling a client that it may send more may take; over a connection that is gone it takes for ever.
const UPDATE: Duration = Duration::from_secs(1);
/// How long a client may wait for the process whose stream it wants: a VM may have to boot.
const PROCESS: Duration = Duration::from_secs(600);

/// Serves the streams of a pod's processes.
pub(crate) struct StreamingService {
    streams: Arc<Streams>,
}

impl StreamingService {
    /// A service of `streams`.
    pub(crate) fn new(streams: Arc<Streams>) -> Self {
        Self { streams }
    }

    async fn serve(&self, mut client: ServerStream<Any, Any>) -> Result<(), Failure> {
        let init = receive::<StreamInit>(&mut client).await?.ok_or_else(|| invalid("no name of a stream"))?;
        send(&client, &Empty::new()).await?;
        let attached = tokio::time::timeout(PROCESS, self.streams.attach(&init.id)).await.map_err(|_| {
            let text = format!("no process has a stream {} after {} s", init.id, PROCESS.as_secs());
            Failure::new(ErrorKind::DeadlineExceeded, &text)
        })?;
        let (end, superseded) = attached.split();
        tokio::select! {
            served = async {
                match end {
                    End::Output(reader) => output(client, reader).await,
                    End::Input(writer) => input(client, writer).await,
                }
            } => served,
            () = superseded => Ok(()),
        }
    }
}

#[async_trait]
impl Streaming for StreamingService {
    async fn stream(&self, _: &TtrpcContext, client: ServerStream<Any, Any>) -> ttrpc::Result<()> {
        self.serve(client).await.inspect_err(|failure| tracing::debug!("a stream: {failure}"))?;
        Ok(())
    }
}

/// A process's output, for as long as the client asks for more.
async fn output(mut client: ServerStream<Any, Any>, mut reader: Reader) -> Result<(), Failure> {
    let mut window = 0;
    loop {
        tokio::select! {
            // Read ahead also without a window: the end needs none.
            bytes = reader.next(CHUNK.min(window).max(1)), if window > 0 || !reader.is_full() => {
                let bytes = bytes.map_err(|error| Failure::new(ErrorKind::Unknown, &error))?;
                if bytes.is_empty() {
                    reader.finish();
                    return Ok(());
                }
                if window > 0 {
                    let count = bytes.len();
                    send(&client, &Data { data: bytes.to_vec(), ..Data::default() }).await?;
                    reader.consume(count);
                    window -= count;
                }
            }
            update = receive::<WindowUpdate>(&mut client) => {
                let Some(update) = update? else { return Ok(()) };
                window = window.saturating_add(usize::try_from(update.update).unwrap_or(0));
            }
        }
    }
}

/// A process's input, until its client leaves or nobody reads it.
async fn input(mut client: ServerStream<Any, Any>, mut writer: Writer) -> Result<(), Failure> {
    let mut granted = WINDOW;
    let mut listens = true;
    loop {
        if granted > 0 && listens {
            let update = i32::try_from(granted).unwrap_or(i32::MAX);
            let update = WindowUpdate { update, ..WindowUpdate::default() };
            // A client may have sent its last and left: what it sent is here, and comes before its end.
            listens = matches!(tokio::time::timeout(UPDATE, send(&client, &update)).await, Ok(Ok(())));
        }
        let Some(data) = receive::<Data>(&mut client).await? else { return Ok(()) };
        if writer.write(&data.data).await.is_err() {
            return Ok(());
        }
        granted = data.data.len();
    }
}

async fn send<M: MessageFull>(client: &ServerStream<Any, Any>, message: &M) -> Result<(), Failure> {
    let failed = |error: &dyn std::error::Error| Failure::new(ErrorKind::Unavailable, &error.to_string());
    let message = any(message).map_err(|error| failed(&error))?;
    client.send(&message).await.map_err(|error| failed(&error))
}

/// The next message, if the client has not closed its side.
async fn receive<M: Message + MessageFull>(
    client: &mut ServerStream<Any, Any>,
) -> Result<Option<M>, Failure> {
    let received =
        client.recv().await.map_err(|error| Failure::new(ErrorKind::Unavailable, &error.to_string()))?;
    let Some(message) = received else { return Ok(None) };
    let descriptor = M::descriptor();
    let expected = descriptor.full_name();
    if message.type_url.rsplit('/').next() != Some(expected) {
        return Err(invalid(&format!("a message {:?} in the place of {expected}", message.type_url)));
    }
    M::parse_from_bytes(&message.value).map(Some).map_err(|error| invalid(&format!("{expected}: {error}")))
}

fn invalid(text: &str) -> Failure {
    Failure::new(ErrorKind::InvalidArgument, text)
}

#[cfg(test)]
mod tests;

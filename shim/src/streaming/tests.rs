//! A client that speaks as containerd does.

use skep_containerd_api::{create_streaming, streaming_ttrpc::StreamingClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::r#async::{Client, ClientStream, Server, transport::Listener};

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    dir: tempfile::TempDir,
    streams: Arc<Streams>,
    server: Server,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let streams = Arc::<Streams>::default();
        let service: Arc<dyn Streaming + Send + Sync> = Arc::new(StreamingService::new(Arc::clone(&streams)));
        let mut server = Server::new()
            .add_listener(Listener::new(crate::lingering::accept(listener).unwrap().0))
            .register_service(create_streaming(service));
        server.start().await.unwrap();
        Self { dir, streams, server }
    }

    async fn client(&self, id: &str) -> Remote {
        let address = format!("unix://{}", self.dir.path().join("s").display());
        let client = Client::connect(&address).await.unwrap();
        let stream =
            StreamingClient::new(client.clone()).stream(ttrpc::context::Context::default()).await.unwrap();
        let init = any(&StreamInit { id: id.to_owned(), ..StreamInit::default() }).unwrap();
        stream.send(&init).await.unwrap();
        let mut remote = Remote { _client: client, stream };
        assert!(remote.next().await.unwrap().value.is_empty(), "the answer has something in it");
        remote
    }
}

struct Remote {
    _client: Client,
    stream: ClientStream<Any, Any>,
}

impl Remote {
    async fn next(&mut self) -> Option<Any> {
        tokio::time::timeout(LIMIT, self.stream.recv()).await.expect("in time").ok()
    }

    async fn grant(&self, update: usize) {
        let update = WindowUpdate { update: update.try_into().unwrap(), ..WindowUpdate::default() };
        self.stream.send(&any(&update).unwrap()).await.unwrap();
    }

    /// What comes next, and whether anything does.
    async fn data(&mut self) -> Option<Vec<u8>> {
        let message = self.next().await?;
        assert_eq!(message.type_url, "containerd.types.transfer.Data");
        Some(Data::parse_from_bytes(&message.value).unwrap().data)
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

#[tokio::test]
async fn output_is_sent_as_far_as_it_is_asked_for() {
    let bench = Bench::new().await;
    // The client is there first, as containerd is.
    let mut client = bench.client("out").await;
    let (mut sink, delivery) = bench.streams.output("out").unwrap();
    let sent = pattern(100_000);
    let written = tokio::spawn({
        let sent = sent.clone();
        async move { sink.write_all(&sent).await.unwrap() }
    });
    client.grant(10).await;
    let mut got = Vec::new();
    while got.len() < 10 {
        got.extend(client.data().await.unwrap());
    }
    assert_eq!(got, sent[..10]);
    assert!(!written.is_finished(), "more than a buffer was taken from a process whose reader stopped");
    // Another one goes on where it stopped.
    let mut next = bench.client("out").await;
    next.grant(1 << 20).await;
    while let Some(data) = next.data().await {
        got.extend(data);
    }
    assert!(got == sent, "{} bytes", got.len());
    tokio::time::timeout(LIMIT, delivery.done()).await.unwrap();
    drop(bench.server);
}

#[tokio::test]
async fn input_is_granted_as_far_as_it_is_read() {
    let bench = Bench::new().await;
    let (mut source, held) = bench.streams.input("in").unwrap();
    let mut client = bench.client("in").await;
    let sent = pattern(300_000);
    let expected = sent.clone();
    let feeding = tokio::spawn(async move {
        let mut window = 0;
        for chunk in sent.chunks(7_000) {
            while window < chunk.len() {
                let update = client.next().await.unwrap();
                let update = WindowUpdate::parse_from_bytes(&update.value).unwrap().update;
                window += usize::try_from(update).unwrap();
            }
            window -= chunk.len();
            let data = Data { data: chunk.to_vec(), ..Data::default() };
            client.stream.send(&any(&data).unwrap()).await.unwrap();
        }
        // It leaves without a word.
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!feeding.is_finished(), "everything was taken for a process that does not read");
    let mut got = vec![0; expected.len()];
    tokio::time::timeout(LIMIT, source.read_exact(&mut got)).await.unwrap().unwrap();
    assert!(got == expected);
    feeding.await.unwrap();
    drop(held);
    assert_eq!(source.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_no_message_of_a_stream_is_refused() {
    let bench = Bench::new().await;
    let (_source, _held) = bench.streams.input("in").unwrap();
    let mut client = bench.client("in").await;
    client.grant(5).await;
    // The first window is ours to give.
    assert!(client.next().await.is_some());
    assert!(client.next().await.is_none());
}

//! Events for containerd, in the order in which they happened.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use protobuf::{MessageField, MessageFull};
use skep_containerd_api::{
    envelope::Envelope,
    events::ForwardRequest,
    events_ttrpc::EventsClient,
    topics::{
        TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed,
        TaskStart,
    },
};
use tokio::sync::{mpsc, oneshot};
use ttrpc::r#async::Client;

use crate::convert::{any, timestamp};

/// Most events that wait for containerd. It may be restarting; a shim must not grow meanwhile.
const QUEUE: usize = 1024;
/// Longest wait for containerd to take one event.
const ANSWER: Duration = Duration::from_secs(5);
/// How long one event is tried again: longer than a restart of containerd takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// First and longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A message that is an event.
pub(crate) trait Event: MessageFull {
    /// Its topic.
    const TOPIC: &'static str;
}

macro_rules! topics {
    ($($message:ident: $topic:literal),* $(,)?) => {
        $(impl Event for $message { const TOPIC: &'static str = $topic; })*
    };
}

topics! {
    TaskCreate: "/tasks/create",
    TaskStart: "/tasks/start",
    TaskExit: "/tasks/exit",
    TaskOOM: "/tasks/oom",
    TaskDelete: "/tasks/delete",
    TaskExecAdded: "/tasks/exec-added",
    TaskExecStarted: "/tasks/exec-started",
    TaskPaused: "/tasks/paused",
    TaskResumed: "/tasks/resumed",
}

enum Item {
    Event(Box<Envelope>),
    Flush(oneshot::Sender<()>),
}

/// Sends events from a task of its own. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Item>,
}

impl Publisher {
    /// Starts the task. Without an address events go nowhere, as when a shim is tried by hand.
    pub(crate) fn start(namespace: &str, address: Option<&str>) -> Self {
        let (queue, items) = mpsc::channel(QUEUE);
        let address = address.map(|address| {
            if address.contains("://") {
                address.to_owned()
            } else {
                format!("unix://{}", Path::new(address).display())
            }
        });
        tokio::spawn(forward_all(items, address, namespace.to_owned()));
        Self { namespace: namespace.to_owned(), queue }
    }

    /// Puts an event into the queue; never waits.
    pub(crate) fn publish<E: Event>(&self, event: &E) {
        let body = match any(event) {
            Ok(body) => body,
            Err(error) => return tracing::error!(topic = E::TOPIC, %error, "an event can't be encoded"),
        };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.into(),
            event: MessageField::some(body),
            ..Envelope::default()
        };
        if self.queue.try_send(Item::Event(Box::new(envelope))).is_err() {
            tracing::error!(
                topic = E::TOPIC,
                "containerd does not take events and the queue is full: one is lost"
            );
        }
    }

    /// Waits until everything published so far was sent or given up, at most for `limit`.
    pub(crate) async fn flush(&self, limit: Duration) {
        let (done, flushed) = oneshot::channel();
        let all = async {
            if self.queue.send(Item::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!(?limit, "containerd has not taken all events in time");
        }
    }
}

async fn forward_all(mut items: mpsc::Receiver<Item>, address: Option<String>, namespace: String) {
    let mut client = None;
    while let Some(item) = items.recv().await {
        match (item, &address) {
            (Item::Event(envelope), Some(address)) => {
                forward(&mut client, address, &namespace, *envelope).await;
            }
            (Item::Event(_), None) => {}
            (Item::Flush(done), _) => {
                let _ = done.send(());
            }
        }
    }
}

/// Sends one event, again and again: a later one must not overtake it.
async fn forward(client: &mut Option<EventsClient>, address: &str, namespace: &str, envelope: Envelope) {
    let topic = envelope.topic.clone();
    let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
    let deadline = Instant::now() + PATIENCE;
    let mut pause = PAUSES.0;
    loop {
        let error = match send(client, address, namespace, &request).await {
            Ok(()) => return,
            Err(error) => error,
        };
        *client = None;
        if matches!(&error, ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::INVALID_ARGUMENT)
            || Instant::now() > deadline
        {
            return tracing::error!(topic, %error, "an event was given up");
        }
        tracing::debug!(topic, %error, "an event will be sent again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

async fn send(
    client: &mut Option<EventsClient>,
    address: &str,
    namespace: &str,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => EventsClient::new(Client::connect(address).await?),
    };
    let context = ttrpc::context::Context {
        // pkg/namespaces: the ttrpc twin of gRPC's containerd-namespace.
        metadata: HashMap::from([("containerd-namespace-ttrpc".to_owned(), vec![namespace.to_owned()])]),
        timeout_nano: i64::try_from(ANSWER.as_nanos()).unwrap_or(i64::MAX),
    };
    let answer = tokio::time::timeout(ANSWER, connected.forward(context, request)).await;
    answer.map_err(|_| ttrpc::Error::Others(format!("no answer within {ANSWER:?}")))??;
    *client = Some(connected);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use protobuf::{Message as _, well_known_types::empty::Empty};
    use skep_containerd_api::events_ttrpc::{Events, create_events};
    use ttrpc::r#async::{Server, TtrpcContext};

    use super::*;

    /// A containerd that notes what it is sent, and refuses every other event at first.
    #[derive(Default)]
    struct Daemon {
        seen: Mutex<Vec<(String, String, String)>>,
        calls: Mutex<u32>,
    }

    #[async_trait]
    impl Events for Daemon {
        async fn forward(&self, context: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            {
                let mut calls = self.calls.lock().unwrap();
                *calls += 1;
                if *calls % 2 == 1 {
                    return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNAVAILABLE, "busy")));
                }
            }
            assert_eq!(context.metadata["containerd-namespace-ttrpc"], ["ns"]);
            let envelope = request.envelope.unwrap();
            let exit = TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
            self.seen.lock().unwrap().push((envelope.namespace, envelope.topic, exit.id));
            Ok(Empty::new())
        }
    }

    fn exit(id: u32) -> TaskExit {
        TaskExit { id: id.to_string(), ..TaskExit::default() }
    }

    #[tokio::test]
    async fn events_arrive_in_order_though_containerd_comes_late_and_refuses_some() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ttrpc.sock");
        let publisher = Publisher::start("ns", path.to_str());
        for id in 0..5 {
            publisher.publish(&exit(id));
        }
        // Nobody listens yet.
        publisher.flush(Duration::from_millis(200)).await;
        let daemon = Arc::new(Daemon::default());
        let service: Arc<dyn Events + Send + Sync> = Arc::<Daemon>::clone(&daemon);
        let address = format!("unix://{}", path.display());
        let mut server = Server::new().bind(&address).unwrap().register_service(create_events(service));
        server.start().await.unwrap();
        publisher.flush(Duration::from_secs(60)).await;
        let seen = daemon.seen.lock().unwrap().clone();
        let expected: Vec<_> =
            (0..5).map(|id| ("ns".to_owned(), "/tasks/exit".to_owned(), id.to_string())).collect();
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn a_queue_that_is_full_loses_events_and_waits_for_nobody() {
        let publisher = Publisher::start("ns", Some("/no/such/socket"));
        for id in 0..u32::try_from(QUEUE).unwrap() + 10 {
            publisher.publish(&exit(id));
        }
        assert_eq!(publisher.queue.capacity(), 0);
    }
}

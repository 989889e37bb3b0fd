//! A small client of the QEMU Machine Protocol: the few commands and the one event that matter here.
//!
//! QEMU is what a hostile guest attacks first, so what comes from it is bounded like what comes from the guest.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Longest line that is read.
const MOST_LINE: u64 = 256 << 10;
/// Most commands that wait for their answer.
const MOST_PENDING: usize = 16;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused it.
    #[error("qemu refused `{command}`: {description}")]
    Refused {
        /// Which.
        command: &'static str,
        /// QEMU's words.
        description: String,
    },
    /// The connection has ended.
    #[error("qemu's monitor closed before it answered `{command}`")]
    Closed {
        /// Which.
        command: &'static str,
    },
    /// No answer.
    #[error("qemu's monitor has not answered `{command}` within {} s", ANSWER.as_secs())]
    Timeout {
        /// Which.
        command: &'static str,
    },
}

/// Why QEMU says that the VM ended: `ShutdownCause` of its QAPI schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ShutdownReason {
    /// Powered off.
    GuestShutdown,
    /// Reset, which with `-no-reboot` ends the VM.
    GuestReset,
    /// A panic device was written to.
    GuestPanic,
    /// By a command or signal of the host, or for a reason that a later QEMU has.
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct Shutdown {
    reason: ShutdownReason,
}

/// A line from QEMU.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        _greeting: serde::de::IgnoredAny,
    },
    Event {
        event: String,
        #[serde(default)]
        data: serde_json::Value,
    },
    Return {
        #[serde(rename = "return")]
        _value: serde::de::IgnoredAny,
    },
    Error {
        error: Refusal,
    },
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

type Answer = oneshot::Sender<Result<(), QmpError>>;

/// A connection to a monitor. Commands are answered in order.
#[derive(Debug, Clone)]
pub(super) struct Qmp {
    commands: mpsc::Sender<(&'static str, Answer)>,
    shutdown: Arc<Mutex<Option<ShutdownReason>>>,
}

impl Qmp {
    /// A client, and what runs it until the connection ends.
    pub(super) fn new(socket: UnixStream) -> (Self, impl Future<Output = ()> + Send) {
        let (commands, requests) = mpsc::channel(MOST_PENDING);
        let shutdown = Arc::new(Mutex::new(None));
        let client = Self { commands, shutdown: Arc::clone(&shutdown) };
        let run = async move {
            let (reader, writer) = socket.into_split();
            if let Err(e) = run(BufReader::new(reader), writer, requests, &shutdown).await {
                tracing::warn!("qemu's monitor: {e}");
            }
        };
        (client, run)
    }

    /// Gives a command that has neither arguments nor a result of interest.
    pub(super) async fn execute(&self, command: &'static str) -> Result<(), QmpError> {
        let ask = async {
            let (answer, answered) = oneshot::channel();
            let closed = || QmpError::Closed { command };
            self.commands.send((command, answer)).await.map_err(|_| closed())?;
            answered.await.unwrap_or_else(|_| Err(closed()))
        };
        tokio::time::timeout(ANSWER, ask).await.unwrap_or(Err(QmpError::Timeout { command }))
    }

    /// Why the VM ended, if QEMU has said so.
    pub(super) fn shutdown_reason(&self) -> Option<ShutdownReason> {
        *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(
    mut reader: impl AsyncBufRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    mut requests: mpsc::Receiver<(&'static str, Answer)>,
    shutdown: &Mutex<Option<ShutdownReason>>,
) -> io::Result<()> {
    let mut pending: VecDeque<(&'static str, Option<Answer>)> = VecDeque::new();
    let mut ready = false;
    let mut line = Vec::new();
    loop {
        tokio::select! {
            // May be dropped half way: what was read stays in `line`.
            read = read_line(&mut reader, &mut line) => {
                if !read? {
                    return Ok(());
                }
                let message: Message = serde_json::from_slice(&line)?;
                line.clear();
                match message {
                    Message::Greeting { .. } => {
                        pending.push_back(("qmp_capabilities", None));
                        send(&mut writer, "qmp_capabilities").await?;
                        ready = true;
                    }
                    Message::Event { event, data } => {
                        tracing::debug!(event, %data, "qemu");
                        if event == "SHUTDOWN" {
                            let Shutdown { reason } = serde_json::from_value(data)?;
                            *shutdown.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                        }
                    }
                    Message::Return { .. } => answer(&mut pending, |_| Ok(()))?,
                    Message::Error { error } => answer(&mut pending, |command| {
                        Err(QmpError::Refused { command, description: error.desc })
                    })?,
                }
            }
            Some((command, reply)) = requests.recv(), if ready && pending.len() < MOST_PENDING => {
                pending.push_back((command, Some(reply)));
                send(&mut writer, command).await?;
            }
        }
    }
}

/// Whether there was one more line; it is appended to `line`. Cancel safe.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> io::Result<bool> {
    let room = MOST_LINE - line.len() as u64;
    reader.take(room).read_until(b'\n', line).await?;
    if line.ends_with(b"\n") {
        return Ok(true);
    }
    if line.len() as u64 >= MOST_LINE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a line longer than {MOST_LINE} bytes"),
        ));
    }
    Ok(false)
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), command: &str) -> io::Result<()> {
    writer.write_all(format!("{{\"execute\":\"{command}\"}}\n").as_bytes()).await
}

fn answer(
    pending: &mut VecDeque<(&'static str, Option<Answer>)>,
    result: impl FnOnce(&'static str) -> Result<(), QmpError>,
) -> io::Result<()> {
    let Some((command, reply)) = pending.pop_front() else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer that nobody asked for"));
    };
    if let Some(reply) = reply {
        // Whoever asked may have stopped waiting.
        let _ = reply.send(result(command));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor that answers each command by the next of `script`.
    fn monitor(script: &'static [&'static str]) -> (Qmp, tokio::task::JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (qmp, run) = Qmp::new(ours);
        tokio::spawn(run);
        let server = tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut lines = BufReader::new(reader).lines();
            let mut heard = Vec::new();
            writer.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await.unwrap();
            for reply in script {
                heard.push(lines.next_line().await.unwrap().unwrap());
                writer.write_all(reply.as_bytes()).await.unwrap();
            }
            heard
        });
        (qmp, server)
    }

    #[tokio::test]
    async fn commands_are_answered_in_order_amid_events() {
        let (qmp, server) = monitor(&[
            "{\"return\": {}}\r\n",
            "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n{\"return\": {}}\r\n",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n\
             {\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\r\n",
        ]);
        qmp.execute("stop").await.unwrap();
        assert_eq!(qmp.shutdown_reason(), None);
        assert_eq!(qmp.execute("cont").await.unwrap_err().to_string(), "qemu refused `cont`: no");
        let heard = server.await.unwrap();
        assert_eq!(
            heard,
            ["{\"execute\":\"qmp_capabilities\"}", "{\"execute\":\"stop\"}", "{\"execute\":\"cont\"}"]
        );
        // The monitor is gone, and whoever asks is told; by then the event has been read.
        let error = qmp.execute("stop").await.unwrap_err();
        assert!(matches!(error, QmpError::Closed { command: "stop" }), "{error}");
        assert_eq!(qmp.shutdown_reason(), Some(ShutdownReason::GuestReset));
    }

    #[tokio::test]
    async fn a_monitor_that_makes_no_sense_is_left() {
        let endless: &'static str = Box::leak("x".repeat(300 << 10).into_boxed_str());
        for nonsense in [endless, "{}\n", "{\"return\": {}}\n{\"return\": {}}\n"] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (qmp, run) = Qmp::new(ours);
            let (_reader, mut writer) = theirs.into_split();
            let runner = tokio::spawn(run);
            // It may leave before it has heard all.
            let _ = writer.write_all(nonsense.as_bytes()).await;
            runner.await.unwrap();
            assert!(matches!(qmp.execute("stop").await, Err(QmpError::Closed { .. })));
        }
    }

    #[test]
    fn an_unknown_reason_is_another() {
        let shutdown: Shutdown =
            serde_json::from_str("{\"guest\":false,\"reason\":\"snapshot-load\"}").unwrap();
        assert_eq!(shutdown.reason, ShutdownReason::Other);
        let shutdown: Shutdown =
            serde_json::from_str("{\"guest\":true,\"reason\":\"guest-shutdown\"}").unwrap();
        assert_eq!(shutdown.reason, ShutdownReason::GuestShutdown);
    }
}

//! What containerd publishes, recorded while a test runs.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::containerd::Containerd;
use crate::process::wait_for;

/// Where FreeBSD itself runs under emulation, its VMs are slow; so is any busy machine.
const LIMIT: Duration = Duration::from_secs(200);

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What happened, as `/tasks/start`.
    pub topic: String,
    /// The event itself, as `ctr` prints it.
    pub body: Value,
    /// When it arrived.
    pub at: SystemTime,
}

impl Event {
    /// A line of `ctr events`: time, namespace, topic and body.
    fn parse(line: &str, namespace: &str) -> Option<Self> {
        let (_, rest) = line.split_once(&format!(" {namespace} /"))?;
        let (topic, body) = rest.split_once(' ').unwrap_or((rest, "{}"));
        Some(Self {
            topic: format!("/{topic}"),
            body: serde_json::from_str(body).unwrap_or_default(),
            at: SystemTime::now(),
        })
    }

    /// A member of the body as text, empty where there is none.
    pub fn text(&self, name: &str) -> &str {
        self.body[name].as_str().unwrap_or_default()
    }

    /// A member of the body as a number, 0 where there is none: that is how protobuf's JSON leaves it out.
    pub fn number(&self, name: &str) -> u64 {
        self.body[name].as_u64().unwrap_or_default()
    }

    /// The topic's last word, and for processes other than a container's first the id: `exit`, `exec-added e1`.
    pub fn summary(&self) -> String {
        let word = self.topic.rsplit('/').next().unwrap_or_default();
        let exec = match self.text("exec_id") {
            "" if word == "exit" && self.text("id") != self.text("container_id") => self.text("id"),
            exec => exec,
        };
        format!("{word} {exec}").trim_end().to_owned()
    }
}

/// Records events from its start until it is dropped.
pub struct Recorder {
    child: Child,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Recorder {
    /// Starts recording; returns when events are known to arrive.
    pub fn start(containerd: &Containerd) -> Result<Self> {
        let mut command = containerd.ctr_command(["events"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().context("starting ctr events")?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let output = child.stdout.take().context("ctr's output was asked for")?;
        let (into, namespace) = (Arc::clone(&events), containerd.namespace().to_owned());
        // Ends when the child is killed.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(event) = Event::parse(&line, &namespace) {
                    into.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                }
            }
        });
        let recorder = Self { child, events };
        let mut count = 0;
        // ctr does not say when it has subscribed: make events until one is seen.
        wait_for("the first event", LIMIT, || {
            count += 1;
            containerd
                .ctr(["namespace", "label", containerd.namespace(), &format!("probe={count}")])?
                .succeeded()?;
            thread::sleep(Duration::from_millis(50));
            Ok((!recorder.all().is_empty()).then_some(()))
        })?;
        Ok(recorder)
    }

    /// All that was recorded so far.
    pub fn all(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The task events of one container.
    pub fn of(&self, container: &str) -> Vec<Event> {
        let mut events = self.all();
        events.retain(|event| event.topic.starts_with("/tasks/") && event.text("container_id") == container);
        events
    }

    /// Waits for an event of `container` whose [`Event::summary`] is `summary`.
    pub fn wait(&self, container: &str, summary: &str) -> Result<Event> {
        let found = wait_for(&format!("the event {summary:?} of {container}"), LIMIT, || {
            Ok(self.of(container).into_iter().find(|event| event.summary() == summary))
        });
        match found {
            Ok(event) => Ok(event),
            Err(error) => bail!("{error:#}; there were {:?}", self.summaries(container)),
        }
    }

    /// The summaries of all task events of one container, in their order.
    pub fn summaries(&self, container: &str) -> Vec<String> {
        self.of(container).iter().map(Event::summary).collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ctr_are_understood() {
        let line = "2026-01-02 03:04:05.678 +0000 UTC skep-t-x /tasks/exit {\"container_id\":\"a\",\"id\":\"e1\",\"pid\":7}";
        let event = Event::parse(line, "skep-t-x").unwrap();
        assert_eq!(
            (event.summary().as_str(), event.number("pid"), event.number("exit_status")),
            ("exit e1", 7, 0)
        );
        assert_eq!(Event::parse(line, "other"), None);
    }
}

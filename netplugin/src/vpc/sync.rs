//! Carrying a declaration to its nodes by ssh.
//!
//! The declaration goes on standard input. The command that the other side's shell reads is made of words checked
//! beforehand; nothing of the declaration but a node's name, which has no character that a shell knows, is among them.

use std::io::{Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Declaration, DeclarationError, Member, wrong};

/// How nodes are reached.
#[derive(Clone, Debug)]
pub struct Remote {
    /// What runs there: `skep net`, `sudo skep net`, `/opt/skep/bin/skep net`.
    command: String,
    /// ssh's options (`-o`).
    options: Vec<String>,
    /// How long one node may take.
    timeout: Duration,
}

/// What became of one node.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The node.
    pub node: String,
    /// Where it was looked for.
    pub destination: String,
    /// The outcome.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The outcome on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum Outcome {
    /// It has the declaration now.
    Changed,
    /// It had it already, and its network is as it should be.
    Unchanged,
    /// It is none of the network's nodes any more, and has nothing of it.
    Left,
    /// It has not.
    Failed {
        /// Why.
        why: String,
    },
}

/// What `install` and `leave` print on the other side.
#[derive(Debug, Deserialize)]
struct Answer {
    node: String,
    revision: u64,
    changed: bool,
}

/// No answer and no complaint is longer.
const MAX_OUTPUT: u64 = 16 << 10;
/// So many nodes are talked to at the same time.
const AT_ONCE: usize = 16;

impl Remote {
    /// Checks the words of the command: they pass a shell on the other side.
    pub fn new(command: &str, options: Vec<String>, timeout: Duration) -> Result<Self, DeclarationError> {
        let word = |word: &str| {
            word.bytes().all(|c| {
                c.is_ascii_alphanumeric()
                    || matches!(c, b'_' | b'.' | b'-' | b'/' | b'=' | b':' | b',' | b'+')
            })
        };
        let words: Vec<&str> = command.split_ascii_whitespace().collect();
        if words.is_empty() || words[0].starts_with('-') || !words.iter().all(|one| word(one)) {
            let why = format!("`{}` is not words of letters, digits and _.-/=:,+", command.escape_debug());
            return Err(wrong("remote", why));
        }
        if timeout.is_zero() {
            return Err(wrong("timeout", "is 0"));
        }
        Ok(Self { command: words.join(" "), options, timeout })
    }

    /// Gives every node of `nodes` the declaration, several at a time. Goes on after a failure.
    pub fn sync(
        &self,
        declaration: &Declaration,
        nodes: &[&Member],
    ) -> Result<Vec<Report>, DeclarationError> {
        self.tell("install", declaration, nodes)
    }

    /// Has every host of `gone` take the network away, which is none of the declaration's nodes.
    pub fn dismiss(
        &self,
        declaration: &Declaration,
        gone: &[&Member],
    ) -> Result<Vec<Report>, DeclarationError> {
        self.tell("leave", declaration, gone)
    }

    fn tell(
        &self,
        verb: &'static str,
        declaration: &Declaration,
        nodes: &[&Member],
    ) -> Result<Vec<Report>, DeclarationError> {
        let text = declaration.to_text()?;
        let mut reports = Vec::new();
        for some in nodes.chunks(AT_ONCE) {
            thread::scope(|scope| {
                let running: Vec<_> = some
                    .iter()
                    .map(|node| scope.spawn(|| self.ask(verb, &text, declaration.revision, node)))
                    .collect();
                for (node, one) in some.iter().zip(running) {
                    let outcome = one
                        .join()
                        .unwrap_or_else(|_| Outcome::Failed { why: "the thread for it panicked".to_owned() });
                    reports.push(Report {
                        node: node.name.clone(),
                        destination: node.destination(),
                        outcome,
                    });
                }
            });
        }
        Ok(reports)
    }

    /// ssh's arguments for a node.
    fn arguments(&self, verb: &str, node: &Member) -> Vec<String> {
        let mut arguments = Vec::new();
        // The first value of an option counts: the user's come before ours.
        let ours =
            ["BatchMode=yes".to_owned(), "ConnectTimeout=10".to_owned(), "ServerAliveInterval=5".to_owned()];
        for option in self.options.iter().chain(&ours) {
            arguments.extend(["-o".to_owned(), option.clone()]);
        }
        arguments.extend(["-T".to_owned(), "--".to_owned(), node.destination()]);
        arguments.push(format!("{} {verb} --json --node {}", self.command, node.name));
        arguments
    }

    fn ask(&self, verb: &str, text: &str, revision: u64, node: &Member) -> Outcome {
        let failed = |why: String| Outcome::Failed { why };
        let spawned = Command::new("ssh")
            .args(self.arguments(verb, node))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => return failed(format!("cannot run ssh: {error}")),
        };
        let ended = self.talk(&mut child, text);
        if ended.is_err() {
            let _ = child.kill();
        }
        let status = child.wait();
        let (output, complaint) = match ended {
            Ok(said) => said,
            Err(why) => return failed(why),
        };
        let complaint = printable(&complaint);
        match status {
            Ok(status) if status.success() => {}
            // What ssh itself has to say (255), or the other side's command.
            Ok(status) if complaint.is_empty() => return failed(format!("ssh: {status}")),
            Ok(_) => return failed(complaint),
            Err(error) => return failed(format!("cannot wait for ssh: {error}")),
        }
        match serde_json::from_slice::<Answer>(&output) {
            Ok(answer) if answer.node != node.name || answer.revision != revision => failed(format!(
                "answered as node `{}` with revision {}",
                answer.node.escape_debug(),
                answer.revision
            )),
            Ok(_) if verb == "leave" => Outcome::Left,
            Ok(Answer { changed: true, .. }) => Outcome::Changed,
            Ok(_) => Outcome::Unchanged,
            Err(_) => failed(format!("answered nonsense: {}", printable(&output))),
        }
    }

    /// Feeds the child; what it says on both outputs, if it ends in time.
    fn talk(&self, child: &mut Child, text: &str) -> Result<(Vec<u8>, Vec<u8>), String> {
        let deadline = Instant::now() + self.timeout;
        let (mut stdin, text) = (child.stdin.take(), text.to_owned());
        thread::spawn(move || {
            if let Some(stdin) = &mut stdin {
                // Whoever does not read it says why on the other streams.
                let _ = stdin.write_all(text.as_bytes());
            }
        });
        let output = collect(child.stdout.take());
        let complaint = collect(child.stderr.take());
        let wait = |from: &mpsc::Receiver<Vec<u8>>| {
            from.recv_timeout(deadline.saturating_duration_since(Instant::now()))
                .map_err(|_| format!("no answer within {} s", self.timeout.as_secs()))
        };
        Ok((wait(&output)?, wait(&complaint)?))
    }
}

/// Reads a stream to its end; keeps the beginning.
fn collect(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.by_ref().take(MAX_OUTPUT).read_to_end(&mut kept);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        let _ = sender.send(kept);
    });
    receiver
}

/// What another host said, fit for a terminal: one line, no control characters.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ").chars().map(|c| if c.is_control() { '?' } else { c }).take(1000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        Member {
            name: name.to_owned(),
            id: 1,
            address: "192.0.2.1".parse().unwrap(),
            alternate: None,
            ssh: None,
        }
    }

    #[test]
    fn the_command_is_words_and_the_users_options_come_first() {
        let timeout = Duration::from_secs(1);
        for bad in
            ["", "-x", "skep net; rm", "skep $(x)", "skep 'net'", "skep\u{a0}net", "a`b`", "a|b", "a>b"]
        {
            assert!(Remote::new(bad, Vec::new(), timeout).is_err(), "{bad}");
        }
        let remote = Remote::new("sudo  skep net", vec!["ConnectTimeout=3".to_owned()], timeout).unwrap();
        let arguments = remote.arguments("install", &member("a"));
        assert_eq!(arguments[..2], ["-o", "ConnectTimeout=3"]);
        assert_eq!(
            arguments[arguments.len() - 3..],
            ["--", "root@192.0.2.1", "sudo skep net install --json --node a"]
        );
    }

    #[test]
    fn what_a_host_says_cannot_move_the_cursor() {
        assert_eq!(printable(b"\x1b[2Jgone\r\n\nmore\n"), "?[2Jgone; more");
    }
}

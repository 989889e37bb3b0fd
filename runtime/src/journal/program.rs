//! A program that does one thing for a sandbox: given its input, bounded in time and in what it prints, and in the
//! journal while it runs.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::pipe::PipeFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;

use super::{EntryId, Journal, JournalError};
use crate::os::{ProcessError, ProcessIdentity, Signal};

/// How long what a program said last may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long a killed one may take to go.
const KILL: Duration = Duration::from_secs(2);
/// Bytes of what it says on standard error that go into a message.
const SAID: usize = 2048;

/// A program to be run.
#[derive(Debug)]
pub(crate) struct Program {
    /// What it does, for the journal.
    pub(crate) role: &'static str,
    /// Its path, arguments and environment; its standard streams are set when it is run.
    pub(crate) command: Command,
    /// What it reads. It need not.
    pub(crate) input: Vec<u8>,
    /// How many bytes it may print; none: what it prints is not looked at.
    pub(crate) output: Option<usize>,
    /// How long it may take.
    pub(crate) limit: Duration,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its status.
    pub(crate) status: ExitStatus,
    /// What it printed.
    pub(crate) output: Vec<u8>,
    /// The end of what it said on standard error.
    pub(crate) said: String,
}

/// A program could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be started, or not be spoken with.
    #[error("{0}")]
    System(#[from] io::Error),
    /// It could not be recorded or started.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It could not be watched.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It took too long.
    #[error("killed after {} s{}", limit.as_secs(), after(.said))]
    Timeout {
        /// How long it was given.
        limit: Duration,
        /// What it said.
        said: String,
    },
}

/// What a program said, to be put behind what became of it.
pub(crate) fn after(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// Kills a program that nobody waits for any more, and lets nobody else find its record or its zombie.
struct Running<'a> {
    child: Child,
    process: ProcessIdentity,
    record: Option<(&'a Journal, EntryId)>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill_and_wait(KILL) {
            tracing::warn!(%error, "a program");
            return;
        }
        // Reaps it: it has ended.
        let _ = self.child.wait();
        if let Some((journal, entry)) = self.record
            && let Err(error) = journal.strike(entry)
        {
            tracing::warn!(%error, "a program stays in the journal");
        }
    }
}

impl Program {
    /// Runs it to its end. When the future is dropped it is killed.
    pub(crate) async fn run(self, journal: Option<&Journal>) -> Result<Ended, ProgramError> {
        let Self { role, mut command, input, output: most, limit } = self;
        let (reader, stdin) = input_pipe()?;
        command.stdin(reader).stderr(Stdio::piped());
        command.stdout(if most.is_some() { Stdio::piped() } else { Stdio::null() });
        let (child, process, record) = if let Some(journal) = journal {
            let (child, process, entry) = journal.spawn(role, command, &[])?;
            (child, process, Some((journal, entry)))
        } else {
            let child = command.spawn()?;
            // With it goes the reading end of the program's input.
            drop(command);
            let process =
                ProcessIdentity::of(child.id())?.unwrap_or(ProcessIdentity { pid: child.id(), start: 0 });
            (child, process, None)
        };
        let mut running = Running { child, process, record };
        let (mut printed, mut text) = (Vec::new(), Vec::new());
        let ended = {
            let stdout = running.child.stdout.take().map(OwnedFd::from);
            let stderr = running.child.stderr.take().map(OwnedFd::from);
            let mut talk = std::pin::pin!(async {
                tokio::join!(
                    tell(stdin, &input),
                    // One byte more, so that too many are seen to be too many.
                    listen(stdout, &mut printed, most.map_or(0, |most| most + 1), true),
                    listen(stderr, &mut text, SAID, false)
                )
            });
            let exit = async {
                match process.watch()? {
                    Some(watch) => watch.exited().await,
                    None => Ok(()),
                }
            };
            let mut exit = std::pin::pin!(tokio::time::timeout(limit, exit));
            let (ended, quiet) = tokio::select! {
                ended = &mut exit => (ended, false),
                // All may end long before the program does.
                _ = &mut talk => (exit.await, true),
            };
            if !quiet {
                // What it said last; a process that it left behind may hold the pipe open for ever.
                let _ = tokio::time::timeout(LAST_WORDS, talk).await;
            }
            ended
        };
        let said = String::from_utf8_lossy(&text).trim().chars().take(SAID).collect();
        match ended {
            Err(_) => {
                process.signal(Signal::KILL)?;
                Err(ProgramError::Timeout { limit, said })
            }
            Ok(exited) => {
                exited?;
                if let Some(most) = most.filter(|most| printed.len() > *most) {
                    return Err(io::Error::other(format!("it printed more than {most} bytes")).into());
                }
                Ok(Ended { status: running.child.wait()?, output: printed, said })
            }
        }
    }
}

/// A pipe for the input. It is watched while both ends are open: kqueue watches no pipe whose reader is gone (FreeBSD's
/// `sys/kern/sys_pipe.c`, `pipe_kqfilter`), so writing to a program that ended at once would wait for ever.
fn input_pipe() -> io::Result<(OwnedFd, pipe::Sender)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((reader, pipe::Sender::from_owned_fd(writer)?))
}

/// Hands over the input, as far as it is read.
async fn tell(mut stdin: pipe::Sender, input: &[u8]) {
    let _ = stdin.write_all(input).await;
}

/// Reads all, so that the program never waits for it, and keeps the first or the last `most` bytes.
async fn listen(pipe: Option<OwnedFd>, text: &mut Vec<u8>, most: usize, first: bool) {
    let Some(Ok(mut pipe)) = pipe.map(pipe::Receiver::from_owned_fd) else { return };
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let room = if first { most - text.len().min(most) } else { count };
        text.extend_from_slice(&buffer[..count.min(room)]);
        if text.len() > most {
            text.drain(..text.len() - most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, output: Option<usize>) -> Program {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Program { role: "test", command, input: b"question".into(), output, limit: Duration::from_secs(30) }
    }

    #[tokio::test]
    async fn it_is_in_the_journal_while_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::create(&path).unwrap();
        let script = format!("cat; grep -c '\"role\":\"test\"' {} >&2", path.display());
        let ended = sh(&script, Some(100)).run(Some(&journal)).await.unwrap();
        assert!(ended.status.success());
        assert_eq!((ended.output.as_slice(), ended.said.as_str()), (&b"question"[..], "1"));
        assert!(journal.entries().is_empty());
    }

    #[tokio::test]
    async fn what_it_prints_and_takes_is_bounded() {
        let error = sh("head -c 300000 /dev/zero", Some(1000)).run(None).await.unwrap_err();
        assert!(error.to_string().contains("more than 1000 bytes"), "{error}");
        let ended = sh("head -c 300000 /dev/zero; exit 3", None).run(None).await.unwrap();
        assert_eq!((ended.status.code(), ended.output.len()), (Some(3), 0));
        let slow =
            Program { limit: Duration::from_millis(50), ..sh("echo waiting >&2; exec sleep 600", None) };
        let error = slow.run(None).await.unwrap_err().to_string();
        assert!(error.starts_with("killed after 0 s"), "{error}");
    }

    #[tokio::test]
    async fn input_that_nobody_reads_is_not_waited_for() {
        let (reader, stdin) = input_pipe().unwrap();
        drop(reader);
        tokio::time::timeout(Duration::from_secs(30), tell(stdin, &vec![0; 1 << 20])).await.unwrap();
        let idle = Program { input: vec![0; 1 << 20], ..sh("exit 4", None) };
        assert_eq!(idle.run(None).await.unwrap().status.code(), Some(4));
    }

    #[tokio::test]
    async fn nobody_waits_and_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(&dir.path().join("journal")).unwrap();
        let sleep = sh("exec sleep 600", None);
        let runs = async {
            while journal.entries().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            ended = sleep.run(Some(&journal)) => panic!("{ended:?}"),
            () = runs => {}
        }
        assert!(journal.entries().is_empty());
    }
}

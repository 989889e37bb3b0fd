//! Running other programs: logged to a file with the last line shown, or straight on the user's terminal.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use skep_tests::process::check_interrupt;

use crate::progress::Step;

/// How many lines of a failed command's log are shown.
const TAIL_LINES: usize = 30;
/// How often a wait looks whether the user wants to stop.
const TICK: Duration = Duration::from_millis(50);
/// How long an interrupted command gets to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// A child in a process group of its own, so that a Ctrl-C on the terminal reaches it only through us and
/// everything it started can be ended with it.
pub(crate) struct Group {
    child: Child,
    name: String,
}

impl Group {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let name = program(command);
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {name}: is it installed and in PATH?"))?;
        Ok(Self { child, name })
    }

    /// Whether it has ended, and how.
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits for the end, which an interrupt or `limit` brings about if need be.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            let late = limit.is_some_and(|limit| started.elapsed() > limit);
            if let Err(error) = check_interrupt() {
                self.end(GRACE);
                return Err(error);
            }
            if late {
                self.end(GRACE);
                bail!("{} did not end within {:?}", self.name, limit.unwrap_or_default());
            }
            std::thread::sleep(TICK);
        }
    }

    /// SIGTERM to the group, then SIGKILL to what is left of it after `grace`.
    pub(crate) fn end(&mut self, grace: Duration) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        let group = Pid::from_raw(pid);
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = killpg(group, Signal::SIGTERM);
            let started = Instant::now();
            while started.elapsed() < grace && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(TICK);
            }
        }
        // What the child started may have outlived it.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end(GRACE);
        }
    }
}

/// Runs `command` with its output in `log` and the newest line beside `step`.
///
/// A failure's error holds the end of the log and where the whole of it is.
pub(crate) fn run_logged(command: &mut Command, log: &Path, step: &mut Step) -> Result<()> {
    let name = program(command);
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open the log {}", log.display()))?;
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let second = writer.try_clone().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let mut group = Group::spawn(command)?;
    // The command keeps its ends of the pipe open; with them the reader would never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (lines, newest) = channel();
    let copier = std::thread::spawn(move || copy_lines(reader, file, &lines));
    let status = loop {
        match newest.recv_timeout(TICK) {
            Ok(line) => step.note(newest.try_iter().last().as_deref().unwrap_or(&line)),
            Err(RecvTimeoutError::Timeout) => step.beat(),
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK),
        }
        if let Some(status) = group.try_wait()? {
            break status;
        }
        check_interrupt()?;
    };
    let _ = copier.join();
    if status.success() {
        return Ok(());
    }
    bail!("{name} failed ({status}); the end of {}:\n{}", log.display(), tail(log))
}

fn copy_lines(reader: impl std::io::Read, mut log: File, lines: &Sender<String>) -> std::io::Result<()> {
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        log.write_all(&line)?;
        log.write_all(b"\n")?;
        let text = String::from_utf8_lossy(&line);
        // Nobody listens any more once the command has ended.
        let _ = lines.send(text.trim().to_owned());
    }
    Ok(())
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Runs `command` on the user's terminal; its failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = program(command);
    let status = Group::spawn(command.stdin(Stdio::null()))?.wait(None)?;
    anyhow::ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}

/// What `command` prints on its standard output, within `limit`; a failure's error holds its standard error.
pub(crate) fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let name = program(command);
    let mut out = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut err = tempfile::tempfile().context("cannot make a temporary file")?;
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("cannot share a temporary file")?)
        .stderr(err.try_clone().context("cannot share a temporary file")?);
    let status = Group::spawn(command)?.wait(Some(limit))?;
    let (out, err) = (contents(&mut out)?, contents(&mut err)?);
    anyhow::ensure!(status.success(), "{name} failed ({status}): {}", err.trim());
    Ok(out)
}

fn contents(file: &mut File) -> Result<String> {
    use std::io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).context("cannot read a temporary file")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The file of that name in a directory of PATH.
pub(crate) fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Root's shell does not always have the administrator's directories.
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn program(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().take(3).map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut step = Step::start("testing");
        let mut command = Command::new("sh");
        command.args(["-c", "for i in $(seq 100); do echo line $i; done; echo broken >&2; exit 3"]);
        let error = run_logged(&mut command, &log, &mut step).unwrap_err().to_string();
        assert!(error.contains("broken"), "{error}");
        assert!(error.contains("line 99") && !error.contains("line 9\n"), "{error}");
        assert!(std::fs::read_to_string(&log).unwrap().starts_with("line 1\n"));
    }

    #[test]
    fn output_is_bounded_in_time() {
        let error = output(Command::new("sleep").arg("60"), Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("sleep 60 did not end"), "{error}");
        assert_eq!(output(Command::new("echo").arg("hi"), Duration::from_secs(60)).unwrap(), "hi\n");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(error.to_string().contains("no-such-program-here"), "{error}");
    }
}

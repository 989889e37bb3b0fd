//! Running programs with a limit on their time, and without leaving them behind.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::pty::{self, OpenptFlags};
use rustix::termios::{Winsize, tcsetwinsize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use wait_timeout::ChildExt as _;

/// How long any single command of a test may take. Generous: it only keeps a hang from being endless.
pub const LIMIT: Duration = Duration::from_secs(if cfg!(target_os = "linux") { 300 } else { 400 });

const TICK: Duration = Duration::from_millis(50);

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Turns SIGINT, SIGTERM and SIGHUP into an error from every wait, so that guards clean up.
pub fn catch_interrupts() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag))
            .with_context(|| format!("handling signal {signal}"))?;
    }
    Ok(())
}

/// An error once the user has asked to stop.
pub fn check_interrupt() -> Result<()> {
    let interrupted = INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed));
    ensure!(!interrupted, "interrupted");
    Ok(())
}

/// What a program left: how it ended, and all it wrote.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, byte for byte.
    pub stdout: Vec<u8>,
    /// Standard error, byte for byte.
    pub stderr: Vec<u8>,
}

impl Output {
    /// The exit code, or 128 and the signal as shells have it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as text without the white space around it, if the program succeeded.
    pub fn text(&self) -> Result<String> {
        self.succeeded()?;
        Ok(self.out().trim().to_owned())
    }

    /// An error with all that was written unless the program succeeded.
    pub fn succeeded(&self) -> Result<&Self> {
        ensure!(self.status.success(), "{}", self.describe());
        Ok(self)
    }

    /// The command, its end and the beginning of what it wrote.
    pub fn describe(&self) -> String {
        let cut = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            text.char_indices()
                .nth(4000)
                .map_or_else(|| text.to_string(), |(at, _)| format!("{} …", &text[..at]))
        };
        format!(
            "`{}`: {}\nstdout: {}\nstderr: {}",
            self.command,
            self.status,
            cut(&self.stdout),
            cut(&self.stderr)
        )
    }
}

/// A running program in a process group of its own. Dropping it kills the group.
pub struct Running {
    child: Child,
    command: String,
    said: Arc<OnceLock<SystemTime>>,
    streams: Vec<Stream>,
    ended: bool,
}

impl Running {
    /// Starts `command` with its output captured and `input` as its input.
    pub fn spawn(mut command: Command, input: Input) -> Result<Self> {
        let shown = show(&command);
        command.stdin(if matches!(input, Input::Empty) { Stdio::null() } else { Stdio::piped() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("starting `{shown}`"))?;
        let said = Arc::new(OnceLock::new());
        let streams = vec![Stream::new(child.stdout.take(), &said), Stream::new(child.stderr.take(), &said)];
        // The threads end by themselves: the pipe breaks when the program is gone.
        match (child.stdin.take(), input) {
            (Some(mut pipe), Input::Bytes(bytes)) => {
                let said = Arc::clone(&said);
                thread::spawn(move || {
                    let written = pipe.write_all(&bytes);
                    let begin = Instant::now();
                    while written.is_ok() && said.get().is_none() && begin.elapsed() < LIMIT {
                        thread::sleep(TICK);
                    }
                });
            }
            (Some(mut pipe), Input::Piped(bytes)) => {
                thread::spawn(move || pipe.write_all(&bytes));
            }
            (None, _) | (_, Input::Empty) => {}
        }
        Ok(Self { child, command: shown, said, streams, ended: false })
    }

    /// Starts `command` on a terminal of 80 columns and 24 lines, whose output is the standard output.
    pub fn spawn_on_terminal(mut command: Command) -> Result<Self> {
        let shown = show(&command);
        let (master, slave) = pseudo_terminal().context("opening a pseudo-terminal")?;
        let end = || Ok::<_, std::io::Error>(Stdio::from(slave.try_clone()?));
        command.stdin(end()?).stdout(end()?).stderr(end()?).process_group(0);
        let child = command.spawn().with_context(|| format!("starting `{shown}`"))?;
        // The terminal ends when nobody has its other side open any more: not this process either.
        drop(command);
        drop(slave);
        let said = Arc::new(OnceLock::new());
        let streams = vec![Stream::new(Some(master), &said), Stream::new(None::<File>, &said)];
        Ok(Self { child, command: shown, said, streams, ended: false })
    }

    /// Waits for the end, at most `limit`.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.wait_timeout(TICK)? {
                self.ended = true;
                break status;
            }
            check_interrupt()?;
            if begin.elapsed() > limit {
                let written = self.abort();
                bail!("`{}` did not end within {} s and was killed{written}", self.command, limit.as_secs());
            }
        };
        // A grandchild may hold the pipes open: it is not waited for longer than the program itself would be.
        while !self.has_ended() {
            check_interrupt()?;
            ensure!(
                begin.elapsed() < limit,
                "`{}` has ended but something holds its output open",
                self.command
            );
            thread::sleep(TICK);
        }
        let [stdout, stderr] = self.collect()?;
        Ok(Output { command: self.command.clone(), status, stdout, stderr })
    }

    /// Ends the program with `signal` and gives what it wrote until then.
    pub fn stop(mut self, signal: Signal) -> Result<Output> {
        killpg(self.group()?, signal).with_context(|| format!("signalling `{}`", self.command))?;
        let Some(status) = self.child.wait_timeout(LIMIT)? else {
            bail!("`{}` outlived {signal}", self.command);
        };
        self.ended = true;
        let [stdout, stderr] = self.collect()?;
        Ok(Output { command: self.command.clone(), status, stdout, stderr })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// When the first byte of output came, if one has come.
    pub fn first_output(&self) -> Option<SystemTime> {
        self.said.get().copied()
    }

    /// Whether it has closed its output, which a program does at its end.
    pub fn has_ended(&self) -> bool {
        self.streams.iter().all(|stream| stream.thread.is_finished())
    }

    fn collect(&mut self) -> Result<[Vec<u8>; 2]> {
        let mut all = Vec::new();
        for stream in self.streams.drain(..) {
            all.push(stream.thread.join().map_err(|_| anyhow!("reading from `{}` panicked", self.command))??);
        }
        all.try_into().map_err(|_| anyhow!("`{}` has been waited for", self.command))
    }

    fn abort(&mut self) -> String {
        self.kill();
        let Ok([stdout, stderr]) = self.collect() else { return String::new() };
        format!(
            "\nstdout: {}\nstderr: {}",
            String::from_utf8_lossy(&stdout[..stdout.len().min(4000)]),
            String::from_utf8_lossy(&stderr[..stderr.len().min(4000)])
        )
    }

    fn group(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    fn kill(&mut self) {
        if !self.ended {
            if let Ok(group) = self.group() {
                // An error means that it is gone already.
                let _ = killpg(group, Signal::SIGKILL);
            }
            let _ = self.child.wait();
            self.ended = true;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Both sides of a new terminal of 80 columns and 24 lines. Without openpty(3): FreeBSD has it in a library whose number
/// differs between 14 and 15.
fn pseudo_terminal() -> Result<(File, File)> {
    let master = pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    pty::grantpt(&master)?;
    pty::unlockpt(&master)?;
    let name = pty::ptsname(&master, Vec::new())?;
    let slave = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(std::path::Path::new(OsStr::from_bytes(name.as_bytes())))?;
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&slave, size)?;
    Ok((File::from(master), slave))
}

/// What a program reads from its standard input.
#[derive(Clone, Debug, Default)]
pub enum Input {
    /// `/dev/null`.
    #[default]
    Empty,
    /// These bytes, and the end when the program has said something.
    ///
    /// A user at a keyboard does it so, too. `ctr` forgets an end of input that comes before the container's start.
    Bytes(Vec<u8>),
    /// These bytes and then the end, at once, as from a pipe.
    Piped(Vec<u8>),
}

/// Runs `command` to its end, at most [`LIMIT`].
pub fn run(command: Command) -> Result<Output> {
    Running::spawn(command, Input::Empty)?.wait(LIMIT)
}

/// Asks again and again until `probe` gives something, at most `limit`. `what` is what is waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        check_interrupt()?;
        ensure!(begin.elapsed() < limit, "waited {} s in vain for {what}", limit.as_secs());
        thread::sleep(TICK);
    }
}

/// What a program writes on one of its streams, read by a thread.
struct Stream {
    thread: JoinHandle<std::io::Result<Vec<u8>>>,
}

impl Stream {
    /// Reads `source` to its end and sets `said` when something comes first.
    fn new(source: Option<impl Read + Send + 'static>, said: &Arc<OnceLock<SystemTime>>) -> Self {
        let said = Arc::clone(said);
        let thread = thread::spawn(move || {
            let mut bytes = Vec::new();
            let Some(mut source) = source else { return Ok(bytes) };
            let mut buffer = vec![0; 1 << 16];
            loop {
                match source.read(&mut buffer) {
                    Ok(0) => return Ok(bytes),
                    Ok(count) => bytes.extend(&buffer[..count]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // A terminal that nobody has open any more (ioctl_tty(2) does not say, Linux does so).
                    Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => return Ok(bytes),
                    Err(error) => return Err(error),
                }
                said.get_or_init(SystemTime::now);
            }
        });
        Self { thread }
    }
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn streams_and_code_are_kept_apart() {
        let mut command = shell("cat; echo err >&2; exit 3");
        command.env("X", "y");
        let output = Running::spawn(command, Input::Bytes(b"in".into())).unwrap().wait(LIMIT).unwrap();
        assert_eq!((output.code(), output.out().as_str(), output.err().as_str()), (3, "in", "err\n"));
        assert!(format!("{:#}", output.succeeded().unwrap_err()).contains("err"));
    }

    #[test]
    fn a_hang_ends_and_says_so() {
        let running = Running::spawn(shell("echo said; sleep 1000 & sleep 1000"), Input::Empty).unwrap();
        wait_for("its word", LIMIT, || Ok(running.first_output())).unwrap();
        let error = running.wait(Duration::from_millis(300)).unwrap_err();
        assert!(
            format!("{error:#}").contains("did not end") && format!("{error:#}").contains("said"),
            "{error:#}"
        );
    }

    #[test]
    fn a_terminal_is_one() {
        let output = Running::spawn_on_terminal(shell("test -t 0 && test -t 2 && stty size"))
            .unwrap()
            .wait(LIMIT)
            .unwrap();
        assert_eq!((output.code(), output.out().as_str()), (0, "24 80\r\n"));
    }

    #[test]
    fn a_signal_is_told_as_shells_do() {
        assert_eq!(run(shell("kill -9 $$")).unwrap().code(), 137);
    }
}

//! The bytes of a process: pipes or a terminal on its side, streams of the channel on the host's.
//!
//! Each direction is copied by a task of its own through a bounded buffer, so a slow host slows the process
//! and nothing piles up in the guest. Output ends when its last writer is gone, and that end is passed on.
//! When the host's side breaks, output is read on and dropped: nobody is there any more to be slow for.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use skep_protocol::api::Stdio;
use skep_protocol::{Chunk, StdioRegistry, StdioStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::error::Refusal;
use crate::fdio::FdStream;
use crate::os::descriptors;

/// What is read at first of a process's input.
const BUFFER: usize = 32 * 1024;
/// How many times as much is read at once, and of output how many chunks: a pipe as [`descriptors::widen_pipe`] leaves it.
const MOST: usize = 8;
/// So many small reads in a row give up what room there is for large ones. What is large also comes in pieces.
const CALM: u32 = 16;
/// A call may overtake the streams it names, but not by much.
const CLAIM_LIMIT: Duration = Duration::from_secs(10);

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);

/// The streams that the host opened for a process.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    stdin: Option<StdioStream>,
    stdout: Option<StdioStream>,
    stderr: Option<StdioStream>,
}

/// The descriptors of a process, and what the agent keeps of them.
#[derive(Debug)]
pub(crate) struct Pipes {
    process: [OwnedFd; 3],
    stdin: Option<FdStream>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Streams {
    /// Takes the streams that `stdio` names, which have arrived or are about to.
    pub(crate) async fn claim(
        registry: &StdioRegistry,
        stdio: &Stdio,
        terminal: bool,
    ) -> Result<Self, Refusal> {
        if terminal && stdio.stderr != 0 {
            return Err(Refusal::invalid("stdio.stderr: a process with a terminal has one output"));
        }
        let claim = async |name: &str, token: u64| {
            if token == 0 {
                return Ok(None);
            }
            let stream = registry.claim(token, CLAIM_LIMIT).await;
            stream.map(Some).map_err(|e| Refusal::invalid(format!("stdio.{name}: {e}")))
        };
        Ok(Self {
            stdin: claim("stdin", stdio.stdin).await?,
            stdout: claim("stdout", stdio.stdout).await?,
            stderr: claim("stderr", stdio.stderr).await?,
        })
    }

    /// Makes the descriptors of a process without a terminal; /dev/null where there is no stream.
    pub(crate) fn pipes(&self) -> Result<Pipes, Refusal> {
        let fail = |e: io::Error| Refusal::internal(format!("cannot make the pipes of a process: {e}"));
        let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let input = |wanted: bool| -> io::Result<(OwnedFd, Option<FdStream>)> {
            if !wanted {
                return Ok((null()?, None));
            }
            let (read, write) = input_pipe()?;
            Ok((read, Some(write)))
        };
        let output = |wanted: bool| -> io::Result<(OwnedFd, Option<OwnedFd>)> {
            if !wanted {
                return Ok((null()?, None));
            }
            let (read, write) = pipe()?;
            Ok((write, Some(read)))
        };
        let (in_process, stdin) = input(self.stdin.is_some()).map_err(fail)?;
        let (out_process, stdout) = output(self.stdout.is_some()).map_err(fail)?;
        let (err_process, stderr) = output(self.stderr.is_some()).map_err(fail)?;
        Ok(Pipes { process: [in_process, out_process, err_process], stdin, stdout, stderr })
    }

    /// Starts copying between the streams and a process's pipes.
    pub(crate) fn pump_pipes(self, ends: Ends) -> io::Result<()> {
        if let (Some(stream), Some(end)) = (self.stdin, ends.stdin) {
            tokio::spawn(feed(stream, end));
        }
        for (stream, end) in [(self.stdout, ends.stdout), (self.stderr, ends.stderr)] {
            if let (Some(stream), Some(end)) = (stream, end) {
                tokio::spawn(drain(FdStream::new(end)?, Some(stream)));
            }
        }
        Ok(())
    }

    /// Starts copying between the streams and a terminal.
    pub(crate) fn pump_terminal(self, master: &Terminal) {
        if let Some(stream) = self.stdin {
            tokio::spawn(feed(stream, master.0.clone()));
        }
        // Read even without a stream: a terminal that nobody reads stops the process.
        tokio::spawn(drain(master.0.clone(), self.stdout));
    }
}

impl Pipes {
    /// What the process gets as 0, 1 and 2.
    pub(crate) fn process(&self) -> [BorrowedFd<'_>; 3] {
        self.process.each_ref().map(|fd| fd.as_fd())
    }

    /// Gives up the process's ends, which it has by now, so that its exit ends the streams.
    pub(crate) fn into_ends(self) -> Ends {
        Ends { stdin: self.stdin, stdout: self.stdout, stderr: self.stderr }
    }
}

/// The agent's ends of a process's pipes.
#[derive(Debug)]
pub(crate) struct Ends {
    stdin: Option<FdStream>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// The agent's side of a process's terminal.
#[derive(Debug, Clone)]
pub(crate) struct Terminal(FdStream);

impl Terminal {
    pub(crate) fn new(master: OwnedFd) -> io::Result<Self> {
        FdStream::new(master).map(Self)
    }

    /// Sets the size in characters and tells the process.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> nix::Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the size is a live winsize, which is what TIOCSWINSZ reads.
        unsafe { set_window_size(self.0.get_ref().as_raw_fd(), &raw const size) }.map(drop)
    }
}

/// Sends the first `count` bytes of `chunks`.
async fn send(stream: &mut StdioStream, chunks: &mut [Chunk], count: usize) -> io::Result<()> {
    let mut left = count;
    for chunk in chunks {
        let length = left.min(Chunk::ROOM);
        stream.send(chunk, length).await?;
        left -= length;
    }
    Ok(())
}

/// How many units of room the next read is given.
#[derive(Debug)]
struct Room {
    units: usize,
    /// Reads in a row that found less than a unit.
    little: u32,
}

impl Room {
    const ONE: Self = Self { units: 1, little: 0 };

    /// After a read of `count` bytes into units of `unit`: more while they get full, so that the process has its turn once for
    /// all that there is; one again when there has been little to read for a while.
    fn after(&mut self, count: usize, unit: usize) -> usize {
        self.little = if count < unit { self.little + 1 } else { 0 };
        if count == self.units * unit {
            self.units = (self.units * 2).min(MOST);
        } else if self.little == CALM {
            *self = Self::ONE;
        }
        self.units
    }
}

/// A pipe with much room.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    if let Err(error) = descriptors::widen_pipe(&read) {
        tracing::debug!("a pipe stays small: {error}");
    }
    Ok((read, write))
}

/// A pipe that a process reads.
fn input_pipe() -> io::Result<(OwnedFd, FdStream)> {
    let (read, write) = pipe()?;
    // While both ends are open: kqueue watches no pipe whose reader is gone (FreeBSD's sys/kern/sys_pipe.c,
    // `pipe_kqfilter`), so what a process that ended at once has not read would wait for ever.
    Ok((read, FdStream::new(write)?))
}

/// Host to process. The end of the stream, or its break, closes the process's input.
async fn feed(mut from: StdioStream, mut to: FdStream) {
    let (mut buffer, mut room) = (vec![0; BUFFER], Room::ONE);
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => {
                // The process closed its input or is gone: it wants no more.
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
                let length = room.after(count, BUFFER) * BUFFER;
                if length != buffer.len() {
                    // Zeroed by the allocator: optimised for size, growing it would clear byte by byte.
                    buffer = vec![0; length];
                }
            }
            Err(error) => {
                tracing::info!("stdin broke: {error}");
                return;
            }
        }
    }
}

/// Process to host, to the end.
async fn drain(from: FdStream, mut to: Option<StdioStream>) {
    let (mut chunks, mut room) = (vec![Chunk::default()], Room::ONE);
    loop {
        let mut spaces: Vec<_> = chunks.iter_mut().map(|chunk| IoSliceMut::new(chunk.space())).collect();
        let count = match from.read_vectored(&mut spaces).await {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => {
                tracing::warn!("cannot read a process's output: {error}");
                // Dropped, not closed: the host must not take this for the end of the output.
                return;
            }
        };
        if let Some(stream) = &mut to
            && let Err(error) = send(stream, &mut chunks, count).await
        {
            tracing::info!("output broke: {error}");
            to = None;
        }
        chunks.resize_with(room.after(count, Chunk::ROOM), Chunk::default);
    }
    if let Some(mut stream) = to
        && let Err(error) = stream.shutdown().await
    {
        tracing::info!("output broke at its end: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_for_a_process_that_has_ended_is_refused() {
        let (read, mut write) = input_pipe().expect("pipe");
        drop(read);
        let written = tokio::time::timeout(CLAIM_LIMIT, write.write_all(b"too late")).await;
        let error = written.expect("it is told").expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn room_grows_while_it_is_filled_and_goes_when_it_has_not_been_for_a_while() {
        let mut room = Room::ONE;
        assert_eq!([10, 20, 40, 80].map(|count| room.after(count, 10)), [2, 4, 8, 8]);
        for _ in 1..CALM {
            assert_eq!(room.after(9, 10), 8);
        }
        // Not little: the count begins again.
        assert_eq!(room.after(10, 10), 8);
        for _ in 1..CALM {
            assert_eq!(room.after(1, 10), 8);
        }
        assert_eq!(room.after(9, 10), 1);
        assert_eq!(room.after(9, 10), 1);
    }
}

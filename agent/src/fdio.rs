//! A descriptor that the event loop can wait for, as a byte stream: pipes, terminals and sockets.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::readv;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A non-blocking descriptor. Clones share it; it closes with the last one.
#[derive(Debug, Clone)]
pub(crate) struct FdStream {
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl FdStream {
    /// Takes a descriptor that can be waited for (not a regular file) and makes it non-blocking.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { fd: Arc::new(watched(fd)?) })
    }

    pub(crate) fn get_ref(&self) -> &OwnedFd {
        self.fd.get_ref()
    }

    /// One `readv` as soon as there is something: fills `buffers` in their order, and says how many bytes. 0 at the end.
    pub(crate) async fn read_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        loop {
            let mut guard = self.fd.readable().await?;
            match guard.try_io(|fd| readv(fd, buffers).map_err(io::Error::from)) {
                Ok(Err(error)) if is_hangup(&error) => return Ok(0),
                Ok(done) => return done,
                Err(_would_block) => {}
            }
        }
    }
}

/// A terminal whose last other end is closed says EIO where a pipe says end of file.
fn is_hangup(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

/// Registers a descriptor with the event loop.
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names one open descriptor for as long as it lives.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// One `read` into the unfilled part of `buf`.
pub(crate) fn read_once(fd: &impl AsRawFd, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
    let space = buf.initialize_unfilled();
    // SAFETY: the pointer and length are those of a live, writable slice.
    let count = unsafe { libc::read(fd.as_raw_fd(), space.as_mut_ptr().cast(), space.len()) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    buf.advance(count);
    Ok(count)
}

/// One `write` of `data`.
pub(crate) fn write_once(fd: &impl AsRawFd, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live slice.
    let count = unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes some of `data` as soon as the descriptor takes it.
pub(crate) fn poll_write(
    fd: &AsyncFd<OwnedFd>,
    cx: &mut Context<'_>,
    data: &[u8],
) -> Poll<io::Result<usize>> {
    loop {
        let mut guard = ready!(fd.poll_write_ready(cx))?;
        if let Ok(done) = guard.try_io(|fd| write_once(fd, data)) {
            return Poll::Ready(done);
        }
    }
}

impl AsyncRead for FdStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            match guard.try_io(|fd| read_once(fd, buf)) {
                Ok(Err(error)) if is_hangup(&error) => return Poll::Ready(Ok(())),
                Ok(done) => return Poll::Ready(done.map(drop)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        poll_write(&self.fd, cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only a socket has two directions that end apart; a pipe ends when it is dropped.
        // SAFETY: shutdown touches no memory.
        if unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_WR) } == -1 {
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::ENOTSOCK | libc::ENOTCONN)) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work)
    }

    #[test]
    fn a_pipe_carries_more_than_it_holds_and_then_ends() {
        block_on(async {
            let (read, write) = nix::unistd::pipe().expect("pipe");
            let (mut read, mut write) = (FdStream::new(read).expect("fd"), FdStream::new(write).expect("fd"));
            let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
            let copy = sent.clone();
            let writer = tokio::spawn(async move { write.write_all(&copy).await });
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.expect("read");
            writer.await.expect("join").expect("write");
            assert_eq!(got, sent);
        });
    }

    #[test]
    fn one_read_takes_all_that_a_pipe_holds() {
        block_on(async {
            let (read, write) = nix::unistd::pipe().expect("pipe");
            let read = FdStream::new(read).expect("fd");
            nix::unistd::write(&write, b"0123456789").expect("write");
            let (mut a, mut b, mut c) = ([0; 4], [0; 4], [0; 4]);
            let mut buffers = [&mut a, &mut b, &mut c].map(|buffer| IoSliceMut::new(buffer));
            assert_eq!(read.read_vectored(&mut buffers).await.expect("read"), 10);
            assert_eq!((&a, &b, &c), (b"0123", b"4567", b"89\0\0"));
            drop(write);
            assert_eq!(read.read_vectored(&mut [IoSliceMut::new(&mut a)]).await.expect("end"), 0);
        });
    }

    /// Not by openpty(3): FreeBSD has it in a library whose number differs between releases.
    fn terminal() -> (OwnedFd, OwnedFd) {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
        let master = nix::pty::posix_openpt(flags).expect("posix_openpt");
        nix::pty::grantpt(&master).expect("grantpt");
        nix::pty::unlockpt(&master).expect("unlockpt");
        // SAFETY: the name is in a buffer of the C library's, and no other test asks for one.
        let name = unsafe { nix::pty::ptsname(&master) }.expect("ptsname");
        let slave = nix::fcntl::open(name.as_str(), flags, nix::sys::stat::Mode::empty()).expect("open");
        (master.into(), slave)
    }

    #[test]
    fn a_terminal_ends_when_its_other_side_is_gone() {
        block_on(async {
            let (master, slave) = terminal();
            let mut master = FdStream::new(master).expect("fd");
            nix::unistd::write(&slave, b"bye").expect("write");
            let mut got = [0; 3];
            master.read_exact(&mut got).await.expect("read");
            drop(slave);
            assert_eq!(master.read(&mut got).await.expect("end"), 0);
            let mut buffers = [IoSliceMut::new(&mut got)];
            assert_eq!(master.read_vectored(&mut buffers).await.expect("end"), 0);
        });
    }
}

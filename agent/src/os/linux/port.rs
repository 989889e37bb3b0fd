//! The virtio-console port on which the host talks to the agent.
//!
//! A port whose host side is closed polls as hung up and reads as ended, again and again, and comes back to
//! life when the host opens it anew. Neither may end the agent or keep it busy, so the port is watched through
//! an epoll instance of its own, edge-triggered: it reports changes, and an end of file is only a reason to
//! wait for the next one. That the port takes more is asked for only when it took nothing: the driver reports
//! each buffer that the host has taken, which is one for each write.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::fdio::{read_once, watched, write_once};

/// The port's name, given to the device by the host.
const NAME: &str = "skep.agent";
const CLASS: &str = "/sys/class/virtio-ports";
/// The driver learns names from the host after it found the device, so the port may come a little late.
const WAIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error("no virtio-console port named {NAME:?} within {} s (ports: {})", WAIT.as_secs(), list(.0))]
    Missing(Vec<String>),
    #[error("cannot open {path}: {source}", path = .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot watch the port: {0}")]
    Watch(io::Error),
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The port as a byte stream that never ends.
#[derive(Debug)]
pub(crate) struct Port {
    watched: Arc<Watched>,
    watch: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Watched {
    fd: OwnedFd,
    epoll: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
}

/// Who waits for a change.
#[derive(Debug, Default)]
struct Waiting {
    /// Nothing has changed since a read found nothing.
    dry: bool,
    read: Option<Waker>,
    write: Option<Waker>,
}

impl Port {
    /// Waits for the port named `skep.agent` and opens it.
    pub(crate) async fn open() -> Result<Self, PortError> {
        let device = find().await?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&device)
            .map_err(|source| PortError::Open { path: device, source })?;
        Self::new(file.into()).map_err(PortError::Watch)
    }

    fn new(fd: OwnedFd) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&fd, EpollEvent::new(changes(false), 0))?;
        let epoll = watched(epoll.0)?;
        let watched = Arc::new(Watched { fd, epoll, waiting: Mutex::default() });
        let watch = tokio::spawn(watch(Arc::clone(&watched)));
        Ok(Self { watched, watch })
    }
}

impl Watched {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for changes from now on, and for one now if the port is ready already.
    fn ask(&self, room: bool) -> io::Result<()> {
        let mut event = libc::epoll_event { events: changes(room).bits().cast_unsigned(), u64: 0 };
        // SAFETY: the event is live, and both descriptors are open as long as this is.
        let done = unsafe {
            libc::epoll_ctl(
                self.epoll.get_ref().as_raw_fd(),
                libc::EPOLL_CTL_MOD,
                self.fd.as_raw_fd(),
                &raw mut event,
            )
        };
        if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn changes(room: bool) -> EpollFlags {
    let changes = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    if room { changes | EpollFlags::EPOLLOUT } else { changes }
}

/// Keeps `waker`, unless what is kept already wakes the same.
fn keep(kept: &mut Option<Waker>, waker: &Waker) {
    match kept {
        Some(kept) => kept.clone_from(waker),
        None => *kept = Some(waker.clone()),
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Wakes whoever waits for the port at each change.
async fn watch(watched: Arc<Watched>) {
    loop {
        let Ok(mut ready) = watched.epoll.readable().await else { return };
        // Taking the events re-arms them. One descriptor is watched, so there is at most one.
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event is passed with its count, and the descriptor is an epoll instance.
        let _ = unsafe { libc::epoll_wait(watched.epoll.get_ref().as_raw_fd(), &raw mut event, 1, 0) };
        ready.clear_ready();
        let Waiting { read, write, .. } = std::mem::take(&mut *watched.waiting());
        if write.is_some()
            && let Err(error) = watched.ask(false)
        {
            tracing::warn!("the port is asked for room too often: {error}");
        }
        for waker in [read, write].into_iter().flatten() {
            waker.wake();
        }
    }
}

fn not_now(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

impl AsyncRead for Port {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Held while looking: what changes meanwhile is noted after it, and not missed.
        let mut waiting = self.watched.waiting();
        if !waiting.dry {
            match read_once(&self.watched.fd, buf) {
                Ok(0) if buf.remaining() > 0 => {}
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if not_now(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            waiting.dry = true;
        }
        keep(&mut waiting.read, cx.waker());
        Poll::Pending
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match write_once(&self.watched.fd, data) {
            Err(error) if not_now(&error) => {}
            done => return Poll::Ready(done),
        }
        let mut waiting = self.watched.waiting();
        let asked = waiting.write.is_some();
        keep(&mut waiting.write, cx.waker());
        if !asked {
            // If there is room again by now, this reports it.
            self.watched.ask(true)?;
        }
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn find() -> Result<PathBuf, PortError> {
    let deadline = Instant::now() + WAIT;
    loop {
        let ports = ports(Path::new(CLASS));
        if let Some((device, _)) = ports.iter().find(|(_, name)| name == NAME) {
            return Ok(Path::new("/dev").join(device));
        }
        if Instant::now() >= deadline {
            return Err(PortError::Missing(ports.into_iter().map(|(_, name)| name).collect()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Device and name of each port that has a name by now.
fn ports(class: &Path) -> Vec<(String, String)> {
    let Ok(entries) = std::fs::read_dir(class) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = std::fs::read_to_string(entry.path().join("name")).ok()?;
            Some((entry.file_name().into_string().ok()?, name.trim_end().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn a_port_is_found_by_name() {
        let class = std::env::temp_dir().join(format!("skep-agent-ports-{}", std::process::id()));
        for (port, name) in [("vport1p1", "other\n"), ("vport1p2", "skep.agent\n")] {
            std::fs::create_dir_all(class.join(port)).expect("dir");
            std::fs::write(class.join(port).join("name"), name).expect("name");
        }
        std::fs::create_dir_all(class.join("vport2p0")).expect("dir");
        let mut found = ports(&class);
        found.sort();
        std::fs::remove_dir_all(&class).expect("clean");
        assert_eq!(
            found,
            [("vport1p1".to_owned(), "other".to_owned()), ("vport1p2".to_owned(), "skep.agent".to_owned())]
        );
    }

    #[test]
    fn a_missing_port_is_reported_with_those_that_are_there() {
        let text = PortError::Missing(vec!["org.other".into()]).to_string();
        assert!(text.contains("\"skep.agent\"") && text.contains("org.other"), "{text}");
    }

    /// A named pipe behaves as a port does: at its end it reads 0 and polls as hung up until somebody opens it
    /// again.
    #[test]
    fn an_end_of_file_is_only_a_pause() {
        let path = std::env::temp_dir().join(format!("skep-agent-port-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let read =
                OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("open");
            let mut port = Port::new(read.into()).expect("port");
            for text in [b"one", b"two"] {
                let pause = tokio::time::timeout(Duration::from_millis(20), port.read_u8()).await;
                assert!(pause.is_err(), "a closed host side must read as nothing, not as {pause:?}");
                let mut host = tokio::net::unix::pipe::OpenOptions::new().open_sender(&path).expect("sender");
                host.write_all(text).await.expect("write");
                let mut got = [0; 3];
                port.read_exact(&mut got).await.expect("read");
                assert_eq!(&got, text);
            }
        });
        std::fs::remove_file(&path).expect("clean");
    }
}

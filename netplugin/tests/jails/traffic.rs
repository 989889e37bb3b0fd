//! What goes between stacks: connections, questions and answers, frames.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::{Jail, PATIENCE, SILENCE};

impl Jail {
    /// Answers TCP on a port until the jail is gone: each byte comes back.
    pub fn serve_tcp(&self, at: &str) {
        self.serve(|| {
            let Ok(listener) = TcpListener::bind(at) else { return };
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut stream = stream;
                    let mut buffer = [0; 64];
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
    }

    /// Answers UDP on a port with the address it saw the question come from.
    pub fn serve_udp(&self, at: &str) {
        self.serve(|| {
            let Ok(socket) = UdpSocket::bind(at) else { return };
            let mut buffer = [0; 2048];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
            }
        });
    }

    /// Whether TCP gets through, there and back.
    pub fn reaches(&self, to: &str) -> bool {
        self.ask(|| connects(to, PATIENCE))
    }

    /// Whether TCP does not get through, in a time in which it would have.
    pub fn blocked(&self, to: &str) -> bool {
        !self.ask(|| connects(to, SILENCE))
    }

    /// Whether UDP gets an answer, and it says that we came from `seen`.
    pub fn seen_as(&self, to: &str, seen: &str) -> bool {
        self.ask(|| asks(to, PATIENCE).is_some_and(|answer| answer == seen))
    }

    pub fn silent(&self, to: &str) -> bool {
        !self.ask(|| asks(to, SILENCE).is_some())
    }

    /// Opens a connection and keeps it; the parent asks whether it still carries bytes.
    pub fn hold(&self, to: &str) -> Held {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let to: SocketAddr = to.parse().unwrap();
        let child = self.fork(move || {
            let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) else { return false };
            let mut control = theirs;
            let mut byte = [0];
            while let Ok(1) = control.read(&mut byte) {
                let patience = if byte == [1] { PATIENCE } else { SILENCE };
                let _ = stream.set_read_timeout(Some(patience));
                let alive = stream.write_all(b"x").is_ok() && matches!(stream.read(&mut [0]), Ok(1));
                if control.write_all(&[u8::from(alive)]).is_err() {
                    break;
                }
            }
            true
        });
        self.servers.lock().unwrap().push(child);
        Held { control: ours }
    }

    /// Whether a frame with these bytes in it comes in on an interface in time, `work` being done meanwhile.
    pub fn hears(&self, interface: &str, needle: &[u8], patience: Duration, work: impl FnOnce()) -> bool {
        std::thread::scope(|scope| {
            let (listening, mut ready) = std::os::unix::net::UnixStream::pair().unwrap();
            let hearing =
                scope.spawn(move || self.ask(move || hears(interface, needle, patience, listening)));
            // Not before it listens, or cannot.
            let _ = ready.read(&mut [0]);
            work();
            hearing.join().unwrap()
        })
    }

    /// Sends frames on an interface as they are.
    pub fn inject(&self, interface: &str, frames: &[Vec<u8>]) {
        let sent = self.ask(|| {
            let Ok(mut bpf) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/bpf") else {
                return false;
            };
            let mut request = [0_u8; 32];
            request[..interface.len()].copy_from_slice(interface.as_bytes());
            let complete = 1_u32;
            let fd = std::os::fd::AsRawFd::as_raw_fd(&bpf);
            // SAFETY: BIOCSETIF (net/bpf.h) reads a struct ifreq of 32 bytes, BIOCSHDRCMPLT an unsigned.
            let ready = unsafe {
                libc::ioctl(fd, 0x8020_426c, request.as_ptr()) == 0
                    && libc::ioctl(fd, 0x8004_4275, &raw const complete) == 0
            };
            ready && frames.iter().all(|frame| bpf.write_all(frame).is_ok())
        });
        assert!(sent, "frames could not be sent on {interface}");
    }
}

/// A connection that is kept open inside a jail.
pub struct Held {
    control: std::os::unix::net::UnixStream,
}

impl Held {
    /// Whether it carries bytes, with patience.
    pub fn alive(&mut self) -> bool {
        self.carries(1)
    }

    /// Whether it carries none, in a time in which it would have.
    pub fn dead(&mut self) -> bool {
        !self.carries(0)
    }

    fn carries(&mut self, how: u8) -> bool {
        let mut answer = [0];
        self.control.write_all(&[how]).is_ok()
            && self.control.read_exact(&mut answer).is_ok()
            && answer[0] == 1
    }
}

fn hears(
    interface: &str,
    needle: &[u8],
    patience: Duration,
    mut listening: std::os::unix::net::UnixStream,
) -> bool {
    let all = [skep_ifnet::Insn { code: 0x06, jt: 0, jf: 0, k: u32::MAX }];
    let Ok(mut heard) = skep_ifnet::Capture::open(interface, &all) else { return false };
    let until = Instant::now() + patience;
    let _ = listening.write_all(&[1]);
    while let Ok(Some(frame)) = heard.next(until) {
        if frame.windows(needle.len()).any(|window| window == needle) {
            return true;
        }
    }
    false
}

fn connects(to: &str, patience: Duration) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    let Ok(mut stream) = TcpStream::connect_timeout(&to, patience) else { return false };
    let _ = stream.set_read_timeout(Some(patience));
    let mut buffer = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut buffer).is_ok() && &buffer == b"ping"
}

fn asks(to: &str, patience: Duration) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).ok()?;
    socket.set_read_timeout(Some(patience)).ok()?;
    let mut buffer = [0; 64];
    socket.send_to(b"?", to).ok()?;
    let (n, _) = socket.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

/// Whether TCP gets through from the machine itself, there and back.
pub fn reaches_from_here(to: &str) -> bool {
    connects(to, PATIENCE)
}

/// Whether TCP does not get through from the machine itself, in a time in which it would have.
pub fn blocked_from_here(to: &str) -> bool {
    !connects(to, SILENCE)
}

//! A flow of packets of which none may be lost.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{AGAIN, Ns, PATIENCE, comes};

/// A flow of numbered packets from one end to another, for as long as a test does something else.
pub struct Flow {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u32>,
    receiver: JoinHandle<BTreeSet<u32>>,
}

impl Flow {
    /// Starts it, and waits until it flows.
    pub fn start(from: &Ns, to: &Ns, ip: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let any = if ip.contains(':') { "[::]" } else { "0.0.0.0" };
        let target = to.run(|| UdpSocket::bind(format!("{any}:9000")).unwrap());
        // Nothing is lost because the receiver does not come to its turn.
        receive_buffer(&target, 64 << 20);
        let at = if ip.contains(':') { format!("[{ip}]:9000") } else { format!("{ip}:9000") };
        let source = from.run(|| UdpSocket::bind(format!("{any}:0")).unwrap());
        source.connect(at).unwrap();
        // Neighbours are found before the counting starts.
        target.set_read_timeout(Some(AGAIN)).unwrap();
        let flows = || {
            let _ = source.send(b"first");
            target.recv(&mut [0; 64]).is_ok()
        };
        assert!(comes(flows), "nothing arrives at {ip}");
        target.set_read_timeout(Some(PATIENCE)).unwrap();
        let receiver = thread::spawn(move || {
            let mut seen = BTreeSet::new();
            let mut buffer = [0; 64];
            while let Ok(n) = target.recv(&mut buffer) {
                match <[u8; 4]>::try_from(&buffer[..n]) {
                    Ok(number) => drop(seen.insert(u32::from_be_bytes(number))),
                    Err(_) if &buffer[..n] == b"end" => break,
                    Err(_) => {}
                }
            }
            seen
        });
        let stopped = stop.clone();
        let sender = thread::spawn(move || {
            let mut number = 0_u32;
            while !stopped.load(Ordering::Relaxed) {
                source.send(&number.to_be_bytes()).unwrap();
                number += 1;
                thread::sleep(Duration::from_millis(2));
            }
            source.send(b"end").unwrap();
            number
        });
        Self { stop, sender, receiver }
    }

    /// Ends it; what was sent, and how much of it never arrived.
    pub fn finish(self) -> (u32, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        let seen = self.receiver.join().unwrap();
        (sent, sent as usize - seen.len())
    }
}

/// Has a socket keep so many bytes that nobody came to read yet, whatever the system's limit.
pub fn receive_buffer(socket: &impl AsRawFd, bytes: libc::c_int) {
    // SAFETY: the option's value is an int, as said, alive during the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            std::mem::size_of_val(&bytes) as u32,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

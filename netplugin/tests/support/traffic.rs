//! What goes between namespaces: connections, questions and answers.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::{AGAIN, Ns, PATIENCE, SILENCE};

impl Ns {
    /// Answers TCP on a port, for as long as the test runs: each byte comes back.
    pub fn serve_tcp(&self, at: &str) {
        let listener = self.run(|| TcpListener::bind(at).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { break };
                thread::spawn(move || {
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
        let socket = self.run(|| UdpSocket::bind(at).unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
            }
        });
    }

    /// A TCP connection, if one comes about in time. Who has no answer to who has an address (ARP) for three seconds gives
    /// up, whatever time there is: that is tried again.
    pub fn connect(&self, to: &str, patience: Duration) -> Option<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        let deadline = Instant::now() + patience;
        self.run(|| {
            loop {
                let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
                if let Ok(stream) = TcpStream::connect_timeout(&to, left) {
                    stream.set_read_timeout(Some(patience)).unwrap();
                    return Some(stream);
                }
                thread::sleep(Duration::from_millis(20));
            }
        })
    }

    /// Whether TCP gets through, there and back.
    pub fn reaches(&self, to: &str) -> bool {
        self.connect(to, PATIENCE).is_some_and(|mut stream| echoes(&mut stream))
    }

    /// Whether TCP does not get through, in a time in which it would have.
    pub fn blocked(&self, to: &str) -> bool {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| TcpStream::connect_timeout(&to, SILENCE).is_err())
    }

    /// Asks by UDP, again and again where there is time; what the other side saw as our address.
    pub fn ask_udp(&self, to: &str, patience: Duration) -> Option<IpAddr> {
        let to: SocketAddr = to.parse().unwrap();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.run(|| UdpSocket::bind(any).unwrap());
        let answer = asked(&socket, b"?", to, patience)?;
        String::from_utf8_lossy(&answer).parse().ok()
    }
}

/// Asks by UDP, again and again where there is time; the answer.
pub fn asked(
    socket: &UdpSocket,
    question: &[u8],
    to: impl ToSocketAddrs,
    patience: Duration,
) -> Option<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 64];
    loop {
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        socket.set_read_timeout(Some(left.min(AGAIN))).unwrap();
        // What the network says of a lost question may be said here.
        let _ = socket.send_to(question, &to);
        if let Ok((n, _)) = socket.recv_from(&mut buffer) {
            return Some(buffer[..n].to_vec());
        }
    }
}

/// Whether a connection carries bytes.
pub fn echoes(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut buffer).is_ok() && &buffer == b"ping"
}

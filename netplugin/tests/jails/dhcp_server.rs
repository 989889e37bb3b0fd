//! A DHCP server (RFC 2131), small and obedient: what it does is told by a file, what it was asked is written to another.
//! The end-to-end tests have it, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

const NET: [u8; 3] = [203, 0, 113];
const FIRST: u8 = 50;
const LAST: u8 = 90;
const OWN: Ipv4Addr = Ipv4Addr::new(NET[0], NET[1], NET[2], 1);

/// The files by which a server is told what to do, and tells what it was asked.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Those in a directory that is there.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// For a new server, which says yes.
    pub fn begin(&self) {
        self.answer("yes");
        std::fs::write(self.log_path(), "").unwrap();
    }

    fn answer_path(&self) -> PathBuf {
        self.dir.join("answer")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// From now on: `yes`, `other` (yes, with other routers and resolvers), `no` (what is leased is no longer), or
    /// `nothing`.
    pub fn answer(&self, how: &str) {
        let unfinished = self.dir.join("new");
        std::fs::write(&unfinished, how).unwrap();
        std::fs::rename(unfinished, self.answer_path()).unwrap();
    }

    /// What it was asked: a line each, `KIND XID FROM OWN` (as numbers and addresses).
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap()
    }

    /// How often it was asked something of a kind by somebody who has, or wants, this address.
    pub fn asked(&self, kind: &str, address: &str) -> usize {
        let ends = format!(" {address}");
        self.log().lines().filter(|line| line.starts_with(kind) && line.ends_with(&ends)).count()
    }

    /// How often an address was renewed: asked for by itself.
    pub fn renewed(&self, address: &str) -> usize {
        let ends = format!(" {address} {address}");
        self.log().lines().filter(|line| line.starts_with("REQUEST") && line.ends_with(&ends)).count()
    }
}

/// Serves, with leases of so many seconds, until the process ends. The network stack has 203.0.113.1/24.
pub fn serve(files: &Files, seconds: u32) {
    let socket = UdpSocket::bind("0.0.0.0:67").unwrap();
    socket.set_broadcast(true).unwrap();
    let mut known: BTreeMap<Vec<u8>, u8> = BTreeMap::new();
    // Addresses that somebody has without asking.
    let mut taken = BTreeSet::new();
    let mut log = std::fs::OpenOptions::new().append(true).open(files.log_path()).unwrap();
    let mut bytes = [0; 1500];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut bytes) else { continue };
        let Some((kind, client, wanted)) = read(&bytes[..len]) else { continue };
        // The machine may ask by itself on every interface that it sees, as FreeBSD's images do: that is not what is tested.
        if client.first() != Some(&255) {
            continue;
        }
        let own = Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
        let xid = bytes[4..8].iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let names = ["DISCOVER", "OFFER", "REQUEST", "DECLINE", "ACK", "NAK", "RELEASE"];
        let name = names.get(usize::from(kind).wrapping_sub(1)).unwrap_or(&"?");
        let address = if own.is_unspecified() { wanted.unwrap_or(own) } else { own };
        writeln!(log, "{name} {xid} {} {address}", from.ip()).unwrap();
        let how = std::fs::read_to_string(files.answer_path()).unwrap_or_default();
        if how == "nothing" || !matches!(kind, 1 | 3) {
            if kind == 7 {
                known.remove(&client);
            }
            if kind == 4 {
                taken.extend(known.remove(&client));
            }
            continue;
        }
        let next = (FIRST..=LAST).find(|host| !known.values().chain(&taken).any(|one| one == host)).unwrap();
        let host = *known.entry(client).or_insert(next);
        let mut kind = if kind == 1 { 2 } else { 5 };
        let given = Ipv4Addr::new(NET[0], NET[1], NET[2], host);
        if how == "no" {
            if kind == 2 {
                continue;
            }
            kind = 6;
        }
        let reply = reply(&bytes[..len], kind, given, seconds, how == "other");
        // Who has an address is answered there (RFC 2131, 4.1).
        let everybody = own.is_unspecified();
        set_broadcast(&socket, everybody);
        let to = if everybody { Ipv4Addr::new(NET[0], NET[1], NET[2], 255) } else { own };
        // Who has gone, or is not there yet, is not found.
        let _ = socket.send_to(&reply, SocketAddrV4::new(to, 68));
    }
}

/// Whether what is sent to the link's own address for everybody leaves with 255.255.255.255 in its place; all else is
/// refused then.
fn set_broadcast(socket: &UdpSocket, on: bool) {
    // netinet/in.h
    const IP_ONESBCAST: libc::c_int = 23;
    let on = libc::c_int::from(on);
    // SAFETY: the option takes an int, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            IP_ONESBCAST,
            (&raw const on).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap(),
        )
    };
    assert_eq!(result, 0);
}

/// The kind of a message, who sends it, and the address that it wants.
fn read(message: &[u8]) -> Option<(u8, Vec<u8>, Option<Ipv4Addr>)> {
    if message.len() < 240 || message[0] != 1 || message[236..240] != [99, 130, 83, 99] {
        return None;
    }
    let (mut kind, mut client, mut wanted) = (0, message[28..34].to_vec(), None);
    let mut rest = &message[240..];
    while let [code, len, more @ ..] = rest {
        match code {
            255 => break,
            0 => {
                rest = &rest[1..];
                continue;
            }
            _ => {}
        }
        let data = more.get(..usize::from(*len))?;
        match (code, data) {
            (53, [one]) => kind = *one,
            (61, id) => client = id.to_vec(),
            (50, [a, b, c, d]) => wanted = Some(Ipv4Addr::new(*a, *b, *c, *d)),
            _ => {}
        }
        rest = &more[usize::from(*len)..];
    }
    Some((kind, client, wanted))
}

fn reply(question: &[u8], kind: u8, given: Ipv4Addr, seconds: u32, other: bool) -> Vec<u8> {
    let mut message = question[..240].to_vec();
    message[0] = 2;
    let no = kind == 6;
    message[16..20].copy_from_slice(&if no { [0; 4] } else { given.octets() });
    let mut option = |code: u8, data: &[u8]| {
        message.extend([code, u8::try_from(data.len()).unwrap()]);
        message.extend(data);
    };
    option(53, &[kind]);
    option(54, &OWN.octets());
    if no {
        option(56, b"not any longer");
    } else {
        option(51, &seconds.to_be_bytes());
        option(1, &[255, 255, 255, 0]);
        option(3, &OWN.octets());
        option(6, &[203, 0, 113, if other { 3 } else { 2 }]);
        option(15, b"example.net");
        // RFC 3442: all by the router, and a network by another.
        let network = if other { [192, 0, 2] } else { [198, 51, 100] };
        option(121, &[&[0, 203, 0, 113, 1, 24][..], &network, &[203, 0, 113, 9]].concat());
    }
    message.push(255);
    message.resize(message.len().max(300), 0);
    message
}

//! Nodes of netgraph(4) on those of interfaces: the filter between an interface and its bridge, a bpf node, and what joins
//! two interfaces.
//!
//! Frames that an interface receives go `lower` -> program -> `upper`, and from there to the bridge, as if they had just
//! come. A node without a program lets nothing through, so there is no moment without a filter.

mod car;
mod inject;

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::Insn;
use crate::error::Error;
use crate::sys::{allow, kernel, socket};

pub use car::{Limits, Rate};
pub use inject::Injector;

// netgraph/ng_message.h, netgraph/ng_socket.h
const NG_CONTROL: i32 = 2;
const NG_VERSION: u8 = 8;
const NGM_GENERIC_COOKIE: u32 = 1_137_070_366;
const NGM_SHUTDOWN: u32 = 1;
const NGM_MKPEER: u32 = 2;
const NGM_CONNECT: u32 = 3;
const NAME: usize = 32;
const PATH: usize = 512;
const HEADER: usize = 56;
// netgraph/ng_bpf.h
const NGM_BPF_COOKIE: u32 = 944_100_792;
const NGM_BPF_SET_PROGRAM: u32 = 1;
const NGM_BPF_GET_STATS: u32 = 3;

/// What an instruction returns that lets a whole frame through.
const WHOLE: u32 = u32::MAX;

// netgraph/ng_ether.h
const NGM_ETHER_COOKIE: u32 = 917_786_906;
const NGM_ETHER_SET_PROMISC: u32 = 6;
const NGM_ETHER_SET_AUTOSRC: u32 = 8;

/// How long an answer may take, in seconds.
const PATIENCE: i64 = 5;

/// Speaks to nodes.
#[derive(Debug)]
pub struct Netgraph {
    socket: OwnedFd,
}

fn field(text: &str, len: usize) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.truncate(len - 1);
    bytes.resize(len, 0);
    bytes
}

/// The node of an interface is called after it, but for characters that paths have a meaning for.
fn node(interface: &str) -> String {
    interface.replace(['.', ':'], "_")
}

/// `struct sockaddr_ng`: length, family, path or name.
fn address(path: &str) -> io::Result<Vec<u8>> {
    let total = u8::try_from(path.len() + 3).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut address = vec![total, u8::try_from(libc::AF_NETGRAPH).unwrap_or_default()];
    address.extend_from_slice(path.as_bytes());
    address.push(0);
    Ok(address)
}

/// Sends a message to a node, or a frame by a hook.
fn send_to(socket: &OwnedFd, path: &str, bytes: &[u8]) -> io::Result<()> {
    let address = address(path)?;
    // SAFETY: both buffers live until the call returns and are as long as told.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            address.as_ptr().cast(),
            address.len() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Netgraph {
    /// Opens a socket to the nodes of the network stack the process is in.
    pub fn open() -> Result<Self, Error> {
        let socket =
            socket(libc::AF_NETGRAPH, libc::SOCK_DGRAM, NG_CONTROL).map_err(|error| Error::Unsupported {
                what: "filtering a sandbox's frames".to_owned(),
                why: format!("no netgraph (kldload ng_socket ng_ether ng_bpf): {error}"),
            })?;
        let limit = libc::timeval { tv_sec: PATIENCE, tv_usec: 0 };
        // SAFETY: the option takes a timeval, which lives until the call returns.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const limit).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(kernel("open a socket to netgraph", io::Error::last_os_error()));
        }
        Ok(Self { socket })
    }

    fn send(&self, path: &str, cookie: u32, command: u32, argument: &[u8]) -> io::Result<()> {
        let mut message = vec![NG_VERSION, 0, 0, 0];
        let len = u32::try_from(argument.len()).unwrap_or(u32::MAX);
        // Length, command, flags, token, cookie.
        for word in [len, command, 0, 1, cookie] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.resize(HEADER, 0);
        message.extend_from_slice(argument);
        send_to(&self.socket, path, &message)
    }

    /// Puts a filter between an interface and its bridge.
    pub fn filter(&self, interface: &str, program: &[Insn]) -> Result<(), Error> {
        let device = format!("{}:", node(interface));
        let failed = |error| kernel(format!("filter what {interface} receives"), error);
        let peer = [field("bpf", NAME), field("lower", NAME), field("lower", NAME)].concat();
        self.send(&device, NGM_GENERIC_COOKIE, NGM_MKPEER, &peer).map_err(failed)?;
        let filter = format!("{device}lower");
        self.load(&filter, "lower", "upper", program).map_err(failed)?;
        let all = [Insn { code: 0x06, jt: 0, jf: 0, k: WHOLE }];
        let connect = [field(&filter, PATH), field("upper", NAME), field("upper", NAME)].concat();
        self.send(&device, NGM_GENERIC_COOKIE, NGM_CONNECT, &connect).map_err(failed)?;
        self.load(&filter, "lower", "upper", program).map_err(failed)?;
        self.load(&filter, "upper", "lower", &all).map_err(failed)
    }

    /// Replaces the program of an interface's filter, at once.
    pub fn refilter(&self, interface: &str, program: &[Insn]) -> Result<(), Error> {
        self.load(&format!("{}:lower", node(interface)), "lower", "upper", program)
            .map_err(|error| kernel(format!("replace the filter of {interface}"), error))
    }

    /// Joins two Ethernet interfaces: what one receives the other sends, and the other way round. The network stack
    /// hears of neither, until one of them is removed.
    pub fn join(&self, one: &str, other: &str) -> Result<(), Error> {
        let failed = |error| kernel(format!("join interfaces {one} and {other}"), error);
        self.hand_over([one, other])?;
        let peer = format!("{}:", node(other));
        let connect = [field(&peer, PATH), field("lower", NAME), field("lower", NAME)].concat();
        self.send(&format!("{}:", node(one)), NGM_GENERIC_COOKIE, NGM_CONNECT, &connect).map_err(failed)
    }

    /// Has interfaces take and send frames as they are: of any address, and with the address they come with.
    fn hand_over(&self, interfaces: [&str; 2]) -> Result<(), Error> {
        for interface in interfaces {
            let device = format!("{}:", node(interface));
            for (command, value) in [(NGM_ETHER_SET_AUTOSRC, 0_u32), (NGM_ETHER_SET_PROMISC, 1)] {
                self.send(&device, NGM_ETHER_COOKIE, command, &value.to_ne_bytes())
                    .map_err(|error| kernel(format!("have interface {interface} take all frames"), error))?;
            }
        }
        Ok(())
    }

    /// Lets an interface be what it was before [`Netgraph::join`], when the other one is gone.
    pub fn part(&self, interface: &str) -> Result<(), Error> {
        let device = format!("{}:", node(interface));
        for (command, value) in [(NGM_ETHER_SET_AUTOSRC, 1_u32), (NGM_ETHER_SET_PROMISC, 0)] {
            let sent = self.send(&device, NGM_ETHER_COOKIE, command, &value.to_ne_bytes());
            allow(sent, libc::ENOENT)
                .map_err(|error| kernel(format!("give interface {interface} back"), error))?;
        }
        Ok(())
    }

    /// Takes the filter of [`Netgraph::filter`] away; fine if there is none.
    pub fn unfilter(&self, interface: &str) -> Result<(), Error> {
        let path = format!("{}:lower", node(interface));
        let sent = self.send(&path, NGM_GENERIC_COOKIE, NGM_SHUTDOWN, &[]);
        allow(sent, libc::ENOENT)
            .map_err(|error| kernel(format!("take the filter of {interface} away"), error))
    }

    fn load(&self, filter: &str, hook: &str, matching: &str, program: &[Insn]) -> io::Result<()> {
        let mut argument = [field(hook, NAME), field(matching, NAME), field("", NAME)].concat();
        let count = i32::try_from(program.len()).unwrap_or(i32::MAX);
        argument.extend_from_slice(&count.to_ne_bytes());
        for Insn { code, jt, jf, k } in program {
            argument.extend_from_slice(&code.to_ne_bytes());
            argument.extend_from_slice(&[*jt, *jf]);
            argument.extend_from_slice(&k.to_ne_bytes());
        }
        self.send(filter, NGM_BPF_COOKIE, NGM_BPF_SET_PROGRAM, &argument)
    }

    /// Asks a node; its answer, at most `room` bytes. None if there is no such node, or it is of another kind.
    fn ask(
        &self,
        path: &str,
        cookie: u32,
        command: u32,
        argument: &[u8],
        room: usize,
    ) -> io::Result<Option<Vec<u8>>> {
        match self.send(path, cookie, command, argument) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                return Ok(None);
            }
            result => result?,
        }
        let mut buffer = vec![0; HEADER + room];
        // SAFETY: the buffer lives until the call returns and is as long as told.
        let got = unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        buffer.truncate(got);
        Ok(Some(buffer.split_off(HEADER.min(got))))
    }

    /// How many frames an interface's filter refused; none if it has no filter.
    pub fn refused(&self, interface: &str) -> Result<Option<u64>, Error> {
        let path = format!("{}:lower", node(interface));
        let counters = self
            .ask(&path, NGM_BPF_COOKIE, NGM_BPF_GET_STATS, &field("lower", NAME), 48)
            .map_err(|error| kernel(format!("ask the filter of {interface} what it counted"), error))?;
        let Some(counters) = counters else { return Ok(None) };
        // struct ng_bpf_hookstat: frames and bytes received, frames and bytes that matched.
        let count = |at: usize| {
            counters.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
        };
        Ok(Some(count(0).saturating_sub(count(16))))
    }
}

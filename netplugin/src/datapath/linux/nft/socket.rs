//! The netlink socket that transactions and questions go over.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use super::batch::{Batch, Family};
use super::set::{Element, Key};
use super::wire::{Attrs, attributes, find_attribute};

/// Why the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {error}")]
pub(crate) struct NftError {
    /// Which step of the transaction.
    pub(crate) step: String,
    /// What the kernel said.
    pub(crate) error: io::Error,
}

impl NftError {
    /// The error number.
    pub(crate) fn errno(&self) -> Option<i32> {
        self.error.raw_os_error()
    }
}

/// A connection to netfilter in one network namespace.
#[derive(Debug)]
pub(crate) struct Nft {
    socket: Socket,
}

/// A transaction of a thousand sandboxes is a few megabytes; the kernel takes a message whole or not at all.
const SEND_BUFFER: usize = 64 << 20;
const RECEIVE_BUFFER: usize = 4 << 20;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

impl Nft {
    /// Connects in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Root may pass the system's limits; without the right, what the limits give must do.
        let _ = sockopt::set_socket_send_buffer_size_force(socket.as_fd(), SEND_BUFFER);
        let _ = sockopt::set_socket_recv_buffer_size_force(socket.as_fd(), RECEIVE_BUFFER);
        Ok(Self { socket })
    }

    /// Connects to hear of every change of rules.
    pub(crate) fn listen() -> io::Result<Self> {
        const NFNLGRP_NFTABLES: u32 = 7;
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self { socket })
    }

    /// Waits until a table is removed; false if none was in time.
    pub(crate) fn table_removed(&self, timeout: Duration) -> io::Result<bool> {
        const DELTABLE: u16 = 10 << 8 | 2;
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut polled, Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            match self.receive() {
                Ok(Some(answer)) if messages(&answer).any(|(kind, _, _)| kind == DELTABLE) => {
                    return Ok(true);
                }
                Ok(_) => {}
                // So much happened that some of it was not told: look.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }

    /// Does everything in the batch at one instant, or nothing.
    pub(crate) fn commit(&self, mut batch: Batch) -> Result<(), NftError> {
        if batch.is_empty() {
            return Ok(());
        }
        batch.finish();
        let failed = |step: &str, error| NftError { step: format!("nftables: {step}"), error };
        self.socket.send(&batch.buffer, 0).map_err(|error| failed("send a transaction", error))?;
        // The kernel works while we send: its answers are all there now. The first error is the cause, others
        // may follow from it. The last of all is the acknowledgement.
        let mut cause = None;
        loop {
            let answer = match self.receive() {
                Ok(Some(answer)) => answer,
                Ok(None) => break,
                Err(error) => return Err(failed("receive the answer", error)),
            };
            for (kind, sequence, body) in messages(&answer) {
                if kind != NLMSG_ERROR {
                    continue;
                }
                match error_code(body) {
                    0 if cause.is_none() => return Ok(()),
                    0 => {}
                    code => {
                        let step = batch.steps.get(sequence as usize).map_or("", String::as_str);
                        cause.get_or_insert_with(|| failed(step, io::Error::from_raw_os_error(code)));
                    }
                }
            }
        }
        Err(cause.unwrap_or_else(|| failed("commit", io::Error::other("the kernel did not answer"))))
    }

    /// How often the ruleset was changed, as far as the number goes: each transaction that is done adds one.
    pub(crate) fn generation(&self) -> io::Result<u32> {
        const GETGEN: u16 = 10 << 8 | 16;
        let answers = self.ask(GETGEN, 0, [0; 2], |_| ())?;
        let id = answers.first().and_then(|body| find_attribute(body, 1)?.try_into().ok());
        id.map(u32::from_be_bytes).ok_or_else(|| io::Error::other("the kernel told no generation"))
    }

    fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = Vec::with_capacity(1 << 16);
        match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
            Ok(_) => Ok(Some(buffer)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks one question about a family, in a version of the message (0 unless the subsystem asks for another); the bodies
    /// of all answers (behind their `nfgenmsg`).
    pub(crate) fn ask(
        &self,
        message: u16,
        flags: u16,
        [family, version]: [u8; 2],
        fill: impl FnOnce(&mut Attrs<'_>),
    ) -> io::Result<Vec<Vec<u8>>> {
        let mut answers = Vec::new();
        self.ask_each(message, flags, [family, version], fill, |body| answers.push(body.to_vec()))?;
        Ok(answers)
    }

    /// The same, with each answer's body as it comes.
    pub(crate) fn ask_each(
        &self,
        message: u16,
        flags: u16,
        [family, version]: [u8; 2],
        fill: impl FnOnce(&mut Attrs<'_>),
        mut hear: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut buffer = Vec::new();
        buffer.extend_from_slice(&0_u32.to_ne_bytes());
        buffer.extend_from_slice(&message.to_ne_bytes());
        buffer.extend_from_slice(&(1 | flags).to_ne_bytes());
        buffer.extend_from_slice(&[0; 8]);
        buffer.extend_from_slice(&[family, version, 0, 0]);
        fill(&mut Attrs(&mut buffer));
        let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        buffer[..4].copy_from_slice(&len.to_ne_bytes());
        self.socket.send(&buffer, 0)?;
        while let Some(answer) = self.receive()? {
            for (kind, _, body) in messages(&answer) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => match error_code(body) {
                        0 => {}
                        code => return Err(io::Error::from_raw_os_error(code)),
                    },
                    _ => body.get(4..).into_iter().for_each(&mut hear),
                }
            }
        }
        Ok(())
    }

    /// The note a table was made with; none if there is no table.
    pub(crate) fn table_note(&self, family: Family, table: &str) -> io::Result<Option<Vec<u8>>> {
        const GETTABLE: u16 = 10 << 8 | 1;
        match self.ask(GETTABLE, 0, [family as u8, 0], |attrs| attrs.text(1, table)) {
            Ok(answers) => {
                let note = answers.first().and_then(|body| find_attribute(body, 6)).unwrap_or_default();
                Ok(Some(note.to_vec()))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a set has an element, and how many packets it counted if it counts.
    pub(crate) fn element(
        &self,
        family: Family,
        table: &str,
        set: &str,
        element: &Element,
    ) -> io::Result<Option<u64>> {
        const GETSETELEM: u16 = 10 << 8 | 0xd;
        let answers = self.ask(GETSETELEM, 0, [family as u8, 0], |attrs| {
            attrs.text(1, table);
            attrs.text(2, set);
            attrs.nest(3, |list| element.encode_key(list));
        });
        match answers {
            Ok(answers) => Ok(answers.first().map(|body| counted(body).unwrap_or(0))),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The keys of a set's elements; none if there is no such set.
    pub(crate) fn keys(&self, family: Family, table: &str, set: &str) -> io::Result<Vec<Key>> {
        const GETSETELEM: u16 = 10 << 8 | 0xd;
        const DUMP: u16 = 0x300;
        let mut keys = Vec::new();
        let name = |attrs: &mut Attrs<'_>| {
            attrs.text(1, table);
            attrs.text(2, set);
        };
        let heard = self.ask_each(GETSETELEM, DUMP, [family as u8, 0], name, |body| {
            let elements = attributes(find_attribute(body, 3).unwrap_or_default());
            keys.extend(
                elements
                    .filter_map(|(_, element)| find_attribute(find_attribute(element, 1)?, 1).map(Key::told)),
            );
        });
        match heard {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(keys),
        }
    }

    /// The names of a table's chains; none if there is no table.
    pub(crate) fn chains(&self, family: Family, table: &str) -> io::Result<Vec<String>> {
        const GETCHAIN: u16 = 10 << 8 | 4;
        const DUMP: u16 = 0x300;
        // The kernel lists the chains of every table of the family.
        let answers = self.ask(GETCHAIN, DUMP, [family as u8, 0], |_| {})?;
        let text =
            |bytes: &[u8]| String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned();
        Ok(answers
            .iter()
            .filter(|body| find_attribute(body, 1).is_some_and(|name| text(name) == table))
            .filter_map(|body| find_attribute(body, 3).map(text))
            .collect())
    }

    /// How many rules a chain has; none if there is no chain.
    pub(crate) fn rules(&self, family: Family, table: &str, chain: &str) -> io::Result<Option<usize>> {
        const GETCHAIN: u16 = 10 << 8 | 4;
        const GETRULE: u16 = 10 << 8 | 7;
        const DUMP: u16 = 0x300;
        let name = |attrs: &mut Attrs<'_>, kind: u16| {
            attrs.text(1, table);
            attrs.text(kind, chain);
        };
        match self.ask(GETCHAIN, 0, [family as u8, 0], |attrs| name(attrs, 3)) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(self.ask(GETRULE, DUMP, [family as u8, 0], |attrs| name(attrs, 2))?.len()))
    }
}

/// The packets counted by the one element in an answer.
fn counted(body: &[u8]) -> Option<u64> {
    let element = find_attribute(find_attribute(body, 3)?, 1)?;
    // One expression, or a list of them, by the kernel's age.
    let expression =
        find_attribute(element, 7).or_else(|| find_attribute(find_attribute(element, 11)?, 1))?;
    let packets = find_attribute(find_attribute(expression, 2)?, 2)?;
    packets.try_into().ok().map(u64::from_be_bytes)
}

fn error_code(body: &[u8]) -> i32 {
    body.get(..4)
        .and_then(|code| code.try_into().ok())
        .map_or(libc::EBADMSG, |code| -i32::from_ne_bytes(code))
}

/// Kind, sequence number and body of each message in a buffer.
fn messages(mut buffer: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(buffer.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(buffer.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(buffer.get(8..12)?.try_into().ok()?);
        let body = buffer.get(16..len)?;
        buffer = buffer.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

//! /dev/pf, by the ioctls of pf(4): whether it is on, its flows and limits. Tables and rules are in files of their own.
//! Requests carry the length of their structures, so a kernel with others refuses them instead of misreading them.

use std::fs::{File, OpenOptions};
use std::io;

use skep_ifnet::sys::{allow, io_plain, ioctl, iowr};

use super::nvlist;
use super::states::{self, State};
use crate::datapath::DatapathError;
use crate::datapath::freebsd::kernel;

/// `MAXPATHLEN` of sys/param.h.
pub(super) const PATH: usize = 1024;

/// `struct pfioc_limit` of net/pfvar.h.
#[repr(C)]
struct Limit {
    index: i32,
    limit: u32,
}

/// `struct pfioc_states_v2` of net/pfvar.h.
#[repr(C)]
struct States {
    len: i32,
    version: u64,
    buffer: *mut libc::c_void,
}

/// `struct pfioc_nv` of net/pfvar.h.
#[repr(C)]
struct Packed {
    data: *mut libc::c_void,
    len: usize,
    size: usize,
}

const DIOCSTART: u64 = io_plain(b'D', 1);
const DIOCGETSTATUSNV: u64 = iowr::<Packed>(b'D', 21);
const DIOCGETLIMIT: u64 = iowr::<Limit>(b'D', 39);
const DIOCSETLIMIT: u64 = iowr::<Limit>(b'D', 40);
const DIOCGETSTATESV2: u64 = iowr::<States>(b'D', 93);

/// The number of `PF_LIMIT_ANCHORS`, which FreeBSD 14 does not have, nor the limit.
const LIMIT_ANCHORS: i32 = 4;
/// As many anchors as thousands of sandboxes take. What is not used takes no memory.
const ANCHORS: u32 = 1 << 16;

/// The packet filter.
#[derive(Debug)]
pub(in super::super) struct Pf {
    pub(super) file: File,
}

/// A field of a structure that a text is in, with zeros behind it.
pub(super) fn text<const N: usize>(value: &str) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    if value.len() >= N {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    bytes[..value.len()].copy_from_slice(value.as_bytes());
    Ok(bytes)
}

impl Pf {
    pub(in super::super) fn open() -> Result<Self, DatapathError> {
        OpenOptions::new().read(true).write(true).open("/dev/pf").map(|file| Self { file }).map_err(|error| {
            DatapathError::Unsupported {
                what: "filtering packets".to_owned(),
                why: format!("no packet filter (kldload pf): /dev/pf: {error}"),
            }
        })
    }

    /// Turns the packet filter on; fine if it is.
    pub(in super::super) fn start(&self) -> Result<(), DatapathError> {
        allow(ioctl(&self.file, DIOCSTART, &mut ()), libc::EEXIST)
            .map_err(|error| kernel("turn on the packet filter", error))
    }

    /// Whether the packet filter is on.
    pub(in super::super) fn is_on(&self) -> Result<bool, DatapathError> {
        const WHAT: &str = "ask whether the packet filter is on";
        // More than the status takes, which is some dozens of counters with their names.
        let mut buffer = vec![0_u8; 1 << 16];
        let mut packed = Packed { data: buffer.as_mut_ptr().cast(), len: 0, size: buffer.len() };
        ioctl(&self.file, DIOCGETSTATUSNV, &mut packed).map_err(|error| kernel(WHAT, error))?;
        let told = buffer.get(..packed.len).and_then(nvlist::running);
        told.ok_or_else(|| DatapathError::Answer { what: WHAT.to_owned(), why: "no word of it".to_owned() })
    }

    /// Every flow that pf keeps state of.
    pub(in super::super) fn flows(&self) -> Result<Vec<State>, DatapathError> {
        /// Room for flows that begin between the question how many there are and the next.
        const MORE: usize = 256;
        let failed = |error| kernel("list the packet filter's states", error);
        let mut request = States { len: 0, version: states::VERSION, buffer: std::ptr::null_mut() };
        ioctl(&self.file, DIOCGETSTATESV2, &mut request).map_err(failed)?;
        let mut room = usize::try_from(request.len).unwrap_or(0);
        if room == 0 {
            // To look at each row of an empty table takes the kernel longer than all else that a change of policy does.
            return Ok(Vec::new());
        }
        loop {
            room += room / 4 + MORE * states::EXPORTED;
            let mut exported = vec![0_u8; room];
            request.len =
                i32::try_from(room).map_err(|_| failed(io::Error::from_raw_os_error(libc::E2BIG)))?;
            request.buffer = exported.as_mut_ptr().cast();
            ioctl(&self.file, DIOCGETSTATESV2, &mut request).map_err(failed)?;
            let filled = usize::try_from(request.len).unwrap_or(0);
            // The kernel stops, and does not say so, before a row of its table that there is no room for.
            if filled + room / 8 < room {
                return Ok(states::read(&exported[..filled.min(room)]));
            }
        }
    }

    /// Raises the number of anchors that pf allows, which is 512 after each load of a pf.conf that says nothing of it.
    pub(in super::super) fn allow_anchors(&self) -> Result<(), DatapathError> {
        let mut limit = Limit { index: LIMIT_ANCHORS, limit: 0 };
        let mut act = || {
            ioctl(&self.file, DIOCGETLIMIT, &mut limit)?;
            // 0: none.
            if (1..ANCHORS).contains(&limit.limit) {
                limit.limit = ANCHORS;
                ioctl(&self.file, DIOCSETLIMIT, &mut limit)?;
            }
            Ok(())
        };
        allow(act(), libc::EINVAL).map_err(|error| kernel("raise the limit of packet filter anchors", error))
    }
}

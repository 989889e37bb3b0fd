//! /dev/pf, by the ioctls of pf(4): tables, transactions, references in the main ruleset. Requests carry the length of
//! their structures, so a kernel with others refuses them instead of misreading them.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use skep_ifnet::sys::{allow, io_plain, ioctl, iowr};

use super::listing::REFERENCE_LABEL;
use super::nvlist;
use super::states::{self, State};
use super::tree::{Action, Node, Step};

use crate::datapath::DatapathError;
use crate::datapath::freebsd::kernel;

/// `MAXPATHLEN` of sys/param.h.
const PATH: usize = 1024;

/// `struct pfioc_table` of net/pfvar.h, with `struct pfr_table` in it.
#[repr(C)]
struct Table {
    anchor: [u8; PATH],
    name: [u8; 32],
    kept: u32,
    feedback: u8,
    buffer: *mut libc::c_void,
    element: i32,
    size: i32,
    size2: i32,
    added: i32,
    deleted: i32,
    changed: i32,
    flags: i32,
    ticket: u32,
}

impl Table {
    /// A request about `elements` in a table; they must outlive it.
    fn of<T>(anchor: &str, name: &str, elements: &mut [T]) -> io::Result<Self> {
        Ok(Self {
            anchor: text(anchor)?,
            name: text(name)?,
            kept: 0,
            feedback: 0,
            buffer: elements.as_mut_ptr().cast(),
            element: size_of::<T>() as i32,
            size: i32::try_from(elements.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
            size2: 0,
            added: 0,
            deleted: 0,
            changed: 0,
            flags: 0,
            ticket: 0,
        })
    }
}

/// `struct pfr_addr` of net/pfvar.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Address {
    ip: [u8; 16],
    family: u8,
    prefix: u8,
    not: u8,
    feedback: u8,
}

/// `struct pfioc_trans_e` of net/pfvar.h.
#[repr(C)]
struct Element {
    ruleset: i32,
    anchor: [u8; PATH],
    ticket: u32,
}

/// `struct pfioc_trans` of net/pfvar.h.
#[repr(C)]
struct Transaction {
    size: i32,
    element: i32,
    array: *mut Element,
}

/// `struct pfioc_rule` of net/pfvar.h; of `struct pf_rule` behind it only a few fields matter.
#[repr(C)]
struct Rule {
    action: u32,
    ticket: u32,
    pool_ticket: u32,
    number: u32,
    anchor: [u8; PATH],
    anchor_call: [u8; PATH],
    // Aligned by its 64-bit counters.
    fields: [u64; 122],
}

/// `struct pfioc_pooladdr` of net/pfvar.h.
#[repr(C)]
struct Pool {
    action: u32,
    ticket: u32,
    rest: [u64; 141],
}

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
const DIOCADDRULE: u64 = iowr::<Rule>(b'D', 4);
const DIOCGETRULES: u64 = iowr::<Rule>(b'D', 6);
const DIOCCHANGERULE: u64 = iowr::<Rule>(b'D', 26);
const DIOCGETSTATUSNV: u64 = iowr::<Packed>(b'D', 21);
const DIOCGETLIMIT: u64 = iowr::<Limit>(b'D', 39);
const DIOCSETLIMIT: u64 = iowr::<Limit>(b'D', 40);
const DIOCBEGINADDRS: u64 = iowr::<Pool>(b'D', 51);
const DIOCRCLRTABLES: u64 = iowr::<Table>(b'D', 60);
const DIOCRADDTABLES: u64 = iowr::<Table>(b'D', 61);
const DIOCRDELTABLES: u64 = iowr::<Table>(b'D', 62);
const DIOCRADDADDRS: u64 = iowr::<Table>(b'D', 67);
const DIOCRDELADDRS: u64 = iowr::<Table>(b'D', 68);
const DIOCRSETADDRS: u64 = iowr::<Table>(b'D', 69);
const DIOCRGETADDRS: u64 = iowr::<Table>(b'D', 70);
const DIOCGETSTATESV2: u64 = iowr::<States>(b'D', 93);
const DIOCXBEGIN: u64 = iowr::<Transaction>(b'D', 81);
const DIOCXCOMMIT: u64 = iowr::<Transaction>(b'D', 82);
const _: () = assert!(DIOCCHANGERULE == 0xcbe0_441a && DIOCBEGINADDRS == 0xc470_4433);
const _: () = assert!(DIOCRSETADDRS == 0xc450_4445 && DIOCXBEGIN == 0xc010_4451);
const _: () = assert!(size_of::<Element>() == 1032 && size_of::<Address>() == 20);

const PFR_TFLAG_PERSIST: u32 = 1;
const PF_CHANGE_ADD_HEAD: u32 = 1;
const PF_CHANGE_REMOVE: u32 = 5;
const PF_CHANGE_GET_TICKET: u32 = 6;
// Offsets in `struct pf_rule`; the destination's table and the kind of the destination are in its `struct pf_addr_wrap`.
const RULE_TO_TABLE: usize = 56;
const RULE_TO_KIND: usize = 96;
const RULE_LABEL: usize = 176;
const RULE_INTERFACE: usize = 240;
const RULE_ROUTING_TABLE: usize = 700;
const RULE_ACTION: usize = 904;
const RULE_QUICK: usize = 908;
/// `PF_ADDR_TABLE`: a destination that is in a table.
const IN_TABLE: u8 = 3;
const PF_DROP: u8 = 1;
/// The number of `PF_LIMIT_ANCHORS`, which FreeBSD 14 does not have, nor the limit.
const LIMIT_ANCHORS: i32 = 4;
/// As many anchors as thousands of sandboxes take. What is not used takes no memory.
const ANCHORS: u32 = 1 << 16;

/// Lists of rules, by the number that transactions know them by.
const PF_RULESET_FILTER: i32 = 1;
const PF_RULESET_NAT: i32 = 2;
const PF_RULESET_RDR: i32 = 4;
const PF_RULESET_TABLE: i32 = 6;

/// A list of the main ruleset that our anchor is referred to from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum List {
    /// Translation of sources.
    Nat,
    /// Translation of destinations.
    Rdr,
    /// The filter.
    Filter,
}

impl List {
    /// In the order of [`super::listing::referenced`].
    pub(in super::super) const ALL: [Self; 3] = [Self::Nat, Self::Rdr, Self::Filter];

    /// A rule's action: PF_NAT, PF_RDR, PF_PASS.
    fn action(self) -> u8 {
        match self {
            Self::Nat => 4,
            Self::Rdr => 8,
            Self::Filter => 0,
        }
    }
}

/// The packet filter.
#[derive(Debug)]
pub(in super::super) struct Pf {
    file: File,
}

fn text<const N: usize>(value: &str) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    if value.len() >= N {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    bytes[..value.len()].copy_from_slice(value.as_bytes());
    Ok(bytes)
}

fn address(net: &IpNet) -> Address {
    let mut ip = [0; 16];
    let family = match net.addr() {
        IpAddr::V4(v4) => {
            ip[..4].copy_from_slice(&v4.octets());
            2
        }
        IpAddr::V6(v6) => {
            ip = v6.octets();
            28
        }
    };
    Address { ip, family, prefix: net.prefix_len(), not: 0, feedback: 0 }
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

    fn table(&self, request: u64, anchor: &str, name: &str, elements: &mut [Address]) -> io::Result<()> {
        let mut table = Table::of(anchor, name, elements)?;
        // Clearing takes no elements, and says so.
        if request == DIOCRCLRTABLES {
            table.element = 0;
        }
        ioctl(&self.file, request, &mut table)
    }

    /// Makes tables that stay without rules that use them; fine if they are there.
    pub(in super::super) fn make_tables(
        &self,
        anchor: &str,
        names: &[impl AsRef<str>],
    ) -> Result<(), DatapathError> {
        self.tables(DIOCRADDTABLES, anchor, names)
            .map_err(|error| kernel(format!("make packet filter tables of anchor `{anchor}`"), error))
    }

    /// Removes tables of the main ruleset; fine if there are none.
    pub(in super::super) fn remove_tables(&self, names: &[impl AsRef<str>]) -> Result<(), DatapathError> {
        self.tables(DIOCRDELTABLES, "", names).map_err(|error| kernel("remove packet filter tables", error))
    }

    fn tables(&self, request: u64, anchor: &str, names: &[impl AsRef<str>]) -> io::Result<()> {
        /// `struct pfr_table`.
        #[repr(C)]
        struct Named {
            anchor: [u8; PATH],
            name: [u8; 32],
            flags: u32,
            feedback: u8,
        }
        // Who removes a table must not say what it should be like.
        let flags = if request == DIOCRADDTABLES { PFR_TFLAG_PERSIST } else { 0 };
        let mut all = Vec::new();
        for name in names {
            all.push(Named { anchor: text(anchor)?, name: text(name.as_ref())?, flags, feedback: 0 });
        }
        let mut list = Table::of("", "", &mut all)?;
        ioctl(&self.file, request, &mut list)
    }

    /// Replaces what is in a table, at once.
    pub(in super::super) fn set(
        &self,
        anchor: &str,
        name: &str,
        nets: &[IpNet],
    ) -> Result<(), DatapathError> {
        let mut all: Vec<Address> = nets.iter().map(address).collect();
        self.table(DIOCRSETADDRS, anchor, name, &mut all)
            .map_err(|error| kernel(format!("fill packet filter table {name}"), error))
    }

    /// The first address in a table; none if there is no such table, or nothing in it.
    pub(in super::super) fn first(&self, anchor: &str, name: &str) -> Result<Option<IpAddr>, DatapathError> {
        let mut found = [Address { ip: [0; 16], family: 0, prefix: 0, not: 0, feedback: 0 }];
        match self.table(DIOCRGETADDRS, anchor, name, &mut found) {
            Ok(()) => Ok((found[0].family == 28).then(|| IpAddr::from(found[0].ip))),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(kernel(format!("read packet filter table {name}"), error)),
        }
    }

    /// Puts addresses into a table of the main ruleset, or takes them out.
    pub(in super::super) fn change(&self, name: &str, add: bool, ips: &[IpNet]) -> Result<(), DatapathError> {
        let mut all: Vec<Address> = ips.iter().map(address).collect();
        let request = if add { DIOCRADDADDRS } else { DIOCRDELADDRS };
        // A table that is gone has nothing to be taken out of.
        let result = self.table(request, "", name, &mut all);
        let result = if add { result } else { allow(result, libc::ESRCH) };
        result.map_err(|error| kernel(format!("change packet filter table {name}"), error))
    }
}

impl Rule {
    /// A request about a list of an anchor.
    fn of(anchor: &str, list: List) -> io::Result<Self> {
        let mut request = Self {
            action: 0,
            ticket: 0,
            pool_ticket: 0,
            number: 0,
            anchor: text(anchor)?,
            anchor_call: [0; PATH],
            fields: [0; 122],
        };
        request.set(RULE_ACTION, &[list.action()]);
        // -1: the packet's own routing table.
        request.set(RULE_ROUTING_TABLE, &[0xff; 4]);
        Ok(request)
    }

    /// Writes into the `struct pf_rule`.
    fn set(&mut self, at: usize, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            set_byte(&mut self.fields, at, *byte);
        }
    }

    /// A request to append a step to an anchor's filter.
    fn step(anchor: &str, step: &Step) -> io::Result<Self> {
        let mut request = Self::of(anchor, List::Filter)?;
        if let Some(on) = &step.on {
            request.set(RULE_INTERFACE, &text::<16>(on)?);
        }
        if let Some(to) = &step.to {
            request.set(RULE_TO_TABLE, &text::<32>(to)?);
            request.set(RULE_TO_KIND, &[IN_TABLE]);
        }
        match &step.action {
            Action::Into(call) => request.anchor_call = text(call)?,
            Action::Block => {
                request.set(RULE_ACTION, &[PF_DROP]);
                request.set(RULE_QUICK, &[1]);
            }
        }
        Ok(request)
    }
}

impl Pf {
    /// How many rules an anchor has, and the number of its present version; none if there is no such anchor.
    pub(in super::super) fn count(
        &self,
        anchor: &str,
        list: List,
    ) -> Result<Option<(u32, u32)>, DatapathError> {
        let ask = || {
            let mut request = Rule::of(anchor, list)?;
            ioctl(&self.file, DIOCGETRULES, &mut request).map(|()| (request.number, request.ticket))
        };
        match ask() {
            Ok(found) => Ok(Some(found)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Ok(None),
            Err(error) => Err(kernel(format!("look at packet filter anchor {anchor}"), error)),
        }
    }

    /// Puts a reference to an anchor before all rules of the main ruleset, and leaves those as they are.
    pub(in super::super) fn refer(&self, list: List, anchor: &str) -> Result<(), DatapathError> {
        let act = || {
            let mut pool = Pool { action: 0, ticket: 0, rest: [0; 141] };
            ioctl(&self.file, DIOCBEGINADDRS, &mut pool)?;
            let mut request = Rule::of("", list)?;
            request.action = PF_CHANGE_GET_TICKET;
            ioctl(&self.file, DIOCCHANGERULE, &mut request)?;
            request.action = PF_CHANGE_ADD_HEAD;
            request.pool_ticket = pool.ticket;
            request.anchor_call = text(anchor)?;
            request.set(RULE_LABEL, REFERENCE_LABEL.as_bytes());
            ioctl(&self.file, DIOCCHANGERULE, &mut request)
        };
        act().map_err(|error| kernel(format!("refer to packet filter anchor {anchor}"), error))
    }

    /// Takes one rule out of the main ruleset, by its number.
    pub(in super::super) fn remove_rule(&self, list: List, number: u32) -> Result<(), DatapathError> {
        let act = || {
            let mut request = Rule::of("", list)?;
            request.action = PF_CHANGE_GET_TICKET;
            ioctl(&self.file, DIOCCHANGERULE, &mut request)?;
            request.action = PF_CHANGE_REMOVE;
            request.number = number;
            ioctl(&self.file, DIOCCHANGERULE, &mut request)
        };
        act().map_err(|error| kernel(format!("remove rule {number} of the main ruleset"), error))
    }

    /// Replaces the filters of several anchors, all at once.
    pub(in super::super) fn replace(&self, all: &[Node]) -> Result<(), DatapathError> {
        let act = || {
            let mut lists = Vec::new();
            for (anchor, _) in all {
                lists.push(Element { ruleset: PF_RULESET_FILTER, anchor: text(anchor)?, ticket: 0 });
            }
            let mut transaction = Transaction {
                size: lists.len() as i32,
                element: size_of::<Element>() as i32,
                array: lists.as_mut_ptr(),
            };
            ioctl(&self.file, DIOCXBEGIN, &mut transaction)?;
            let mut pool = Pool { action: 0, ticket: 0, rest: [0; 141] };
            ioctl(&self.file, DIOCBEGINADDRS, &mut pool)?;
            for ((anchor, steps), list) in all.iter().zip(&lists) {
                for step in steps {
                    let mut request = Rule::step(anchor, step)?;
                    request.ticket = list.ticket;
                    request.pool_ticket = pool.ticket;
                    ioctl(&self.file, DIOCADDRULE, &mut request)?;
                }
            }
            ioctl(&self.file, DIOCXCOMMIT, &mut transaction)
        };
        act().map_err(|error| kernel("make the packet filter's tree of anchors", error))
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

    /// Empties an anchor, tables included; with nothing in it the kernel forgets it.
    pub(in super::super) fn clear(&self, anchor: &str) -> Result<(), DatapathError> {
        let act = |all: &[i32]| {
            let mut lists = Vec::new();
            for ruleset in all {
                lists.push(Element { ruleset: *ruleset, anchor: text(anchor)?, ticket: 0 });
            }
            let mut transaction = Transaction {
                size: lists.len() as i32,
                element: size_of::<Element>() as i32,
                array: lists.as_mut_ptr(),
            };
            ioctl(&self.file, DIOCXBEGIN, &mut transaction)?;
            ioctl(&self.file, DIOCXCOMMIT, &mut transaction)
        };
        let failed = |error| kernel(format!("empty packet filter anchor {anchor}"), error);
        act(&[PF_RULESET_FILTER, PF_RULESET_NAT, PF_RULESET_RDR, PF_RULESET_TABLE]).map_err(failed)?;
        self.drop_tables(anchor)?;
        // The kernel looks whether an anchor is empty when a list of it is replaced.
        act(&[PF_RULESET_FILTER]).map_err(failed)
    }

    /// Tables that were declared to persist outlive their rules.
    fn drop_tables(&self, anchor: &str) -> Result<(), DatapathError> {
        allow(allow(self.table(DIOCRCLRTABLES, anchor, "", &mut []), libc::ESRCH), libc::ENOENT)
            .map_err(|error| kernel(format!("remove the tables of packet filter anchor {anchor}"), error))
    }
}

/// Sets one byte of a structure that is known by its words.
fn set_byte(words: &mut [u64], at: usize, value: u8) {
    if let Some(word) = words.get_mut(at / 8) {
        let mut bytes = word.to_ne_bytes();
        bytes[at % 8] = value;
        *word = u64::from_ne_bytes(bytes);
    }
}

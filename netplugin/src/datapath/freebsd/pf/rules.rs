//! Rules of /dev/pf: transactions, references in the main ruleset.

use std::io;

use skep_ifnet::sys::{ioctl, iowr};

use super::device::{PATH, Pf, text};
use super::listing::REFERENCE_LABEL;
use super::tree::{Action, Node, Step};
use crate::datapath::DatapathError;
use crate::datapath::freebsd::kernel;

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

const DIOCADDRULE: u64 = iowr::<Rule>(b'D', 4);
const DIOCGETRULES: u64 = iowr::<Rule>(b'D', 6);
const DIOCCHANGERULE: u64 = iowr::<Rule>(b'D', 26);
const DIOCBEGINADDRS: u64 = iowr::<Pool>(b'D', 51);
const DIOCXBEGIN: u64 = iowr::<Transaction>(b'D', 81);
const DIOCXCOMMIT: u64 = iowr::<Transaction>(b'D', 82);
const _: () = assert!(DIOCCHANGERULE == 0xcbe0_441a && DIOCBEGINADDRS == 0xc470_4433);
const _: () = assert!(DIOCXBEGIN == 0xc010_4451 && size_of::<Element>() == 1032);

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
}

/// Sets one byte of a structure that is known by its words.
fn set_byte(words: &mut [u64], at: usize, value: u8) {
    if let Some(word) = words.get_mut(at / 8) {
        let mut bytes = word.to_ne_bytes();
        bytes[at % 8] = value;
        *word = u64::from_ne_bytes(bytes);
    }
}

//! Tables of /dev/pf.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use skep_ifnet::sys::{allow, ioctl, iowr};

use super::device::{PATH, Pf, text};
use crate::datapath::DatapathError;
use crate::datapath::freebsd::kernel;

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

const DIOCRCLRTABLES: u64 = iowr::<Table>(b'D', 60);
const DIOCRADDTABLES: u64 = iowr::<Table>(b'D', 61);
const DIOCRDELTABLES: u64 = iowr::<Table>(b'D', 62);
const DIOCRADDADDRS: u64 = iowr::<Table>(b'D', 67);
const DIOCRDELADDRS: u64 = iowr::<Table>(b'D', 68);
const DIOCRSETADDRS: u64 = iowr::<Table>(b'D', 69);
const DIOCRGETADDRS: u64 = iowr::<Table>(b'D', 70);
const _: () = assert!(DIOCRSETADDRS == 0xc450_4445 && size_of::<Address>() == 20);

const PFR_TFLAG_PERSIST: u32 = 1;

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

    /// Tables that were declared to persist outlive their rules.
    pub(super) fn drop_tables(&self, anchor: &str) -> Result<(), DatapathError> {
        allow(allow(self.table(DIOCRCLRTABLES, anchor, "", &mut []), libc::ESRCH), libc::ENOENT)
            .map_err(|error| kernel(format!("remove the tables of packet filter anchor {anchor}"), error))
    }
}

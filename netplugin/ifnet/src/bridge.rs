//! Ports of an if_bridge(4), by its driver commands.

use std::io;

use crate::error::Error;
use crate::interface::{Control, name_of, shown};
use crate::sys::{allow, kernel};

// net/if_bridgevar.h
const BRDGADD: u64 = 0;
const BRDGDEL: u64 = 1;
const BRDGGIFFLGS: u64 = 2;
const BRDGSIFFLGS: u64 = 3;
const BRDGSADDR: u64 = 8;
const BRDGDADDR: u64 = 11;
const IFBAF_STATIC: u8 = 1;
/// A port whose source addresses are learnt.
pub const LEARNS: u32 = 0x1;
/// A port that gets frames whose destination nobody knows.
pub const DISCOVERS: u32 = 0x2;
/// A port that gets nothing from others like it.
pub const PRIVATE: u32 = 0x800;

/// `struct ifbreq`.
#[repr(C)]
#[derive(Default)]
struct Member {
    name: [u8; 16],
    flags: u32,
    rest: [u32; 15],
}

/// `struct ifbareq`.
#[repr(C)]
#[derive(Default)]
struct Station {
    name: [u8; 16],
    expire: u64,
    flags: u8,
    mac: [u8; 6],
    // Aligns the VLAN's number.
    _pad: u8,
    vlan: u16,
}

const _: () = assert!(size_of::<Member>() == 80 && size_of::<Station>() == 40);

impl Control {
    fn member(&self, bridge: &str, command: u64, port: &str, flags: u32) -> io::Result<u32> {
        let mut member = Member { name: name_of(port)?, flags, ..Member::default() };
        self.driver(bridge, command, command == BRDGGIFFLGS, &mut member)?;
        Ok(member.flags)
    }

    /// Makes an interface a port of a bridge, with these flags of its own; fine if it is.
    pub fn add_port(&self, bridge: &str, port: &str, flags: u32) -> Result<(), Error> {
        allow(self.member(bridge, BRDGADD, port, 0).map(|_| ()), libc::EEXIST)
            .and_then(|()| self.member(bridge, BRDGSIFFLGS, port, flags).map(|_| ()))
            .map_err(|error| kernel(format!("make {port} a port of {bridge}"), error))
    }

    /// Takes a port off a bridge; fine if it is not there.
    pub fn remove_port(&self, bridge: &str, port: &str) -> Result<(), Error> {
        let result = self.member(bridge, BRDGDEL, port, 0).map(|_| ());
        allow(allow(result, libc::ENOENT), libc::ENXIO)
            .map_err(|error| kernel(format!("take {port} off {bridge}"), error))
    }

    /// The flags of a port; none if it is no port of this bridge.
    pub fn port_flags(&self, bridge: &str, port: &str) -> Result<Option<u32>, Error> {
        match self.member(bridge, BRDGGIFFLGS, port, 0) {
            Ok(flags) => Ok(Some(flags)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO)) => Ok(None),
            Err(error) => Err(kernel(format!("look at port {port} of {bridge}"), error)),
        }
    }

    /// Writes down for good behind which port an Ethernet address is.
    pub fn add_station(&self, bridge: &str, port: &str, mac: [u8; 6]) -> Result<(), Error> {
        let add = || {
            let mut station =
                Station { name: name_of(port)?, flags: IFBAF_STATIC, mac, vlan: 0, ..Station::default() };
            self.driver(bridge, BRDGSADDR, false, &mut station)
        };
        add().map_err(|error| kernel(format!("write down that {} is behind {port}", shown(mac)), error))
    }

    /// Forgets what [`Control::add_station`] wrote down; fine if nothing is.
    pub fn remove_station(&self, bridge: &str, mac: [u8; 6]) -> Result<(), Error> {
        let mut station = Station { mac, ..Station::default() };
        allow(self.driver(bridge, BRDGDADDR, false, &mut station), libc::ENOENT)
            .map_err(|error| kernel(format!("forget where {} is on {bridge}", shown(mac)), error))
    }
}

//! Taps: the host's ends of the VM's network devices. By `if_tuntap(4)` one that somebody has open cannot be removed, and
//! one that is not up drops what the guest sends.

use skep_ifnet::sys::load_module;
use skep_ifnet::{Control, Error, Jail, Link, links, need};

use crate::journal::{Entry, Journal};
use crate::network::NetworkError;
use crate::network::traffic::{Count, HostEnd};

/// Units of our own making: above those that people and other programs use, below `IF_MAXUNIT` (0x7fff).
const UNITS: std::ops::Range<u16> = 8192..32_767;
/// How often another unit is tried.
const TRIES: usize = 16;

/// A tap of ours.
#[derive(Debug, Clone)]
pub(super) struct Tap {
    /// The name of its device file, which stays what it is whatever the interface is called.
    pub(super) file: String,
    /// Where to look for the interface.
    place: Place,
}

/// Where a tap's interface is, and what of it does not change there.
#[derive(Debug, Clone)]
enum Place {
    /// On the host, where a plugin may give it another name.
    Host { index: u16 },
    /// In the sandbox's jail, where nobody renames it.
    Jail { name: String },
}

/// Makes a tap called `name`, in a vnet jail if one is named.
pub(super) fn make(name: &str, jail: Option<&str>, journal: &Journal) -> Result<Tap, NetworkError> {
    load_module("if_tuntap");
    let control = Control::open()?;
    let jail_id = jail.map(Jail::open).transpose()?.map(|jail| jail.id);
    let mut last = None;
    for _ in 0..TRIES {
        let first = format!("tap{}", unit()?);
        let entry = Entry::Tap { name: name.into(), first: first.clone(), jail: jail.map(Into::into) };
        let entry = journal.record(entry)?;
        match control.create(&first) {
            Ok(_) => {}
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                journal.strike(entry)?;
                last = Some(error);
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        control.rename(&first, name)?;
        // The host itself does not speak on it.
        control.set_ipv6(name, false)?;
        let place = match jail_id {
            None => Place::Host { index: need(name)?.index },
            Some(id) => {
                control.move_into(name, id)?;
                Place::Jail { name: name.to_owned() }
            }
        };
        return Ok(Tap { file: first, place });
    }
    Err(last.map_or_else(
        || NetworkError::system("make a tap")(std::io::ErrorKind::AddrInUse.into()),
        NetworkError::from,
    ))
}

fn unit() -> Result<u16, NetworkError> {
    let mut bytes = [0; 2];
    crate::os::random(&mut bytes).map_err(NetworkError::system("choose a tap's number"))?;
    Ok(UNITS.start + u16::from_ne_bytes(bytes) % (UNITS.end - UNITS.start))
}

/// What taps carried, in their order; `jail` is where they are.
pub(super) fn carried(taps: &[&Tap], jail: Option<&str>) -> Result<Vec<HostEnd>, NetworkError> {
    let all = match jail {
        Some(jail) => Jail::open(jail)?.run(links)?,
        None => links()?,
    };
    let end = |tap: &&Tap| {
        let one = all.iter().find(|link| match &tap.place {
            Place::Host { index } => link.index == *index,
            Place::Jail { name } => link.name == *name,
        });
        let gone = || NetworkError::system(format!("read what {} carried", tap.file));
        one.map(host_end).ok_or_else(|| gone()(std::io::ErrorKind::NotFound.into()))
    };
    taps.iter().map(end).collect()
}

fn host_end(link: &Link) -> HostEnd {
    let [packets_in, bytes_in, packets_out, bytes_out] = link.carried;
    let [failed_in, dropped_in, failed_out, dropped_out] = link.lost;
    HostEnd {
        taken: Count { packets: packets_in, bytes: bytes_in, errors: failed_in, dropped: dropped_in },
        given: Count { packets: packets_out, bytes: bytes_out, errors: failed_out, dropped: dropped_out },
    }
}

/// Removes a tap, wherever it is by now; fine if it is gone. `first` is the name it has for a moment while it is made:
/// no other tap keeps such a name.
pub(crate) fn remove(name: &str, first: &str, jail: Option<&str>) -> Result<(), NetworkError> {
    if let Some(jail) = jail.and_then(|name| Jail::open(name).ok()) {
        let name = name.to_owned();
        jail.run(|| destroy(&name))?;
    }
    destroy(name)?;
    destroy(first)?;
    Ok(())
}

fn destroy(name: &str) -> Result<(), Error> {
    Control::open()?.destroy(name)
}

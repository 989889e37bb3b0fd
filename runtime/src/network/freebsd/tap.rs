//! Taps: the host's ends of the VM's network devices. By `if_tuntap(4)` one that somebody has open cannot be removed, and
//! one that is not up drops what the guest sends.

use skep_ifnet::sys::load_module;
use skep_ifnet::{Control, Error, Jail};

use crate::journal::{Entry, Journal};
use crate::network::NetworkError;

/// Units of our own making: above those that people and other programs use, below `IF_MAXUNIT` (0x7fff).
const UNITS: std::ops::Range<u16> = 8192..32_767;
/// How often another unit is tried.
const TRIES: usize = 16;

/// Makes a tap called `name`, in a vnet jail if one is named; the name of its device file, which stays what it is
/// whatever the interface is called.
pub(super) fn make(name: &str, jail: Option<&str>, journal: &Journal) -> Result<String, NetworkError> {
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
        if let Some(id) = jail_id {
            control.move_into(name, id)?;
        }
        return Ok(first);
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

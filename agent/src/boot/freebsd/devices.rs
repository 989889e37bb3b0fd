//! What of the guest's devices containers see: a ruleset of devfs(5), made as devfs(8) makes them.

use std::fs::File;
use std::os::fd::AsRawFd as _;

/// The number of the ruleset, as FreeBSD's own for jails.
pub(crate) const RULESET: u16 = 4;

/// What is shown. Not the port to the host, and nothing by which memory or disks are reached.
const SHOWN: [&str; 16] = [
    "null", "zero", "full", "random", "urandom", "crypto", "stdin", "stdout", "stderr", "fd", "fd/*", "ptmx",
    "pts", "pts/*", "tty", "log",
];

/// `struct devfs_rule`, fs/devfs/devfs.h.
#[repr(C)]
struct Rule {
    magic: u32,
    id: u32,
    conditions: libc::c_int,
    flags: libc::c_int,
    pattern: [u8; 200],
    actions: libc::c_int,
    switch: libc::c_int,
    uid: libc::uid_t,
    gid: libc::gid_t,
    mode: libc::mode_t,
    included: u16,
}

const MAGIC: u32 = 0xdb0a_087a;
const BY_PATTERN: libc::c_int = 0x002;
const SWITCH: libc::c_int = 0x001;
const HIDE: libc::c_int = 0x001;
const UNHIDE: libc::c_int = 0x002;

nix::ioctl_readwrite!(add_rule, b'D', 0, Rule);

/// Makes the ruleset.
pub(crate) fn make_ruleset() -> std::io::Result<()> {
    let devfs = File::open("/dev")?;
    let mut rules = vec![rule(1, None, HIDE)];
    rules.extend((2..).zip(SHOWN).map(|(number, pattern)| rule(number, Some(pattern), UNHIDE)));
    for mut rule in rules {
        // SAFETY: a rule is what DEVFSIO_RADD reads and writes, and it lives through the call.
        unsafe { add_rule(devfs.as_raw_fd(), &raw mut rule) }?;
    }
    Ok(())
}

fn rule(number: u16, pattern: Option<&str>, switch: libc::c_int) -> Rule {
    let mut bytes = [0; 200];
    for (to, from) in bytes.iter_mut().zip(pattern.unwrap_or_default().bytes()) {
        *to = from;
    }
    Rule {
        magic: MAGIC,
        id: u32::from(RULESET) << 16 | u32::from(number),
        conditions: if pattern.is_some() { BY_PATTERN } else { 0 },
        flags: 0,
        pattern: bytes,
        actions: SWITCH,
        switch,
        uid: 0,
        gid: 0,
        mode: 0,
        included: 0,
    }
}

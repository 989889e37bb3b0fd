//! Settings of the calling thread's network namespace.

use std::io;
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

/// Writes the setting `name` (`ipv6/conf/eth0/accept_ra`). One that the kernel does not have (IPv6 is not built in, or
/// off) is none of ours.
pub fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    let file = file(name);
    match std::fs::read_to_string(&file) {
        Ok(current) if current.trim() == value => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    std::fs::write(&file, value)
}

/// Reads the setting `name`; nothing if the kernel does not have it.
pub fn sysctl(name: &str) -> Option<String> {
    Some(std::fs::read_to_string(file(name)).ok()?.trim().to_owned())
}

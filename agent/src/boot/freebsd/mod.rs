//! From a FreeBSD kernel's hand-over: the root is the guest's own tree, read-only, with a devfs on /dev.

pub(crate) mod devices;
mod kenv;
mod loopback;

use std::path::Path;

use super::{BootError, DESCRIPTORS_MAX, Options, cmdline, descriptors, null_stdio};
use crate::os::mounts;

/// What the guest writes to: its tree is shared with others.
const WRITABLE: [(&str, &[u8]); 2] = [("/run", b"0755"), ("/tmp", b"1777")];

/// Makes the guest a place where containers can live, and reads what the host asked for.
pub(crate) fn prepare() -> Result<Options, BootError> {
    null_stdio()?;
    for (target, mode) in WRITABLE {
        mounts::mount("tmpfs", Path::new(target), &[("from", b"tmpfs"), ("mode", mode)], libc::MNT_NOSUID)
            .map_err(|source| BootError::Mount { what: "tmpfs", target: target.to_owned(), source })?;
    }
    let options = cmdline::parse(&kenv::line().map_err(BootError::Kenv)?)?;
    crate::log::install(options.log);
    devices::make_ruleset().map_err(BootError::Devices)?;
    // Whatever a container allocates, init is not the one to be killed: the kernel sees to that itself.
    descriptors(DESCRIPTORS_MAX);
    if let Err(error) = loopback::up() {
        // A kernel without a network still runs containers.
        tracing::warn!("cannot bring lo0 up: {error}");
    }
    Ok(options)
}

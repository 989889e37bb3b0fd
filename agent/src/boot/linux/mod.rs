//! From a Linux kernel's hand-over.

pub(crate) mod cgroups;
mod files;
mod loopback;
mod mounts;

use std::path::Path;

use self::files::{read, write};
use super::{BootError, DESCRIPTORS_MAX, Options, cmdline, descriptors, null_stdio};

/// Makes the guest a place where containers can live, and reads what the host asked for.
pub(crate) fn prepare() -> Result<Options, BootError> {
    mounts::prepare()?;
    null_stdio()?;
    let line = read("/proc/cmdline")?;
    let options = cmdline::parse(&line)?;
    crate::log::install(options.log);
    cgroups::prepare()?;
    // Hurting the agent ends the sandbox: whatever a container allocates, it is not the one to be killed.
    write(Path::new("/proc/self/oom_score_adj"), "-1000")?;
    descriptors(DESCRIPTORS_MAX);
    if let Err(error) = loopback::up() {
        // A kernel without a network still runs containers.
        tracing::warn!("cannot bring lo up: {error}");
    }
    Ok(options)
}

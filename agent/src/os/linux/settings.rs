//! What of the kernel belongs to the sandbox as a whole: its parameters and the size of /dev/shm.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;

use crate::error::Refusal;

/// What containers of the sandbox share.
const SHM: &str = "/dev/shm";
/// Longest name of a parameter.
const NAME_MAX: usize = 256;

/// Sets a parameter by its name in the notation of sysctl(8).
pub(crate) fn set_parameter(name: &str, value: &str) -> Result<(), Refusal> {
    let path = path_of(name).ok_or_else(|| Refusal::invalid(format!("sysctls {name:?}: no such name")))?;
    std::fs::write(&path, value)
        .map_err(|e| Refusal::invalid(format!("sysctls {name} = {value:?}: {}: {e}", path.display())))
}

/// As runc has it: dots are slashes. A name with slashes is one whose parts have dots.
fn path_of(name: &str) -> Option<PathBuf> {
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:@".contains(&b))
    };
    (name.len() <= NAME_MAX && relative.split('/').all(plain)).then(|| Path::new("/proc/sys").join(relative))
}

/// Makes /dev/shm that large.
pub(crate) fn size_shm(bytes: u64) -> Result<(), Refusal> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(None::<&str>, SHM, None::<&str>, flags, Some(format!("size={bytes},mode=1777").as_str()))
        .map_err(|e| Refusal::internal(format!("cannot make {SHM} {bytes} bytes large: {e}")))
}

/// Makes it that large unless it is larger.
pub(crate) fn grow_shm(bytes: u64) -> Result<(), Refusal> {
    let now = statvfs(SHM).map_err(|e| Refusal::internal(format!("{SHM}: {e}")))?;
    if now.blocks().saturating_mul(now.fragment_size()) >= bytes {
        return Ok(());
    }
    size_shm(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_below_the_parameters() {
        let path = |name: &str| path_of(name).map(|path| path.display().to_string());
        assert_eq!(
            path("net.ipv4.ip_unprivileged_port_start").as_deref(),
            Some("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        );
        assert_eq!(
            path("net/ipv4/conf/eth0.1/forwarding").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
        for bad in ["", ".", "a..b", "../x", "net/../../etc/passwd", "/etc/x", "a b", &"x".repeat(300)] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }
}

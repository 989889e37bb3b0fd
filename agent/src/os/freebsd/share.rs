//! Directories of the host: FreeBSD's p9fs.

use std::path::Path;

use skep_protocol::api::Share;

use super::mounts;
use crate::error::Refusal;

/// Mounts a share.
pub(crate) fn attach(share: &Share) -> Result<(), Refusal> {
    let Share { tag, mount_point, options, readonly, .. } = share;
    std::fs::create_dir_all(mount_point)
        .map_err(|e| Refusal::internal(format!("share {tag:?}: cannot make {mount_point}: {e}")))?;
    let mut pairs: Vec<(&str, &[u8])> = vec![("from", tag.as_bytes()), ("trans", b"virtio")];
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        pairs.push((name, value.as_bytes()));
    }
    let flags = libc::MNT_NOATIME | if *readonly { libc::MNT_RDONLY } else { 0 };
    mounts::mount("p9fs", Path::new(mount_point), &pairs, flags).map_err(|e| {
        Refusal::internal(format!("share {tag:?}: cannot mount with {options:?} on {mount_point}: {e}"))
    })
}

/// Takes a share away at the guest's end.
pub(crate) fn detach(mount_point: &str) -> nix::Result<()> {
    mounts::unmount(Path::new(mount_point))
}

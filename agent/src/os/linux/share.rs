//! Directories of the host: Linux's 9p.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use skep_protocol::api::Share;

use crate::error::Refusal;

/// Mounts a share.
pub(crate) fn attach(share: &Share) -> Result<(), Refusal> {
    let Share { tag, mount_point, options, .. } = share;
    std::fs::create_dir_all(mount_point)
        .map_err(|e| Refusal::internal(format!("share {tag:?}: cannot make {mount_point}: {e}")))?;
    let mut flags = MsFlags::MS_NOATIME;
    flags.set(MsFlags::MS_RDONLY, share.readonly);
    let options = mount_options(options);
    mount(Some(tag.as_str()), mount_point.as_str(), Some("9p"), flags, Some(options.as_str())).map_err(|e| {
        let why = match e {
            nix::Error::ENOENT => "the VM has no 9p device with this tag".to_owned(),
            nix::Error::ENODEV => "the guest's kernel has no 9p".to_owned(),
            e => e.to_string(),
        };
        Refusal::internal(format!("share {tag:?}: cannot mount with {options:?} on {mount_point}: {why}"))
    })
}

fn mount_options(options: &str) -> String {
    let fixed = "trans=virtio,version=9p2000.L";
    if options.is_empty() { fixed.to_owned() } else { format!("{fixed},{options}") }
}

/// Takes a share away at the guest's end.
pub(crate) fn detach(mount_point: &str) -> nix::Result<()> {
    umount2(mount_point, MntFlags::MNT_DETACH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_options_come_after_the_fixed_ones() {
        assert_eq!(mount_options(""), "trans=virtio,version=9p2000.L");
        assert_eq!(mount_options("cache=none,msize=8"), "trans=virtio,version=9p2000.L,cache=none,msize=8");
    }
}

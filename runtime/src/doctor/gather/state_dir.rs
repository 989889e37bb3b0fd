//! The directory where sandboxes live, or the place where it would be made.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::StatVfsMountFlags;

use super::super::facts::{FilesystemFacts, StateDirFacts};
use super::system;

pub(super) fn look(dir: &Path) -> StateDirFacts {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let sandboxes = std::fs::symlink_metadata(dir.join("sb")).ok();
    StateDirFacts {
        path: dir.to_owned(),
        existing: existing.to_owned(),
        fstype: system::filesystem_type(existing),
        filesystem: filesystem(existing).map_err(|e| e.to_string()),
        sandboxes: sandboxes.map(|meta| (meta.uid(), meta.mode() & 0o7777)),
    }
}

fn filesystem(path: &Path) -> std::io::Result<FilesystemFacts> {
    let facts = rustix::fs::statvfs(path)?;
    Ok(FilesystemFacts {
        read_only: facts.f_flag.contains(StatVfsMountFlags::RDONLY),
        nosuid: facts.f_flag.contains(StatVfsMountFlags::NOSUID),
        free_mib: facts.f_bavail.saturating_mul(facts.f_frsize) >> 20,
    })
}

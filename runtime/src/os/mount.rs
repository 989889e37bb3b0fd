//! Mounts of the host.

use std::io;
use std::path::{Path, PathBuf};

use super::system;

/// A mount as containerd and mount(8) describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// File system, or `bind` (Linux) or `nullfs` (FreeBSD).
    pub fstype: String,
    /// Device, directory, or whatever the file system calls its source.
    pub source: PathBuf,
    /// An existing directory or file.
    pub target: PathBuf,
    /// Options of mount(8): flags by name, the rest goes to the file system. On Linux also `rro`: read-only with all
    /// that is mounted below.
    pub options: Vec<String>,
}

/// A mount could not be made, undone or listed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Not made.
    #[error("cannot mount {} ({fstype}) on {}: {error}", from.display(), target.display())]
    Mount {
        /// File system.
        fstype: String,
        /// What was to be mounted.
        from: PathBuf,
        /// Where.
        target: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// Not undone.
    #[error("cannot unmount {}: {source}", target.display())]
    Unmount {
        /// Where.
        target: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not listed.
    #[error("cannot list mounts: {0}")]
    List(io::Error),
}

/// Mounts; when it fails, nothing is mounted.
pub fn mount(request: &MountRequest) -> Result<(), MountError> {
    let MountRequest { fstype, source, target, options } = request;
    system::mount(fstype, source, target, options).map_err(|error| MountError::Mount {
        fstype: fstype.clone(),
        from: source.clone(),
        target: target.clone(),
        error,
    })
}

/// More mounts on one place than any caller makes.
const MOST_LAYERS: usize = 64;

/// Unmounts whatever is mounted on `target`, layer by layer. That nothing is, or that `target` does not exist, is
/// success. What somebody still uses is detached and goes away with its last user.
pub fn unmount(target: &Path) -> Result<(), MountError> {
    let error = |source| MountError::Unmount { target: target.to_owned(), source };
    for _ in 0..MOST_LAYERS {
        if !system::unmount_once(target).map_err(error)? {
            return Ok(());
        }
    }
    Err(error(io::Error::other(format!("still mounted after {MOST_LAYERS} times"))))
}

/// Size in bytes of the file system in memory (tmpfs) that `path` is on; nothing if it is on another one.
pub fn memory_filesystem_bytes(path: &Path) -> Option<u64> {
    system::memory_filesystem_bytes(path)
}

/// Where something is mounted at or below `dir`, the deepest first.
pub fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, MountError> {
    // The kernel lists real paths.
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(MountError::List(e)),
    };
    let mut points = system::mount_points().map_err(MountError::List)?;
    points.retain(|point| point.starts_with(&dir));
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    Ok(points)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
pub(crate) mod tests {
    use super::*;

    /// Runs `test` where its mounts are seen by nobody else and vanish with it; needs root, without which the test is
    /// skipped and says so.
    pub(crate) fn in_private_namespace(test: impl FnOnce() + Send) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        std::thread::scope(|scope| {
            let run = || {
                use rustix::thread::UnshareFlags;
                // SAFETY: only this thread, which ends with the test, leaves the mount namespace.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
                let flags =
                    rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
                rustix::mount::mount_change("/", flags).unwrap();
                test();
            };
            if let Err(panic) = scope.spawn(run).join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn request(fstype: &str, source: &Path, target: &Path, options: &[&str]) -> MountRequest {
        MountRequest {
            fstype: fstype.into(),
            source: source.into(),
            target: target.into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        }
    }

    #[test]
    fn a_read_only_bind_mount_is_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        in_private_namespace(|| {
            mount(&request("bind", &from, &to, &["rbind", "ro", "nosuid"])).unwrap();
            assert_eq!(
                std::fs::write(to.join("x"), "").unwrap_err().kind(),
                io::ErrorKind::ReadOnlyFilesystem
            );
            std::fs::write(from.join("x"), "").unwrap();
            // Twice on the same place: both go.
            mount(&request("tmpfs", Path::new("none"), &to, &["size=64k", "nodev"])).unwrap();
            assert_eq!(mounts_below(dir.path()).unwrap(), [to.clone(), to.clone()]);
            unmount(&to).unwrap();
            unmount(&to).unwrap();
            assert!(mounts_below(dir.path()).unwrap().is_empty());
        });
    }

    #[test]
    fn a_busy_mount_is_detached() {
        let dir = tempfile::tempdir().unwrap();
        in_private_namespace(|| {
            mount(&request("tmpfs", Path::new("none"), dir.path(), &[])).unwrap();
            let file = std::fs::File::create(dir.path().join("open")).unwrap();
            unmount(dir.path()).unwrap();
            assert!(mounts_below(dir.path()).unwrap().is_empty());
            drop(file);
        });
    }

    #[test]
    fn an_overlay_of_many_layers_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        // Longer than a page together, but not by what differs.
        let base = dir.path().join("a-rather-long-name-".repeat(6));
        let layers: Vec<PathBuf> = (0..100).map(|i| base.join(format!("{i}"))).collect();
        for layer in &layers {
            std::fs::create_dir_all(layer).unwrap();
        }
        std::fs::write(layers[99].join("deepest"), "here").unwrap();
        let target = dir.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let joined: Vec<&str> = layers.iter().map(|l| l.to_str().unwrap()).collect();
        let lower = format!("lowerdir={}", joined.join(":"));
        assert!(lower.len() > rustix::param::page_size());
        let before = std::env::current_dir().unwrap();
        in_private_namespace(|| {
            mount(&request("overlay", Path::new("overlay"), &target, &[&lower])).unwrap();
            assert_eq!(std::fs::read_to_string(target.join("deepest")).unwrap(), "here");
        });
        assert_eq!(std::env::current_dir().unwrap(), before);
    }

    #[test]
    fn what_cannot_be_mounted_is_named() {
        in_private_namespace(|| {
            let error =
                mount(&request("bind", Path::new("/nonexistent/a"), Path::new("/tmp"), &[])).unwrap_err();
            assert!(error.to_string().starts_with("cannot mount /nonexistent/a (bind) on /tmp:"), "{error}");
        });
    }
}

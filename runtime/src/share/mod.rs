//! What of the host a guest sees: roots of containers and volumes, mounted below the sandbox's share directory.
//!
//! Each container has one directory there, and in it `rootfs` and `mounts/<n>`. Every mount is in the journal before
//! it is made. The directory belongs to Skep alone until the VM's file server opens it, and no path below a mount is
//! ever followed on the host: what a guest writes there can't lead a later mount astray.

use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    container::spec::Volume,
    journal::{Entry, EntryId, Journal, JournalError},
    os::{self, MountError, MountRequest, TreeError},
};

/// The file system that shows a directory in a second place.
const BIND: &str = if cfg!(target_os = "freebsd") { "nullfs" } else { "bind" };

/// What every mount gets on top: what a guest makes set-user-ID means nothing to the host.
#[cfg(target_os = "freebsd")]
const HARMLESS: Option<&str> = Some("nosuid");
#[cfg(not(target_os = "freebsd"))]
const HARMLESS: Option<&str> = None;

/// Where a container's root comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// Mounts made on one place in this order, as a snapshotter describes them.
    Mounts(Vec<RootfsMount>),
    /// A directory that is there already.
    Directory(PathBuf),
}

/// One mount of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsMount {
    /// File system.
    pub fstype: String,
    /// Device, directory or data set.
    pub source: PathBuf,
    /// Where in the root it belongs; empty for the root itself.
    pub target: String,
    /// Options of mount(8).
    pub options: Vec<String>,
}

/// A container's share of the host could not be made or undone.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// A mount that has to be made inside another.
    #[error("rootfs mount {number} ({fstype}): mounting on {target:?} inside the root is not supported yet")]
    Inner {
        /// Its place in the list, from 0.
        number: usize,
        /// Its file system.
        fstype: String,
        /// Where it was to be mounted.
        target: String,
    },
    /// A file system that can't be shared.
    #[error("rootfs mount {number} ({fstype} from {}): {reason}", from.display())]
    Unsupported {
        /// Its place in the list, from 0.
        number: usize,
        /// Its file system.
        fstype: String,
        /// What was to be mounted.
        from: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// There is no root.
    #[error("rootfs: {}: {error}", path.display())]
    Rootfs {
        /// The directory that should be it.
        path: PathBuf,
        /// What is wrong with it.
        error: io::Error,
    },
    /// A directory or file to mount on could not be made.
    #[error("cannot create {}: {error}", path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The container's directory.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// What one container has below the share directory.
#[derive(Debug)]
pub struct Share {
    dir: PathBuf,
    mounts: Vec<(EntryId, PathBuf)>,
}

/// The name of a container's directory: short, and the same whatever the id is made of.
pub fn directory_name(container_id: &str) -> String {
    crate::guest::hex(&Sha256::digest(container_id)[..6])
}

impl Share {
    /// Nothing, for a container that has nothing at `dir`.
    pub fn none(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), mounts: Vec::new() }
    }

    /// Mounts a root and volumes below `dir`, which must not exist yet. When it fails, nothing is left.
    ///
    /// With `readonly` the root is read-only for the guest's kernel, too.
    pub fn attach(
        journal: &Journal,
        dir: &Path,
        rootfs: &Rootfs,
        readonly: bool,
        volumes: &[Volume],
    ) -> Result<Self, ShareError> {
        let requests = plan(dir, rootfs, readonly, volumes)?;
        let mut share = Self { dir: dir.to_owned(), mounts: Vec::new() };
        create_dir(dir)?;
        let result = share.mount_all(journal, volumes, &requests);
        if let Err(error) = result {
            for problem in share.detach(journal) {
                tracing::warn!(%problem, "undoing a failed share");
            }
            return Err(error);
        }
        Ok(share)
    }

    fn mount_all(
        &mut self,
        journal: &Journal,
        volumes: &[Volume],
        requests: &[MountRequest],
    ) -> Result<(), ShareError> {
        create_dir(&self.dir.join("rootfs"))?;
        if !volumes.is_empty() {
            create_dir(&self.dir.join("mounts"))?;
        }
        for volume in volumes {
            let target = self.dir.join(&volume.name);
            if volume.directory { create_dir(&target)? } else { create_file(&target)? }
        }
        for request in requests {
            let id = journal.record(Entry::Mount { target: request.target.clone() })?;
            // Kept even if it fails: unmounting what is not mounted is no error.
            self.mounts.push((id, request.target.clone()));
            os::mount(request)?;
        }
        Ok(())
    }

    /// Unmounts everything, busy or not, and removes the directory. Goes on after errors and returns them; what
    /// could not be undone stays in the journal.
    pub fn detach(&mut self, journal: &Journal) -> Vec<ShareError> {
        let mut problems = Vec::new();
        let mut kept = Vec::new();
        for (id, target) in self.mounts.drain(..).rev() {
            let undone = os::unmount(&target).map_err(ShareError::from);
            match undone.and_then(|()| Ok(journal.strike(id)?)) {
                Ok(()) => {}
                Err(problem) => {
                    problems.push(problem);
                    kept.push((id, target));
                }
            }
        }
        kept.reverse();
        self.mounts = kept;
        if let Err(problem) = os::remove_tree(&self.dir) {
            problems.push(problem.into());
        }
        problems
    }
}

/// The mounts to make, in order.
fn plan(
    dir: &Path,
    rootfs: &Rootfs,
    readonly: bool,
    volumes: &[Volume],
) -> Result<Vec<MountRequest>, ShareError> {
    let root = dir.join("rootfs");
    let mut requests = Vec::new();
    match rootfs {
        Rootfs::Directory(path) => {
            let directory = path.metadata().and_then(|metadata| {
                if metadata.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
            });
            directory.map_err(|error| ShareError::Rootfs { path: path.clone(), error })?;
            let options = bind_options(true, readonly, false);
            requests.push(MountRequest { fstype: BIND.into(), source: path.clone(), target: root, options });
        }
        Rootfs::Mounts(mounts) => {
            for (number, mount) in mounts.iter().enumerate() {
                check(number, mount)?;
                let mut options = mount.options.clone();
                if readonly {
                    options.push("ro".into());
                }
                options.extend(HARMLESS.map(str::to_owned));
                requests.push(MountRequest {
                    fstype: mount.fstype.clone(),
                    source: mount.source.clone(),
                    target: root.clone(),
                    options,
                });
            }
        }
    }
    for volume in volumes {
        requests.push(MountRequest {
            fstype: BIND.into(),
            source: volume.source.clone(),
            target: dir.join(&volume.name),
            options: bind_options(volume.recursive, volume.readonly, volume.follows_host),
        });
    }
    Ok(requests)
}

fn check(number: usize, mount: &RootfsMount) -> Result<(), ShareError> {
    let RootfsMount { fstype, source, target, options } = mount;
    if !target.trim_matches('/').is_empty() {
        return Err(ShareError::Inner { number, fstype: fstype.clone(), target: target.clone() });
    }
    if options.iter().any(|option| option == "loop") {
        return Err(ShareError::Unsupported {
            number,
            fstype: fstype.clone(),
            from: source.clone(),
            reason: "disk images as roots are not supported yet: use a snapshotter that makes directories",
        });
    }
    Ok(())
}

fn bind_options(recursive: bool, readonly: bool, follows_host: bool) -> Vec<String> {
    let mut options = Vec::new();
    if cfg!(not(target_os = "freebsd")) {
        options.push(if recursive { "rbind" } else { "bind" });
        options.push(if follows_host { "rslave" } else { "rprivate" });
    }
    options.extend(HARMLESS);
    options.push(match (readonly, recursive) {
        (false, _) => "rw",
        // What is mounted below the source is the guest's to read as well, and no more.
        (true, true) if cfg!(target_os = "linux") => "rro",
        (true, _) => "ro",
    });
    options.into_iter().map(str::to_owned).collect()
}

/// Makes a directory that every user of the guest may pass through, whatever this process's umask: bhyve's file server
/// asks its mode. It is below a directory that is the owner's alone.
fn create_dir(path: &Path) -> Result<(), ShareError> {
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::create_dir(path)
        .and_then(|()| std::fs::set_permissions(path, open))
        .map_err(|error| ShareError::Create { path: path.to_owned(), error })
}

fn create_file(path: &Path) -> Result<(), ShareError> {
    let created = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    created.map(drop).map_err(|error| ShareError::Create { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(target: &str, options: &[&str]) -> RootfsMount {
        RootfsMount {
            fstype: "overlay".into(),
            source: "overlay".into(),
            target: target.into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        }
    }

    fn volume(name: &str, source: &Path, directory: bool, readonly: bool) -> Volume {
        Volume {
            source: source.into(),
            directory,
            readonly,
            recursive: true,
            follows_host: false,
            name: name.into(),
        }
    }

    #[test]
    fn names_are_short_and_differ() {
        assert_eq!(directory_name("t1").len(), 12);
        assert_ne!(directory_name("t1"), directory_name("t2"));
        assert!(directory_name("../../etc").chars().all(|c| c.is_ascii_hexdigit()));
    }

    #[test]
    fn root_and_volumes_are_planned_in_order() {
        let rootfs = Rootfs::Mounts(vec![overlay("", &["lowerdir=/a:/b"]), overlay("/", &["index=off"])]);
        let volumes = [volume("mounts/0", Path::new("/srv/a"), true, true)];
        let requests = plan(Path::new("/s/c"), &rootfs, true, &volumes).unwrap();
        let targets: Vec<&Path> = requests.iter().map(|request| request.target.as_path()).collect();
        assert_eq!(targets, ["/s/c/rootfs", "/s/c/rootfs", "/s/c/mounts/0"].map(Path::new));
        let expected: Vec<&str> = ["lowerdir=/a:/b", "ro"].into_iter().chain(HARMLESS).collect();
        assert_eq!(requests[0].options, expected);
        assert!(requests[2].options.iter().any(|option| option.ends_with("ro")), "{:?}", requests[2].options);
    }

    #[test]
    fn what_cannot_be_shared_is_named() {
        let inner = Rootfs::Mounts(vec![overlay("usr", &[])]);
        let error = plan(Path::new("/s"), &inner, false, &[]).unwrap_err().to_string();
        assert!(error.contains("mount 0") && error.contains("usr"), "{error}");
        let image = Rootfs::Mounts(vec![overlay("", &["loop"])]);
        assert!(plan(Path::new("/s"), &image, false, &[]).unwrap_err().to_string().contains("disk images"));
        let missing = Rootfs::Directory("/no/such/root".into());
        let error = plan(Path::new("/s"), &missing, false, &[]).unwrap_err().to_string();
        assert!(error.contains("/no/such/root"), "{error}");
    }

    /// Needs root: makes real mounts.
    #[test]
    fn a_share_is_made_and_undone() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        for dir in ["root", "data"] {
            std::fs::create_dir(path(dir)).unwrap();
        }
        std::fs::write(path("root/in-root"), "r").unwrap();
        std::fs::write(path("file"), "f").unwrap();
        let journal = Journal::create(&path("journal")).unwrap();
        let volumes =
            [volume("mounts/0", &path("data"), true, false), volume("mounts/1", &path("file"), false, true)];
        let rootfs = Rootfs::Directory(path("root"));
        let dir = path("share");
        let mut share = Share::attach(&journal, &dir, &rootfs, false, &volumes).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("rootfs/in-root")).unwrap(), "r");
        assert_eq!(std::fs::read_to_string(dir.join("mounts/1")).unwrap(), "f");
        std::fs::write(dir.join("mounts/0/new"), "n").unwrap();
        let refused = std::fs::write(dir.join("mounts/1"), "changed").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(journal.entries().len(), 3);
        // Busy ones go as well.
        let busy = std::fs::File::open(dir.join("rootfs/in-root")).unwrap();
        assert!(share.detach(&journal).is_empty());
        drop(busy);
        assert!(!dir.exists());
        assert!(journal.entries().is_empty());
        assert!(os::mounts_below(temp.path()).unwrap().is_empty());
        assert!(path("root/in-root").exists() && path("data/new").exists());

        // One bad mount: everything before it is undone.
        let mut bad = volumes.to_vec();
        bad.push(volume("mounts/2", &path("missing"), true, false));
        Share::attach(&journal, &dir, &rootfs, false, &bad).unwrap_err();
        assert!(!dir.exists());
        assert!(journal.entries().is_empty());
        assert!(os::mounts_below(temp.path()).unwrap().is_empty());
    }

    /// Needs root: makes real mounts.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_mounted_below_a_readonly_volume_is_readonly() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        for dir in ["root", "data", "data/inner", "other"] {
            std::fs::create_dir(path(dir)).unwrap();
        }
        crate::os::in_private_namespace(|| {
            os::mount(&MountRequest {
                fstype: "bind".into(),
                source: path("other"),
                target: path("data/inner"),
                options: vec!["nosuid".into()],
            })
            .unwrap();
            let journal = Journal::create(&path("journal")).unwrap();
            let volumes = [volume("mounts/0", &path("data"), true, true)];
            let mut share =
                Share::attach(&journal, &path("share"), &Rootfs::Directory(path("root")), false, &volumes)
                    .unwrap();
            let refused = std::fs::write(path("share/mounts/0/inner/new"), "").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
            std::fs::write(path("data/inner/new"), "").unwrap();
            assert!(path("share/mounts/0/inner/new").exists());
            assert!(share.detach(&journal).is_empty());
            os::unmount(&path("data/inner")).unwrap();
        });
    }
}

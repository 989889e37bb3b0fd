//! Where sandboxes keep what is theirs: `<state_dir>/sb/<hash>`.
//!
//! The hash is of namespace and id, because a unix socket's path has at most 104 bytes and an id may have more. Making
//! and removing such a directory happens under one lock for all of them, so that nobody takes one that is half made
//! for one that was left behind.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::journal::{Journal, JournalError, lock};
use crate::os::{TreeError, remove_tree};

/// A sandbox's directory cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// There is one.
    #[error(
        "sandbox {id} exists already in {}; if nobody uses it any more, `skep gc` removes it", dir.display()
    )]
    Exists {
        /// The caller's name for it.
        id: String,
        /// Its directory.
        dir: PathBuf,
    },
    /// Others could change what is in it.
    #[error("{} must belong to user {uid} and be writable for nobody else; its owner is {owner} and its mode {mode:o}", dir.display())]
    Unsafe {
        /// The directory.
        dir: PathBuf,
        /// The caller's user id.
        uid: u32,
        /// The owner's.
        owner: u32,
        /// Permissions.
        mode: u32,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its journal or the lock failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It cannot be removed.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// How long somebody else may take to make or remove one directory.
const LOCK: Duration = Duration::from_secs(10);

/// A sandbox's directory.
#[derive(Debug, Clone)]
pub(super) struct SandboxDir {
    path: PathBuf,
    share: PathBuf,
}

/// The directory of all sandboxes.
#[derive(Debug)]
pub(super) struct Sandboxes {
    path: PathBuf,
}

impl SandboxDir {
    fn at(path: PathBuf) -> Self {
        Self { share: path.join("share"), path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn share(&self) -> &Path {
        &self.share
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Last component of the path: 16 hex digits.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.file("journal")
    }

    /// Removes it with all that is in it, unless something is mounted there.
    pub(super) fn remove(&self) -> Result<(), DirError> {
        let Some(all) = self.path.parent() else { return Ok(()) };
        match Sandboxes::at(all.to_owned()).lock()? {
            Some(_lock) => Ok(remove_tree(&self.path)?),
            None => Ok(()),
        }
    }
}

impl Sandboxes {
    pub(super) fn of(state_dir: &Path) -> Self {
        Self::at(state_dir.join("sb"))
    }

    fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where the sandbox of that name is or would be.
    pub(super) fn dir(&self, namespace: &str, id: &str) -> SandboxDir {
        let mut hasher = Sha256::new();
        // Neither can contain a zero, so no two pairs are the same text.
        hasher.update(namespace);
        hasher.update([0]);
        hasher.update(id);
        SandboxDir::at(self.path.join(crate::guest::hex(&hasher.finalize()[..8])))
    }

    /// Makes the directory of a sandbox, with its journal, which is locked.
    pub(super) fn create(&self, namespace: &str, id: &str) -> Result<(SandboxDir, Journal), DirError> {
        self.make()?;
        let _lock = self.lock()?;
        let dir = self.dir(namespace, id);
        match private().create(&dir.path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(DirError::Exists { id: id.to_owned(), dir: dir.path });
            }
            Err(source) => return Err(DirError::System { action: "create", path: dir.path, source }),
        }
        let fill = || {
            let journal = Journal::create(&dir.journal())?;
            // Users of the guest's pass through it, as far as a container's users are not the guest's own; on the host
            // nobody gets here.
            std::fs::create_dir(&dir.share)
                .and_then(|()| std::fs::set_permissions(&dir.share, Permissions::from_mode(0o711)))
                .map_err(|source| DirError::System { action: "create", path: dir.share.clone(), source })?;
            Ok(journal)
        };
        match fill() {
            Ok(journal) => Ok((dir, journal)),
            Err(e) => {
                // Nothing can be mounted there yet. What cannot be removed now, `gc` finds.
                let _ = remove_tree(&dir.path);
                Err(e)
            }
        }
    }

    /// Opens the journal of a directory that somebody left, waiting for its owner's end at most for `limit`. A
    /// directory without one was being made or removed when its owner died: it is removed.
    pub(super) fn take(&self, dir: &SandboxDir, limit: Duration) -> Result<Option<Journal>, DirError> {
        if let Some(journal) = Journal::open(&dir.journal(), limit)? {
            return Ok(Some(journal));
        }
        let lock = self.lock()?;
        if lock.is_some() && !dir.journal().exists() {
            remove_tree(&dir.path)?;
        }
        Ok(None)
    }

    /// All that there are.
    pub(super) fn all(&self) -> Result<Vec<SandboxDir>, DirError> {
        let error = |source| DirError::System { action: "list", path: self.path.clone(), source };
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(error(e)),
        };
        let mut dirs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(error)?;
            if entry.file_type().map_err(error)?.is_dir() {
                dirs.push(SandboxDir::at(entry.path()));
            }
        }
        dirs.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(dirs)
    }

    fn make(&self) -> Result<(), DirError> {
        private().recursive(true).create(&self.path).map_err(|source| DirError::System {
            action: "create",
            path: self.path.clone(),
            source,
        })?;
        let meta = std::fs::symlink_metadata(&self.path).map_err(|source| DirError::System {
            action: "look at",
            path: self.path.clone(),
            source,
        })?;
        let (uid, owner, mode) = (rustix::process::geteuid().as_raw(), meta.uid(), meta.mode() & 0o7777);
        if !meta.is_dir() || owner != uid || mode & 0o022 != 0 {
            return Err(DirError::Unsafe { dir: self.path.clone(), uid, owner, mode });
        }
        Ok(())
    }

    /// The lock for making and removing; none if there is not even the directory.
    fn lock(&self) -> Result<Option<File>, DirError> {
        let path = self.path.join("lock");
        let file = match File::options().write(true).create(true).truncate(false).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DirError::System { action: "open", path, source }),
        };
        lock(&file, &path, LOCK)?;
        Ok(Some(file))
    }
}

fn private() -> std::fs::DirBuilder {
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_differ() {
        let all = Sandboxes::of(Path::new("/run/skep"));
        let dir = all.dir("k8s.io", &"x".repeat(200));
        assert_eq!(dir.path().as_os_str().len(), "/run/skep/sb/".len() + 16);
        assert_ne!(all.dir("a", "bc").path(), all.dir("ab", "c").path());
        assert_eq!(all.dir("a", "b").path(), all.dir("a", "b").path());
        assert_eq!(dir.name().len(), 16);
    }

    #[test]
    fn a_sandbox_is_made_once() {
        let state = tempfile::tempdir().unwrap();
        let all = Sandboxes::of(state.path());
        assert!(all.all().unwrap().is_empty());
        let (dir, journal) = all.create("ns", "a").unwrap();
        assert_eq!(std::fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
        assert!(dir.share().is_dir());
        assert!(matches!(all.create("ns", "a"), Err(DirError::Exists { .. })));
        assert!(matches!(all.take(&dir, Duration::ZERO), Err(DirError::Journal(JournalError::InUse { .. }))));
        drop(journal);
        assert!(all.take(&dir, Duration::from_secs(60)).unwrap().is_some());
        dir.remove().unwrap();
        assert!(all.all().unwrap().is_empty());
        dir.remove().unwrap();
        all.create("ns", "a").unwrap();
    }

    #[test]
    fn a_directory_without_a_journal_is_a_leftover() {
        let state = tempfile::tempdir().unwrap();
        let all = Sandboxes::of(state.path());
        let (dir, journal) = all.create("ns", "a").unwrap();
        drop(journal);
        std::fs::remove_file(dir.journal()).unwrap();
        assert!(all.take(&dir, Duration::ZERO).unwrap().is_none());
        assert!(!dir.path().exists());
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;

        let state = tempfile::tempdir().unwrap();
        let all = Sandboxes::of(state.path());
        all.make().unwrap();
        std::fs::set_permissions(&all.path, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(all.create("ns", "a"), Err(DirError::Unsafe { mode: 0o777, .. })));
    }
}

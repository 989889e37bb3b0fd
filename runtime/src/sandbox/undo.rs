//! Undoing what a journal says: every entry is tried, whatever happens to the others.

use std::fmt;
use std::time::Duration;

use super::dir::SandboxDir;
use crate::journal::{Entry, Journal, JournalError, LOGGER};
use crate::os::{MountError, ProcessError, TreeError, remove_tree, unmount};

/// How long a killed process may take to go.
const KILL: Duration = Duration::from_secs(10);
/// How long a logger may write after the end of what it logs.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Something of a sandbox could not be undone; everything else was.
#[derive(Debug)]
pub struct UndoErrors {
    /// The sandbox's directory, where its journal still says what is left.
    pub dir: std::path::PathBuf,
    /// What went wrong, never empty.
    pub errors: Vec<UndoError>,
}

impl fmt::Display for UndoErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not all of the sandbox in {} could be undone", self.dir.display())?;
        for error in &self.errors {
            write!(f, "; {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for UndoErrors {}

/// One thing could not be undone.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A VM of the kernel's.
    #[error(transparent)]
    Vm(#[from] crate::hypervisor::HypervisorError),
    /// A mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// An interface.
    #[error(transparent)]
    Network(#[from] crate::network::NetworkError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// A directory.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file.
    #[error("cannot remove {}: {source}", path.display())]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The sandbox's directory.
    #[error(transparent)]
    Dir(#[from] super::DirError),
    /// A record that this release does not understand.
    #[error("unknown record in the journal: {0}")]
    Unknown(String),
    /// The work was not done.
    #[error("undoing was interrupted: {0}")]
    Interrupted(String),
}

/// Undoes everything: processes first and then VMs, since they use the rest, then the other entries, always the latest
/// first, then the directory itself. Blocks, each wait being bounded.
pub(super) fn undo_all(dir: &SandboxDir, journal: &Journal) -> Result<(), UndoErrors> {
    let mut errors: Vec<UndoError> = journal.problems().iter().cloned().map(UndoError::Unknown).collect();
    let mut entries = journal.entries();
    entries.reverse();
    entries.sort_by_key(|(_, entry)| match entry {
        // What it reads ends with the VM and whoever moved its bytes.
        Entry::Process { role, .. } if role == LOGGER => 2,
        Entry::Process { .. } => 0,
        Entry::Vm { .. } => 1,
        Entry::Mount { .. }
        | Entry::Redirect { .. }
        | Entry::Tap { .. }
        | Entry::Jail { .. }
        | Entry::Cni { .. }
        | Entry::Cgroup { .. }
        | Entry::Directory { .. }
        | Entry::File { .. } => 3,
    });
    for (id, entry) in entries {
        match undo(&entry, journal) {
            Ok(()) => {
                if let Err(e) = journal.strike(id) {
                    errors.push(e.into());
                }
            }
            Err(e) => errors.push(e),
        }
    }
    // What is left needs its journal.
    if errors.is_empty()
        && let Err(e) = dir.remove()
    {
        errors.push(e.into());
    }
    if errors.is_empty() { Ok(()) } else { Err(UndoErrors { dir: dir.path().to_owned(), errors }) }
}

/// Undoes one entry. That it does not exist is success: it may not have been acquired.
fn undo(entry: &Entry, journal: &Journal) -> Result<(), UndoError> {
    tracing::debug!("undoing {entry}");
    match entry {
        Entry::Process { role, process } if role == LOGGER && process.wait(LAST_LINES)? => Ok(()),
        Entry::Process { process, .. } => Ok(process.kill_and_wait(KILL)?),
        Entry::Vm { name } => Ok(crate::hypervisor::release(name)?),
        Entry::Mount { target } => Ok(unmount(target)?),
        Entry::Redirect { netns, interface } => {
            Ok(crate::network::release(&crate::network::Taken { netns, interface })?)
        }
        Entry::Tap { name, first, jail } => Ok(crate::network::remove_tap(name, first, jail.as_deref())?),
        Entry::Jail { name } => Ok(crate::network::remove_jail(name)?),
        Entry::Cni { attachment } => {
            Ok(crate::network::cni::undo(attachment, journal).map_err(crate::network::NetworkError::from)?)
        }
        Entry::Cgroup { path } => Ok(crate::cgroup::remove(path)?),
        Entry::Directory { path } => Ok(remove_tree(path)?),
        Entry::File { path } => match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(UndoError::File { path: path.clone(), source: e })
            }
            _ => Ok(()),
        },
    }
}

/// Runs `work` where blocking is allowed.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UndoErrors> + Send + 'static,
) -> Result<T, UndoErrors> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(UndoErrors {
            dir: std::path::PathBuf::new(),
            errors: vec![UndoError::Interrupted(e.to_string())],
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::sandbox::dir::Sandboxes;

    #[test]
    fn everything_is_undone_whether_it_exists_or_not() {
        let state = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let (dir, journal) = Sandboxes::of(state.path()).create("ns", "a").unwrap();
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        let (mut child, process, _) = journal.spawn("test", sleep, &[]).unwrap();
        let (tree, file) = (outside.path().join("tree"), outside.path().join("file"));
        journal.record(Entry::Directory { path: tree.clone() }).unwrap();
        std::fs::create_dir_all(tree.join("deep")).unwrap();
        journal.record(Entry::File { path: file.clone() }).unwrap();
        std::fs::write(&file, "").unwrap();
        for name in ["never-made-file", "never/made"] {
            journal.record(Entry::File { path: outside.path().join(name) }).unwrap();
            journal.record(Entry::Directory { path: outside.path().join(name) }).unwrap();
            journal.record(Entry::Mount { target: outside.path().join(name) }).unwrap();
        }
        undo_all(&dir, &journal).unwrap();
        assert!(!process.is_alive().unwrap());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(!dir.path().exists());
        child.wait().unwrap();
    }

    #[test]
    fn an_error_stops_nothing_and_leaves_the_journal() {
        let state = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let (dir, journal) = Sandboxes::of(state.path()).create("ns", "a").unwrap();
        let (first, stuck, last) =
            (outside.path().join("first"), outside.path().join("stuck"), outside.path().join("last"));
        for path in [&first, &stuck, &last] {
            journal.record(Entry::File { path: path.clone() }).unwrap();
        }
        std::fs::write(&first, "").unwrap();
        // A directory is not a file.
        std::fs::create_dir(&stuck).unwrap();
        std::fs::write(&last, "").unwrap();
        let errors = undo_all(&dir, &journal).unwrap_err();
        assert_eq!(errors.errors.len(), 1);
        assert!(errors.to_string().contains(&stuck.display().to_string()), "{errors}");
        assert!(!first.exists() && !last.exists());
        assert_eq!(journal.entries().len(), 1);
        // Whoever comes later finishes.
        std::fs::remove_dir(&stuck).unwrap();
        undo_all(&dir, &journal).unwrap();
        assert!(!dir.path().exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_mount_that_nobody_recorded_keeps_the_directory() {
        use crate::os::{MountRequest, mount};

        let state = tempfile::tempdir().unwrap();
        let (dir, journal) = Sandboxes::of(state.path()).create("ns", "a").unwrap();
        let user = tempfile::tempdir().unwrap();
        std::fs::write(user.path().join("data"), "precious").unwrap();
        let rootfs = dir.share().join("rootfs");
        std::fs::create_dir(&rootfs).unwrap();
        crate::os::in_private_namespace(|| {
            let bind = |target: &std::path::Path| MountRequest {
                fstype: "bind".into(),
                source: user.path().into(),
                target: target.into(),
                options: Vec::new(),
            };
            mount(&bind(&rootfs)).unwrap();
            let errors = undo_all(&dir, &journal).unwrap_err();
            assert!(errors.to_string().contains("something is mounted on"), "{errors}");
            // Recorded, it goes, however often it was mounted.
            journal.record(Entry::Mount { target: rootfs.clone() }).unwrap();
            mount(&bind(&rootfs)).unwrap();
            undo_all(&dir, &journal).unwrap();
            assert!(!dir.path().exists());
        });
        assert_eq!(std::fs::read_to_string(user.path().join("data")).unwrap(), "precious");
    }
}

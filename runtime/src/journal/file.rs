//! The journal's file and its lock.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::replay::{HEADER, Line, replay};
use super::{Entry, EntryId};

/// A journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refused.
    #[error("cannot {action} the journal {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the journal {} is still in use by another process after {} s", path.display(), waited.as_secs())]
    InUse {
        /// The file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A process could not be started.
    #[error("cannot start {}: {source}", program.display())]
    Spawn {
        /// Which.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A process was started and was gone before it could be looked at.
    #[error(transparent)]
    Process(#[from] crate::os::ProcessError),
}

/// A journal that is open and locked.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    pub(super) file: File,
    pub(super) state: Mutex<State>,
    problems: Vec<String>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) entries: BTreeMap<EntryId, Entry>,
    pub(super) next: u64,
}

/// More than any sandbox writes.
const MOST_BYTES: u64 = 64 << 20;

/// How often a lock that another process holds is asked for again.
const RETRY: Duration = Duration::from_millis(10);

impl Journal {
    /// Makes a journal where there is none, and locks it.
    pub fn create(path: &Path) -> Result<Self, JournalError> {
        let error = |source| JournalError::System { action: "create", path: path.to_owned(), source };
        let mut file = options().create_new(true).open(path).map_err(error)?;
        lock(&file, path, Duration::ZERO)?;
        file.write_all(HEADER.as_bytes()).map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            state: Mutex::new(State { entries: BTreeMap::new(), next: 0 }),
            problems: Vec::new(),
        })
    }

    /// What a journal says at this moment, whoever has it; nothing if there is none.
    pub fn peek(path: &Path) -> Result<Vec<Entry>, JournalError> {
        let error = |source| JournalError::System { action: "read", path: path.to_owned(), source };
        let mut bytes = Vec::new();
        match options().open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes)) {
            Ok(_) => Ok(replay(&bytes).entries.into_values().collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(error(e)),
        }
    }

    /// Opens a journal that somebody left, waiting for its lock at most for `limit`. Nothing if there is none (any
    /// more). What was being written when its writer died is cut off.
    pub fn open(path: &Path, limit: Duration) -> Result<Option<Self>, JournalError> {
        let error = |action| move |source| JournalError::System { action, path: path.to_owned(), source };
        let file = match options().open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(error("open")(e)),
        };
        lock(&file, path, limit)?;
        // Whoever had the lock may have removed the file, and somebody may have made another.
        let same = match std::fs::symlink_metadata(path) {
            Ok(now) => {
                let ours = file.metadata().map_err(error("open"))?;
                (now.dev(), now.ino()) == (ours.dev(), ours.ino())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(error("open")(e)),
        };
        if !same {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        (&file).take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(error("read"))?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(error("read")(io::Error::other(format!("larger than {MOST_BYTES} bytes"))));
        }
        let replay = replay(&bytes);
        file.set_len(replay.complete as u64).map_err(error("repair"))?;
        if replay.complete == 0 {
            (&file).write_all(HEADER.as_bytes()).map_err(error("repair"))?;
        }
        let problems = replay
            .problems
            .into_iter()
            .map(|(line, text)| format!("{}:{line}: {text}", path.display()))
            .collect();
        Ok(Some(Self {
            path: path.to_owned(),
            file,
            state: Mutex::new(State { entries: replay.entries, next: replay.next }),
            problems,
        }))
    }

    /// Records what is about to be acquired.
    pub fn record(&self, entry: Entry) -> Result<EntryId, JournalError> {
        let mut state = self.lock_state();
        let id = EntryId(state.next);
        self.append(&Line::Acquire { id, entry: entry.clone() })?;
        if entry.outlives_the_kernel() {
            self.file.sync_data().map_err(|source| self.error("sync", source))?;
        }
        state.next += 1;
        state.entries.insert(id, entry);
        Ok(id)
    }

    /// Strikes off what has been released. Striking twice is no error.
    pub fn strike(&self, id: EntryId) -> Result<(), JournalError> {
        let mut state = self.lock_state();
        if state.entries.contains_key(&id) {
            self.append(&Line::Release { id })?;
            state.entries.remove(&id);
        }
        Ok(())
    }

    /// What is held, in the order in which it was recorded.
    pub fn entries(&self) -> Vec<(EntryId, Entry)> {
        self.lock_state().entries.iter().map(|(id, entry)| (*id, entry.clone())).collect()
    }

    /// Lines of a journal that somebody left which make no sense: what they recorded cannot be undone.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn lock_state(&self) -> MutexGuard<'_, State> {
        // Every change below is made whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called with the state locked.
    fn append(&self, line: &Line) -> Result<(), JournalError> {
        let bytes = line.bytes().map_err(|e| self.error("write", e.into()))?;
        let before = self.file.metadata().map_err(|e| self.error("write", e))?.len();
        if let Err(e) = (&self.file).write_all(&bytes) {
            // A part of a line must not stand before the next one.
            let _ = self.file.set_len(before);
            return Err(self.error("write", e));
        }
        Ok(())
    }

    pub(super) fn error(&self, action: &'static str, source: io::Error) -> JournalError {
        JournalError::System { action, path: self.path.clone(), source }
    }
}

fn options() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options
}

/// Locks `file`, asking again until `limit` has passed: only the owner's end or another undo is ever waited for.
pub(crate) fn lock(file: &File, path: &Path, limit: Duration) -> Result<(), JournalError> {
    let start = Instant::now();
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < limit => std::thread::sleep(RETRY),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(JournalError::InUse { path: path.to_owned(), waited: limit });
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => {
                return Err(JournalError::System { action: "lock", path: path.to_owned(), source: e.into() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(name: &str) -> Entry {
        Entry::Mount { target: name.into() }
    }

    /// Another test's child may have a copy of the lock for a moment.
    fn reopened(path: &Path) -> Journal {
        Journal::open(path, Duration::from_secs(60)).unwrap().unwrap()
    }

    #[test]
    fn what_is_held_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        assert!(Journal::open(&path, Duration::ZERO).unwrap().is_none());
        let journal = Journal::create(&path).unwrap();
        let a = journal.record(mount("/a")).unwrap();
        let b = journal.record(mount("/b")).unwrap();
        journal.strike(a).unwrap();
        journal.strike(a).unwrap();
        drop(journal);
        let journal = reopened(&path);
        assert_eq!(journal.entries(), [(b, mount("/b"))]);
        let c = journal.record(mount("/c")).unwrap();
        assert!(c > b);
        assert!(Journal::create(&path).is_err(), "a journal was written over");
    }

    #[test]
    fn a_torn_line_is_cut_off_before_the_next_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::create(&path).unwrap();
        journal.record(mount("/a")).unwrap();
        (&journal.file).write_all(b"{\"acquire\":{\"id\":1,").unwrap();
        drop(journal);
        let journal = reopened(&path);
        journal.record(mount("/b")).unwrap();
        drop(journal);
        let journal = reopened(&path);
        assert!(journal.problems().is_empty(), "{:?}", journal.problems());
        let held: Vec<Entry> = journal.entries().into_iter().map(|(_, entry)| entry).collect();
        assert_eq!(held, [mount("/a"), mount("/b")]);
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::create(&path).unwrap();
        let error = Journal::open(&path, Duration::from_millis(30)).unwrap_err();
        assert!(matches!(error, JournalError::InUse { .. }), "{error}");
        drop(journal);
        reopened(&path);
    }

    #[test]
    fn a_journal_that_was_removed_while_waiting_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::create(&path).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| Journal::open(&path, Duration::from_secs(60)).unwrap());
            std::thread::sleep(Duration::from_millis(50));
            std::fs::remove_file(&path).unwrap();
            drop(journal);
            assert!(waiter.join().unwrap().is_none());
        });
    }
}

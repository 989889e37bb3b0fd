//! What is done from the state directory alone: listing, destroying by name, collecting what was left behind.

use std::path::PathBuf;
use std::time::Duration;

use super::dir::{SandboxDir, Sandboxes};
use super::record::{self, SandboxRecord};
use super::undo::{self, UndoErrors};
use super::{Cost, DirError, JournalError, RecordError};
use crate::config::Config;
use crate::journal::{Entry, Journal, VMM};

/// A sandbox as its files show it.
#[derive(Debug)]
pub struct Listed {
    /// Its directory.
    pub dir: PathBuf,
    /// What it is; nothing while it is being made or removed.
    pub record: Result<Option<SandboxRecord>, RecordError>,
    /// Whether the process that looks after it lives.
    pub owned: bool,
    /// What its VM costs this host; nothing while none runs.
    pub cost: Option<Cost>,
}

/// All sandboxes, whatever their state.
pub fn list(config: &Config) -> Result<Vec<Listed>, DirError> {
    let all = Sandboxes::of(&config.state_dir).all()?;
    Ok(all
        .into_iter()
        .map(|dir| {
            let record = record::read::<SandboxRecord>(&dir.file("sandbox.json"), SandboxRecord::VERSION);
            let known = record.as_ref().ok().and_then(Option::as_ref);
            let owned = known.is_some_and(|known| known.owner.is_alive().unwrap_or(false));
            Listed { dir: dir.path().to_owned(), record, owned, cost: cost(&dir) }
        })
        .collect())
}

/// A VM that has just ended, or a journal that is just being removed, cost nothing.
fn cost(dir: &SandboxDir) -> Option<Cost> {
    let entries = Journal::peek(&dir.journal()).ok()?;
    let vmm = entries.iter().find_map(|entry| match entry {
        Entry::Process { role, process } if role == VMM => Some(*process),
        _ => None,
    })?;
    let cost = Cost::of(vmm.pid, &entries).ok()?;
    // The pid was still its own when it was looked at.
    vmm.is_alive().ok()?.then_some(cost)
}

/// Undoes a sandbox from its journal, waiting for the end of whoever has it at most for `timeouts.stop_s` and a
/// little. Says whether there was one.
pub async fn destroy_by_id(config: &Config, namespace: &str, id: &str) -> Result<bool, UndoErrors> {
    let all = Sandboxes::of(&config.state_dir);
    let dir = all.dir(namespace, id);
    let limit = config.timeouts.stop_s.duration() + Duration::from_secs(5);
    undo::blocking(move || destroy(&all, &dir, limit)).await
}

fn destroy(all: &Sandboxes, dir: &SandboxDir, limit: Duration) -> Result<bool, UndoErrors> {
    let there = dir.path().exists();
    match all.take(dir, limit) {
        Ok(Some(journal)) => undo::undo_all(dir, &journal).map(|()| true),
        Ok(None) => Ok(there),
        Err(e) => Err(UndoErrors { dir: dir.path().to_owned(), errors: vec![e.into()] }),
    }
}

/// What [`gc`] did.
#[derive(Debug, Default)]
pub struct GcReport {
    /// Directories of sandboxes whose owner lives.
    pub in_use: Vec<PathBuf>,
    /// Directories of those that were undone.
    pub removed: Vec<PathBuf>,
    /// What could not be undone.
    pub errors: Vec<UndoErrors>,
}

/// Undoes every sandbox that nobody looks after any more. Blocks.
pub fn gc(config: &Config) -> Result<GcReport, DirError> {
    let all = Sandboxes::of(&config.state_dir);
    let mut report = GcReport::default();
    for dir in all.all()? {
        let path = dir.path().to_owned();
        match all.take(&dir, Duration::ZERO) {
            Ok(Some(journal)) => match undo::undo_all(&dir, &journal) {
                Ok(()) => report.removed.push(path),
                Err(errors) => report.errors.push(errors),
            },
            Ok(None) => report.removed.push(path),
            Err(DirError::Journal(JournalError::InUse { .. })) => report.in_use.push(path),
            Err(e) => report.errors.push(UndoErrors { dir: path, errors: vec![e.into()] }),
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::journal::Entry;

    fn config(state: &std::path::Path) -> Config {
        Config::parse(&format!("state_dir = '{}'\n[timeouts]\nstop_s = 1", state.display()), "test").unwrap()
    }

    #[tokio::test]
    async fn what_a_killed_owner_left_is_undone_from_its_journal() {
        let state = tempfile::tempdir().unwrap();
        let config = config(state.path());
        let (dir, journal) = Sandboxes::of(&config.state_dir).create("ns", "a").unwrap();
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        let (mut child, process, _) = journal.spawn("vmm", sleep, &[]).unwrap();
        // As the kernel does for a killed owner.
        drop(journal);
        assert!(destroy_by_id(&config, "ns", "a").await.unwrap());
        assert!(!process.is_alive().unwrap());
        child.wait().unwrap();
        assert!(!dir.path().exists());
        assert!(!destroy_by_id(&config, "ns", "a").await.unwrap());
        assert!(!destroy_by_id(&config, "other", "a").await.unwrap());
    }

    /// What is removed: a child of another test may have a copy of a lock for a moment.
    fn settled(config: &Config) -> Vec<PathBuf> {
        for _ in 0..1000 {
            let report = gc(config).unwrap();
            assert!(report.errors.is_empty(), "{:?}", report.errors);
            if !report.removed.is_empty() {
                return report.removed;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("nothing is removed");
    }

    #[test]
    fn gc_leaves_what_is_in_use() {
        let state = tempfile::tempdir().unwrap();
        let config = config(state.path());
        let all = Sandboxes::of(&config.state_dir);
        let (used, journal) = all.create("ns", "used").unwrap();
        let (left, other) = all.create("ns", "left").unwrap();
        let outside = state.path().join("outside");
        other.record(Entry::File { path: outside.clone() }).unwrap();
        std::fs::write(&outside, "").unwrap();
        drop(other);
        assert_eq!(settled(&config), [left.path()]);
        let report = gc(&config).unwrap();
        assert_eq!(report.in_use, [used.path()]);
        assert!(report.removed.is_empty() && report.errors.is_empty());
        assert!(!outside.exists() && used.path().exists());
        assert_eq!(list(&config).unwrap().len(), 1);
        drop(journal);
        assert_eq!(settled(&config), [used.path()]);
        assert!(list(&config).unwrap().is_empty());
    }
}

//! What is expensive to make is made once: directories named by the hash of what they were made from.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};
use skep_tests::process::check_interrupt;

use crate::progress::Step;

/// How many results of one kind are kept.
const KEPT: usize = 6;

/// The cache directory of the user.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$SKEP_CACHE`, else `$XDG_CACHE_HOME/skep`, else `~/.cache/skep`.
    pub(crate) fn open() -> Result<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("SKEP_CACHE")
            .or_else(|| Some(set("XDG_CACHE_HOME")?.join("skep")))
            .or_else(|| Some(set("HOME")?.join(".cache/skep")))
            .context("none of SKEP_CACHE, XDG_CACHE_HOME and HOME says where to keep the cache")?;
        Self::at(&std::path::absolute(root).context("cannot make the cache's path absolute")?)
    }

    /// The cache in that directory, which is made.
    pub(crate) fn at(root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root)
            .with_context(|| format!("cannot create the cache {}", root.display()))?;
        Ok(Self { root: root.to_owned() })
    }

    /// A directory inside the cache that is not managed by hash.
    pub(crate) fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// A fresh log file; the one before is kept as `<name>.log.old`.
    pub(crate) fn log(&self, name: &str) -> Result<PathBuf> {
        let log = self.dir("log")?.join(format!("{name}.log"));
        if log.exists() {
            std::fs::rename(&log, log.with_extension("log.old"))
                .with_context(|| format!("cannot move the old log {}", log.display()))?;
        }
        Ok(log)
    }

    /// The result of `kind` for `inputs`, made by `make` into the directory it is given unless it is there.
    ///
    /// Who comes second while another builds the same waits. A build that fails or is killed leaves nothing that
    /// could be taken for a result.
    pub(crate) fn get_or_build(
        &self,
        kind: &str,
        inputs: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let parent = self.dir(kind)?;
        let key = hex(&Sha256::digest(inputs))[..24].to_owned();
        let result = parent.join(&key);
        let _lock = lock(&parent.join(format!("{key}.lock")), kind)?;
        if !result.is_dir() {
            let building = parent.join(format!("{key}.part"));
            remove_dir(&building)?;
            std::fs::create_dir(&building)
                .with_context(|| format!("cannot create {}", building.display()))?;
            let built = make(&building).and_then(|()| {
                std::fs::write(building.join("inputs"), inputs).context("cannot write the inputs")?;
                std::fs::rename(&building, &result).context("cannot put the result in place")
            });
            if let Err(error) = built {
                // The first error is the one to tell.
                let _ = remove_dir(&building);
                return Err(error);
            }
        }
        // The newest are kept by time of last use.
        if let Ok(dir) = File::open(&result) {
            let _ = dir.set_modified(SystemTime::now());
        }
        prune(&parent, &key)?;
        Ok(result)
    }
}

/// Removes all but the most recently used results.
fn prune(parent: &Path, current: &str) -> Result<()> {
    let mut results = Vec::new();
    for entry in std::fs::read_dir(parent).with_context(|| format!("cannot list {}", parent.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", parent.display()))?.path();
        if path.is_dir() && path.extension().is_none() && path.file_name() != Some(current.as_ref()) {
            let used = path.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            results.push((used, path));
        }
    }
    results.sort();
    let surplus = (results.len() + 1).saturating_sub(KEPT);
    for (_, path) in results.into_iter().take(surplus) {
        remove_dir(&path)?;
    }
    Ok(())
}

fn lock(path: &Path, kind: &str) -> Result<Flock<File>> {
    let open = || File::create(path).with_context(|| format!("cannot open the lock {}", path.display()));
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => {}
        Err((_, error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    let mut step = Step::start(format!("waiting for another run that makes the same ({kind})"));
    loop {
        check_interrupt()?;
        match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                step.done("");
                return Ok(lock);
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                step.beat();
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            Err((_, error)) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// Removes a directory if it is there.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of a file's contents, in hexadecimal.
pub(crate) fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_same_inputs_are_built_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let builds = Cell::new(0);
        let build = |dir: &Path| {
            builds.set(builds.get() + 1);
            std::fs::write(dir.join("out"), "x").context("write")
        };
        let first = cache.get_or_build("thing", "a", build).unwrap();
        assert_eq!(cache.get_or_build("thing", "a", build).unwrap(), first);
        assert_ne!(cache.get_or_build("thing", "b", build).unwrap(), first);
        assert_eq!(builds.get(), 2);
    }

    #[test]
    fn a_failed_build_leaves_nothing_and_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let error = cache
            .get_or_build("thing", "a", |dir| {
                std::fs::write(dir.join("half"), "x").context("write")?;
                anyhow::bail!("broke off")
            })
            .unwrap_err();
        assert_eq!(error.to_string(), "broke off");
        let result = cache.get_or_build("thing", "a", |_| Ok(())).unwrap();
        assert!(!result.join("half").exists());
    }

    #[test]
    fn old_results_go() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        for input in 0..KEPT + 3 {
            cache.get_or_build("thing", &input.to_string(), |_| Ok(())).unwrap();
        }
        let left = std::fs::read_dir(dir.path().join("thing")).unwrap();
        assert_eq!(left.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count(), KEPT);
    }
}

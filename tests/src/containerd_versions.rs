//! The versions of containerd that the suite runs against: what this machine has, the rest from Debian's releases.
//!
//! A package of another release is unpacked into the cache, not installed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::debian::Apt;
use crate::process::run;

/// Names the directory with the versions that [`fetch`] has put there.
pub const CACHE_VARIABLE: &str = "SKEP_CONTAINERD_CACHE";

/// A release line of containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Line {
    /// 1.6, in Debian 12.
    V1_6,
    /// 1.7, in Debian 13.
    V1_7,
    /// 2.x, in Debian's unstable.
    V2,
}

impl Line {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::V1_6, Self::V1_7, Self::V2];

    /// What cases run on that do not differ by version. FreeBSD has the newest only: older ones have no shims there.
    pub const USUAL: Self = if cfg!(target_os = "linux") { Self::V1_6 } else { Self::V2 };

    /// How its version numbers begin.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::V1_6 => "1.6.",
            Self::V1_7 => "1.7.",
            Self::V2 => "2.",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::V1_6 => "bookworm",
            Self::V1_7 => "trixie",
            Self::V2 => "sid",
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.prefix().trim_end_matches('.'))
    }
}

/// One containerd that can be started.
#[derive(Clone, Debug)]
pub struct Installation {
    /// Its release line.
    pub line: Line,
    /// Where `containerd`, `ctr` and `containerd-shim-runc-v2` are.
    pub bin: PathBuf,
    /// What it says of its version.
    pub version: String,
}

impl Installation {
    fn at(line: Line, bin: &Path) -> Result<Option<Self>> {
        let daemon = bin.join("containerd");
        if !daemon.exists() {
            return Ok(None);
        }
        let mut command = Command::new(&daemon);
        command.arg("--version");
        let said = run(command)?.text()?;
        // "containerd github.com/containerd/containerd/v2 2.1.4 77c84241": the third word.
        let version = said.split_whitespace().nth(2).with_context(|| format!("no version in {said:?}"))?;
        let version = version.trim_start_matches('v').to_owned();
        Ok(version.starts_with(line.prefix()).then(|| Self { line, bin: bin.to_owned(), version }))
    }
}

/// Finds `line` in the machine's search path, or in what [`fetch`] put below `cache`.
pub fn find(line: Line, cache: &Path) -> Result<Option<Installation>> {
    for bin in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        if let Some(found) = Installation::at(line, &bin)? {
            return Ok(Some(found));
        }
    }
    Installation::at(line, &unpacked(line, cache).join("usr/bin"))
}

/// Where [`find`] looks when nothing else is said: `$SKEP_CONTAINERD_CACHE`, else `containerd` in Skep's cache.
pub fn default_cache() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
    set(CACHE_VARIABLE)
        .or_else(|| Some(set("SKEP_CACHE")?.join("containerd")))
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("skep/containerd")))
        .or_else(|| Some(set("HOME")?.join(".cache/skep/containerd")))
        .with_context(|| format!("none of {CACHE_VARIABLE}, SKEP_CACHE, XDG_CACHE_HOME and HOME is set"))
}

/// Gets the lines that neither the machine nor `cache` has yet. `progress` is told what takes long.
pub fn fetch(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<Vec<Installation>> {
    let mut missing = Vec::new();
    for line in Line::ALL {
        if find(line, cache)?.is_none() {
            missing.push(line);
        }
    }
    if !missing.is_empty() {
        fs::create_dir_all(cache).with_context(|| format!("creating {}", cache.display()))?;
        let suites: Vec<_> = missing.iter().map(|line| line.suite()).collect();
        progress("reading the package lists of Debian's other releases");
        let apt = Apt::new(&suites, cache)?;
        for line in missing {
            progress(&format!("fetching containerd {line} from Debian {}", line.suite()));
            apt.unpack(&["containerd"], line.suite(), &unpacked(line, cache))?;
        }
    }
    let found = Line::ALL.map(|line| {
        find(line, cache)?.with_context(|| {
            let suite = line.suite();
            format!("Debian {suite} has no containerd {line} any more: give one in PATH")
        })
    });
    found.into_iter().collect()
}

fn unpacked(line: Line, cache: &Path) -> PathBuf {
    cache.join(line.to_string())
}

/// The installation of `line`, fetched if it is nowhere yet.
pub fn require(line: Line) -> Result<Installation> {
    // The cases that come first all want it.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = default_cache()?;
    if let Some(found) = find(line, &cache)? {
        return Ok(found);
    }
    ensure!(cfg!(target_os = "linux"), "there is no containerd {line} in the search path");
    let all = fetch(&cache, &mut |step| eprintln!("{step}"))?;
    all.into_iter().find(|installation| installation.line == line).context("all lines have been fetched")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_known_by_its_version() {
        let directory = tempfile::tempdir().unwrap();
        let daemon = directory.path().join("containerd");
        fs::write(&daemon, "#!/bin/sh\necho containerd example.org/containerd v1.7.24 abc\n").unwrap();
        fs::set_permissions(&daemon, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let found = Installation::at(Line::V1_7, directory.path()).unwrap().unwrap();
        assert_eq!(found.version, "1.7.24");
        assert!(Installation::at(Line::V2, directory.path()).unwrap().is_none());
    }
}

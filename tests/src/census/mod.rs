//! What one containerd and its sandboxes hold on the host, so that before and after a test can be compared.
//!
//! Everything is counted by its belonging to one containerd, never machine-wide: other containers may run beside.
//! Processes belong by a mark in their environment, by a path in their command line, or by descent.

#[cfg(target_os = "freebsd")]
#[path = "freebsd.rs"]
mod system;
#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use anyhow::{Result, bail};

use crate::process::check_interrupt;

/// The environment variable that marks all processes of one containerd: its value is [`Scope::directory`].
pub const MARK: &str = "SKEP_TEST_DIRECTORY";

/// How long what is going away may take to be gone.
const SETTLE: Duration = Duration::from_secs(60);

/// The limits of a census.
#[derive(Clone, Debug)]
pub struct Scope {
    /// All that containerd and Skep keep is below this directory.
    pub directory: PathBuf,
    /// The parts of it where nothing may be left, each with all below it.
    pub watched: Vec<PathBuf>,
    /// What of it may come and stay: directories that are made once, for all sandboxes.
    pub permanent: Vec<PathBuf>,
    /// Where containerd keeps its databases and snapshots.
    pub own: PathBuf,
    /// containerd's namespace: the name of the cgroup below which its containers' cgroups are.
    pub namespace: String,
    /// containerd's process, in a network namespace of its own.
    pub daemon: u32,
}

/// What was found, each with how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census(BTreeMap<String, usize>);

impl Census {
    /// Counts what there is now.
    pub fn take(scope: &Scope) -> Result<Self> {
        let mut census = Self::default();
        for process in processes(scope)? {
            census.add("process", &process.description);
        }
        for mount in mounts(&scope.directory)? {
            census.add("mount", &mount.display().to_string());
        }
        for directory in &scope.watched {
            census.add_tree(directory, &scope.permanent)?;
        }
        for (kind, what) in system::others(scope)? {
            census.add(kind, &what);
        }
        Ok(census)
    }

    /// Waits until the census is `self` again, as what is being given back may take a moment.
    pub fn settle(&self, scope: &Scope) -> Result<()> {
        let begin = Instant::now();
        loop {
            let now = Self::take(scope)?;
            if now == *self {
                return Ok(());
            }
            check_interrupt()?;
            if begin.elapsed() > SETTLE {
                bail!(
                    "the census differs from before ({} s later):\n{}",
                    SETTLE.as_secs(),
                    self.difference(&now)
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What changed from `self` to `later`: a line with `+` for each thing that came, with `-` for each that went.
    pub fn difference(&self, later: &Self) -> String {
        let mut text = String::new();
        let keys: BTreeSet<&String> = self.0.keys().chain(later.0.keys()).collect();
        for key in keys {
            let [before, after] = [self, later].map(|census| census.0.get(key).copied().unwrap_or_default());
            let (sign, count) = if after > before { ('+', after - before) } else { ('-', before - after) };
            if count > 0 {
                let _ = writeln!(text, "{sign}{count} {key}");
            }
        }
        text
    }

    fn add(&mut self, kind: &str, what: &str) {
        *self.0.entry(format!("{kind} {what}")).or_default() += 1;
    }

    fn add_tree(&mut self, path: &Path, permanent: &[PathBuf]) -> Result<()> {
        let entries = match fs::read_dir(path) {
            // Gone between being listed and being read, or never made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A mount whose other side is dead; it is counted as a mount.
            Err(error) => {
                self.add("unreadable", &format!("{}: {error}", path.display()));
                return Ok(());
            }
            Ok(entries) => entries,
        };
        for entry in entries {
            let Ok(entry) = entry else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            let shown = entry.path().display().to_string();
            if permanent.contains(&entry.path()) {
                if kind.is_dir() {
                    self.add_tree(&entry.path(), permanent)?;
                }
            } else if kind.is_dir() {
                self.add("directory", &shown);
                if !is_mount_point(&entry.path())? {
                    self.add_tree(&entry.path(), permanent)?;
                }
            } else if kind.is_socket() {
                self.add("socket", &shown);
            } else {
                self.add("file", &shown);
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(key, count)| writeln!(f, "{count} {key}"))
    }
}

/// A process that belongs to a scope.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub pid: i32,
    /// Its command line.
    pub arguments: Vec<String>,
    description: String,
}

impl Member {
    /// The file name of the program it runs.
    pub fn program(&self) -> &str {
        self.arguments.first().map_or("", |program| program.rsplit('/').next().unwrap_or(program))
    }
}

/// One process of the system, whoever's.
struct Process {
    member: Member,
    parent: i32,
    /// Whether environment or command line tell that it is the scope's.
    marked: bool,
}

/// The processes that belong to `scope`, this one and its threads left out.
pub fn processes(scope: &Scope) -> Result<Vec<Member>> {
    let own = i32::try_from(std::process::id())?;
    let mut all: BTreeMap<i32, Process> = BTreeMap::new();
    for process in system::processes(&scope.directory)? {
        if process.member.pid != own {
            all.insert(process.member.pid, process);
        }
    }
    let mut members: BTreeSet<i32> =
        all.iter().filter(|(_, process)| process.marked).map(|(pid, _)| *pid).collect();
    loop {
        let children: Vec<i32> = all
            .iter()
            .filter(|(pid, process)| members.contains(&process.parent) && !members.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if children.is_empty() {
            break;
        }
        members.extend(children);
    }
    Ok(all
        .into_values()
        .map(|process| process.member)
        .filter(|member| members.contains(&member.pid))
        .collect())
}

/// The mount points at and below `directory`, in the order in which they were mounted.
pub fn mounts(directory: &Path) -> Result<Vec<PathBuf>> {
    Ok(system::mounts()?.into_iter().filter(|point| point.starts_with(directory)).collect())
}

fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(mounts(path)?.iter().any(|point| point == path))
}

#[cfg(target_os = "linux")]
pub use system::cgroups;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_difference_names_what_came_and_went() {
        let mut before = Census::default();
        before.add("file", "/a");
        before.add("mount", "/m");
        let mut after = Census::default();
        after.add("file", "/a");
        after.add("file", "/a");
        assert_eq!(before.difference(&after), "+1 file /a\n-1 mount /m\n");
        assert_eq!(before.difference(&before), "");
    }

    #[test]
    fn what_is_left_behind_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let mut daemon = Command::new("sleep").arg("100").spawn().unwrap();
        let scope = Scope {
            directory: directory.path().to_owned(),
            watched: vec![directory.path().join("state")],
            permanent: Vec::new(),
            own: directory.path().join("root"),
            namespace: "skep-no-such-cgroup".to_owned(),
            daemon: daemon.id(),
        };
        let before = Census::take(&scope).unwrap();
        fs::create_dir_all(directory.path().join("state/left")).unwrap();
        let mut stray =
            Command::new("sh").args(["-c", "sleep 100; true"]).env(MARK, directory.path()).spawn().unwrap();
        let seen = (0..3000).any(|_| {
            thread::sleep(Duration::from_millis(20));
            let difference = before.difference(&Census::take(&scope).unwrap());
            difference.contains("+1 directory") && difference.contains("+1 process sleep 100")
        });
        for member in processes(&scope).unwrap() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(member.pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
        let _ = stray.wait();
        let _ = daemon.kill();
        let _ = daemon.wait();
        assert!(seen);
    }
}

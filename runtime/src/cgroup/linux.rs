//! Cgroups of Linux, of version 1, 2 or both (cgroups(7)).

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{StatVfsMountFlags, statfs, statvfs};

use super::{CgroupError, CgroupPath, HostSets};

const ROOT: &str = "/sys/fs/cgroup";
/// `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC` (statfs(2)).
const VERSION_1: u64 = 0x0027_e0eb;
const VERSION_2: u64 = 0x6367_7270;

/// Processors that a cgroup's processes may use, and memory nodes.
const CPUS: &str = "cpuset.cpus";
const NODES: &str = "cpuset.mems";

/// How long a cgroup may stay busy whose last process has ended: the kernel notices a little later.
const BUSY: Duration = Duration::from_secs(2);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// A limit as large is none: version 1 has no word for it.
const NO_LIMIT: u64 = 1 << 60;

/// A cgroup of a sandbox, in every hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    path: CgroupPath,
    /// Its directory in each hierarchy.
    places: Vec<PathBuf>,
    /// Kills for want of memory that were counted before anything of the sandbox was in it.
    kills_before: u64,
}

impl Cgroup {
    /// The cgroup `path`. Where it does not exist it is made, after `record` was called; its parents then stay, as with
    /// runc. Nothing where no cgroups are mounted, or none that can be written to.
    pub fn open<E: From<CgroupError>>(
        path: &CgroupPath,
        record: impl FnOnce() -> Result<(), E>,
    ) -> Result<Option<Self>, E> {
        let mut hierarchies = hierarchies(Path::new(ROOT))?;
        hierarchies.retain(|root| !is_read_only(root));
        if hierarchies.is_empty() {
            tracing::info!(%path, "no cgroup that can be written to is mounted at {ROOT}: the VMM is in that of its shim");
            return Ok(None);
        }
        let places: Vec<PathBuf> = hierarchies.iter().map(|root| root.join(path.relative())).collect();
        if places.iter().any(|place| !place.is_dir()) {
            record()?;
        }
        for root in &hierarchies {
            make(root, path.relative())?;
        }
        let kills_before = kills(&places);
        Ok(Some(Self { path: path.clone(), places, kills_before }))
    }

    /// Makes `command` run in it.
    pub fn enter(&self, command: &mut Command) -> Result<(), CgroupError> {
        let open = |place: &PathBuf| -> Result<OwnedFd, CgroupError> {
            let path = place.join("cgroup.procs");
            match OpenOptions::new().write(true).open(&path) {
                Ok(file) => Ok(file.into()),
                Err(source) => Err(CgroupError::Io { action: "open", path, source }),
            }
        };
        let lists = self.places.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let enter = move || {
            // 0 is whoever writes it.
            lists.iter().try_for_each(|list| rustix::io::write(list, b"0").map(drop)).map_err(io::Error::from)
        };
        // SAFETY: system calls on descriptors that the closure owns; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }

    /// Whether the kernel has killed a process of the sandbox for want of memory, or one beside it that shares its limit.
    pub fn killed_for_memory(&self) -> bool {
        kills(&self.places) > self.kills_before
    }

    /// How much memory all in it may take, bytes, by its own limit or one above it; nothing if there is none.
    pub fn memory_limit(&self) -> Option<u64> {
        self.places.iter().filter_map(|place| memory_limit(place)).min().filter(|limit| *limit < NO_LIMIT)
    }

    /// Lets all in it use these processors and memory nodes of the host alone, among those of the cgroup above it. Whether
    /// it can: not where no such controller is.
    pub fn confine(&self, sets: &HostSets) -> Result<bool, CgroupError> {
        let mut able = true;
        for (name, list) in [(CPUS, &sets.processors), (NODES, &sets.nodes)] {
            let missing = || !self.places.iter().any(|place| place.join(name).exists());
            if list.is_some() && missing() {
                self.places.iter().try_for_each(|place| delegate(place, "cpuset"))?;
                able &= !missing();
            }
            for file in self.places.iter().map(|place| place.join(name)).filter(|file| file.exists()) {
                let text = list.as_ref().map_or_else(|| unconfined(&file), ToString::to_string);
                let action = "confine the VMM by writing";
                fs::write(&file, format!("{text}\n")).map_err(|source| CgroupError::Io {
                    action,
                    path: file,
                    source,
                })?;
            }
        }
        Ok(able)
    }

    /// Its path.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }
}

/// Moves a process into a cgroup that exists, in every hierarchy that has it.
pub fn join(path: &CgroupPath, pid: u32) -> Result<(), CgroupError> {
    let mut joined = false;
    for hierarchy in hierarchies(Path::new(ROOT))? {
        let cgroup = hierarchy.join(path.relative());
        if !cgroup.is_dir() {
            continue;
        }
        let list = cgroup.join("cgroup.procs");
        let failed = |source| CgroupError::Io { action: "move a process by", path: list.clone(), source };
        fs::write(&list, pid.to_string()).map_err(failed)?;
        joined = true;
    }
    if joined { Ok(()) } else { Err(CgroupError::Missing { path: path.clone(), root: ROOT.into() }) }
}

/// Removes a cgroup whose processes have ended. That it does not exist is success.
pub fn remove(path: &CgroupPath) -> Result<(), CgroupError> {
    let end = Instant::now() + BUSY;
    for hierarchy in hierarchies(Path::new(ROOT))? {
        let place = hierarchy.join(path.relative());
        loop {
            match fs::remove_dir(&place) {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {
                    std::thread::sleep(LOOK);
                }
                Err(source) => return Err(CgroupError::Io { action: "remove cgroup", path: place, source }),
            }
        }
    }
    Ok(())
}

/// Where processes are put into cgroups: the one hierarchy of version 2, or each controller's of version 1. Where both
/// are mounted, controllers are version 1's, and containerd and runc use those.
fn hierarchies(root: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let kind = |path: &Path| statfs(path).map(|stat| stat.f_type.cast_unsigned());
    let failed = |source: io::Error| CgroupError::Io { action: "list", path: root.to_owned(), source };
    if kind(root).map_err(|error| failed(error.into()))? == VERSION_2 {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Other names of a hierarchy are symbolic links.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && kind(&entry.path()) == Ok(VERSION_1) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_read_only(root: &Path) -> bool {
    statvfs(root).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Makes a cgroup of one hierarchy, with its parents.
fn make(root: &Path, relative: &Path) -> Result<(), CgroupError> {
    let mut place = root.to_owned();
    for part in relative {
        let parent = place.clone();
        place.push(part);
        match fs::create_dir(&place) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::Io { action: "make cgroup", path: place, source });
            }
            _ => inherit_sets(root, &parent, &place)?,
        }
    }
    Ok(())
}

/// What this file of a cgroup has that is confined no further: nothing in version 2, in 1 the words of the one above.
fn unconfined(file: &Path) -> String {
    let mut above = file.ancestors().skip(1);
    let above = match (above.next(), above.next(), file.file_name()) {
        (Some(own), Some(parent), Some(name)) if !own.join("cgroup.controllers").exists() => {
            parent.join(name)
        }
        _ => return String::new(),
    };
    fs::read_to_string(above).unwrap_or_default().trim().to_owned()
}

/// Has a controller of version 2 in a cgroup, if the ones above have it.
fn delegate(place: &Path, controller: &str) -> Result<(), CgroupError> {
    let mut above: Vec<&Path> = up(place).skip(1).collect();
    above.reverse();
    for parent in above {
        let path = parent.join("cgroup.subtree_control");
        let has = |text: String| text.split_whitespace().any(|word| word == controller);
        if path.exists() && !fs::read_to_string(&path).is_ok_and(has) {
            fs::write(&path, format!("+{controller}")).map_err(|source| CgroupError::Io {
                action: "enable cpuset by writing",
                path,
                source,
            })?;
        }
    }
    Ok(())
}

/// Version 1 gives a new cgroup no processor and no memory node, with which it takes no process.
fn inherit_sets(root: &Path, parent: &Path, place: &Path) -> Result<(), CgroupError> {
    for name in [CPUS, NODES] {
        // The root of version 2 has none.
        if !root.join(name).exists() {
            continue;
        }
        let file = place.join(name);
        if fs::read_to_string(&file).is_ok_and(|set| set.trim().is_empty()) {
            let inherit = || fs::write(&file, fs::read_to_string(parent.join(name))?);
            inherit().map_err(|source| CgroupError::Io { action: "write", path: file.clone(), source })?;
        }
    }
    Ok(())
}

/// Kills for want of memory that are counted in a cgroup: of its own in version 1, of its nearest with a memory controller
/// and all below that in version 2.
fn kills(places: &[PathBuf]) -> u64 {
    let of = |place: &PathBuf| {
        let own = field(&place.join("memory.oom_control"), "oom_kill");
        let nearest = || up(place).find_map(|place| field(&place.join("memory.events"), "oom_kill"));
        own.or_else(nearest).unwrap_or_default()
    };
    places.iter().map(of).sum()
}

fn memory_limit(place: &Path) -> Option<u64> {
    let number = |place: &Path| fs::read_to_string(place.join("memory.max")).ok()?.trim().parse().ok();
    field(&place.join("memory.stat"), "hierarchical_memory_limit")
        .or_else(|| up(place).filter_map(number).min())
}

/// A cgroup and those above it.
fn up(place: &Path) -> impl Iterator<Item = &Path> {
    place.ancestors().take_while(|place| place.starts_with(ROOT))
}

/// The number behind `name` in a file of such lines.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_that_does_not_exist_is_named() {
        let path = CgroupPath::parse("/no/such/cgroup").unwrap().unwrap();
        let error = join(&path, std::process::id()).unwrap_err().to_string();
        assert!(error.contains("/no/such/cgroup"), "{error}");
        remove(&path).unwrap();
    }

    #[test]
    fn counts_are_read_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        fs::write(&file, "low 0\noom 3\noom_kill 2\noom_group_kill 0\n").unwrap();
        assert_eq!(
            (field(&file, "oom_kill"), field(&file, "oom"), field(&file, "max")),
            (Some(2), Some(3), None)
        );
    }

    #[test]
    fn what_is_confined_no_further_says_what_its_version_wants() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        fs::write(dir.path().join(CPUS), "0-7\n").unwrap();
        assert_eq!(unconfined(&own.join(CPUS)), "0-7");
        fs::write(own.join("cgroup.controllers"), "cpuset\n").unwrap();
        assert_eq!(unconfined(&own.join(CPUS)), "");
    }

    /// Root alone may make cgroups, and where they are mounted for writing.
    #[test]
    fn a_process_runs_in_it_and_it_goes_after_that() {
        let path = CgroupPath::parse(&format!("/skep-test-{}/leaf", std::process::id())).unwrap().unwrap();
        let recorded = std::cell::Cell::new(0);
        let open = || {
            Cgroup::open(&path, || {
                recorded.set(recorded.get() + 1);
                Ok::<_, CgroupError>(())
            })
        };
        let cgroup = match open() {
            Ok(Some(cgroup)) => cgroup,
            Ok(None) => return,
            Err(_) if !rustix::process::geteuid().is_root() => return,
            Err(error) => panic!("{error}"),
        };
        let mut command = Command::new("sleep");
        command.arg("600");
        cgroup.enter(&mut command).unwrap();
        let mut child = command.spawn().unwrap();
        let named = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        let busy = remove(&path).is_err();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(open().unwrap().is_some_and(|cgroup| !cgroup.killed_for_memory()));
        remove(&path).unwrap();
        let parent = CgroupPath::parse(&format!("/skep-test-{}", std::process::id())).unwrap().unwrap();
        remove(&parent).unwrap();
        assert!(
            named.lines().filter(|line| line.ends_with(&path.to_string())).count() >= cgroup.places.len()
        );
        assert!(busy, "a cgroup with a process in it was removed");
        assert_eq!(recorded.get(), 1, "it is recorded when it is made");
    }
}

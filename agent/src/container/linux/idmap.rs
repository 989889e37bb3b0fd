//! Mappings of user namespaces that have several ranges.
//!
//! libcontainer writes a single range itself and leaves more to the programs newuidmap(1) and newgidmap(1), which exist
//! for callers without privileges. The guest has neither, so the agent is both: libcontainer finds it by their names.

use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::error::Refusal;

/// Where the programs are found.
const PROGRAMS: &str = "/run/skep/bin";
/// The agent, wherever the initramfs had it.
const AGENT: &str = "/proc/1/exe";
/// The programs' names, and what each writes.
const MAPS: [(&str, &str); 2] = [("newuidmap", "uid_map"), ("newgidmap", "gid_map")];

/// Lets this process, a helper, find them.
pub(super) fn provide() -> Result<(), Refusal> {
    let make = || -> io::Result<()> {
        std::fs::create_dir_all(PROGRAMS)?;
        for (name, _) in MAPS {
            match symlink(AGENT, Path::new(PROGRAMS).join(name)) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        Ok(())
    };
    make().map_err(|e| Refusal::internal(format!("cannot make {PROGRAMS}: {e}")))?;
    // SAFETY: a helper has one thread.
    unsafe { std::env::set_var("PATH", PROGRAMS) };
    Ok(())
}

/// Does what this process was started for by the name of one of the programs; answers nothing if it was not.
pub(crate) fn run(mut args: impl Iterator<Item = String>) -> Option<io::Result<()>> {
    let program = args.next()?;
    let name = Path::new(&program).file_name()?.to_str()?;
    let (_, file) = MAPS.iter().find(|(known, _)| *known == name)?;
    Some(write(file, args))
}

/// `PID (FIRST-INSIDE FIRST-OUTSIDE COUNT)...`: the kernel takes the ranges in one write.
fn write(file: &str, mut args: impl Iterator<Item = String>) -> io::Result<()> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let pid: u32 =
        args.next().and_then(|pid| pid.parse().ok()).ok_or_else(|| wrong("the first argument is no pid"))?;
    std::fs::write(format!("/proc/{pid}/{file}"), ranges(args).ok_or_else(|| wrong("no ranges of ids"))?)
}

/// Lines as `user_namespaces(7)` has them.
fn ranges(args: impl Iterator<Item = String>) -> Option<String> {
    let numbers = args.map(|arg| arg.parse::<u32>().ok()).collect::<Option<Vec<_>>>()?;
    if numbers.is_empty() || numbers.len() % 3 != 0 {
        return None;
    }
    let line = |range: &[u32]| range.iter().map(u32::to_string).collect::<Vec<_>>().join(" ") + "\n";
    Some(numbers.chunks(3).map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> impl Iterator<Item = String> {
        text.split_whitespace().map(str::to_owned)
    }

    #[test]
    fn ranges_are_lines() {
        assert_eq!(ranges(words("0 0 20 20 2000 65535")).as_deref(), Some("0 0 20\n20 2000 65535\n"));
        for bad in ["", "0 0", "0 0 x", "0 0 1 2", "-1 0 1"] {
            assert_eq!(ranges(words(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn other_names_are_not_taken() {
        assert!(run(words("/init")).is_none());
        assert!(run(words("")).is_none());
        assert!(run(words("/run/skep/bin/newuidmap")).is_some_and(|done| done.is_err()));
    }
}

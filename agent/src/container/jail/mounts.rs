//! The mounts of a FreeBSD spec, in the guest.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use crate::boot::freebsd::devices::RULESET;
use crate::error::Refusal;
use crate::os::mounts;

/// An option of mount(8) and the flag of nmount(2) that it sets.
const FLAGS: [(&str, libc::c_int); 5] = [
    ("ro", libc::MNT_RDONLY),
    ("nosuid", libc::MNT_NOSUID),
    ("noexec", libc::MNT_NOEXEC),
    ("noatime", libc::MNT_NOATIME),
    ("sync", libc::MNT_SYNCHRONOUS),
];
/// Options that say what is so anyhow.
const IGNORED: [&str; 6] = ["", "rw", "defaults", "bind", "rbind", "rprivate"];

/// A mount that has a place to be made at.
#[derive(Debug)]
pub(crate) struct Prepared {
    index: usize,
    kind: String,
    place: PathBuf,
    options: Vec<(String, Vec<u8>)>,
    flags: libc::c_int,
}

/// Reads the mount with that index and makes the directory or file below `root` that it goes on.
pub(crate) fn prepare(root: &Path, index: usize, mount: &Mount) -> Result<Prepared, Refusal> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let kind = mount.typ().as_deref().unwrap_or("nullfs");
    let place = place(root, mount.destination(), &field("destination"))?;
    let mut flags = 0;
    let mut options: Vec<(String, Vec<u8>)> = Vec::new();
    for option in mount.options().iter().flatten() {
        match FLAGS.iter().find(|(name, _)| name == option) {
            Some((_, flag)) => flags |= flag,
            None if IGNORED.contains(&option.as_str()) => {}
            None => {
                let (name, value) = option.split_once('=').unwrap_or((option, ""));
                options.push((name.to_owned(), value.as_bytes().to_vec()));
            }
        }
    }
    let from = |text: &str| ("from".to_owned(), text.as_bytes().to_vec());
    let kind = match kind {
        "devfs" => {
            options.retain(|(name, _)| name != "ruleset");
            options.push(("ruleset".to_owned(), RULESET.to_string().into_bytes()));
            options.push(from("devfs"));
            kind
        }
        "fdescfs" | "tmpfs" | "procfs" => {
            options.push(from(kind));
            kind
        }
        "bind" | "nullfs" => {
            let source = mount
                .source()
                .as_ref()
                .ok_or_else(|| Refusal::invalid(format!("{}: missing", field("source"))))?;
            options.push(("target".to_owned(), source.as_os_str().as_encoded_bytes().to_vec()));
            let is_file = std::fs::metadata(source)
                .map_err(|e| Refusal::invalid(format!("{} {}: {e}", field("source"), source.display())))?
                .is_file();
            if is_file {
                touch(&place)?;
            }
            "nullfs"
        }
        other => {
            return Err(Refusal::invalid(format!(
                "{} {other:?}: a FreeBSD guest has devfs, fdescfs, nullfs, procfs and tmpfs",
                field("type")
            )));
        }
    };
    if !place.exists() {
        std::fs::create_dir_all(&place)
            .map_err(|e| Refusal::invalid(format!("{}: cannot make it: {e}", field("destination"))))?;
    }
    Ok(Prepared { index, kind: kind.to_owned(), place, options, flags })
}

impl Prepared {
    /// Makes the mount at its place below `root`, as it is seen at `seen`.
    pub(crate) fn make(&self, root: &Path, seen: &Path) -> Result<(), Refusal> {
        let Self { index, kind, place, options, flags } = self;
        let below = place.strip_prefix(root).unwrap_or(place);
        let options: Vec<(&str, &[u8])> =
            options.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        mounts::mount(kind, &seen.join(below), &options, *flags).map_err(|e| {
            Refusal::invalid(format!("mounts[{index}]: cannot mount {kind} on /{}: {e}", below.display()))
        })
    }
}

/// Shows `root` at `seen`, where nothing can be written to it.
pub(crate) fn view(root: &Path, seen: &Path) -> Result<(), Refusal> {
    let fail =
        |e: &dyn std::fmt::Display| Refusal::internal(format!("root.readonly: cannot make a view: {e}"));
    std::fs::create_dir(seen).map_err(|e| fail(&e))?;
    let target = [("target", root.as_os_str().as_encoded_bytes())];
    mounts::mount("nullfs", seen, &target, libc::MNT_RDONLY).map_err(|e| fail(&e))
}

/// Where `destination` is, seen from the guest. Links of the image lead nowhere outside of it.
fn place(root: &Path, destination: &Path, field: &str) -> Result<PathBuf, Refusal> {
    let outside = || Refusal::invalid(format!("{field} {}: not within the root", destination.display()));
    let mut place = root.to_owned();
    for part in destination.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => place.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(outside()),
        }
        // What does not exist has no links in it.
        if let Ok(real) = place.canonicalize() {
            if !real.starts_with(root) {
                return Err(outside());
            }
            place = real;
        }
    }
    if place == root { Err(outside()) } else { Ok(place) }
}

fn touch(place: &Path) -> Result<(), Refusal> {
    let made = place
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::OpenOptions::new().create(true).append(true).open(place).map(drop));
    made.map_err(|e| Refusal::invalid(format!("cannot make {} to mount on: {e}", place.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_the_image_lead_nowhere_outside() {
        let root = tempfile::tempdir().expect("dir");
        let root = root.path().canonicalize().expect("real");
        std::fs::create_dir_all(root.join("real/in")).expect("dirs");
        std::os::unix::fs::symlink("real", root.join("link")).expect("link");
        std::os::unix::fs::symlink("/etc", root.join("out")).expect("link");
        let at = |path: &str| place(&root, Path::new(path), "x");
        assert_eq!(at("/dev").expect("new"), root.join("dev"));
        assert_eq!(at("/link/in").expect("link"), root.join("real/in"));
        for bad in ["/", "/out/passwd", "/../etc", "/link/../../x"] {
            assert!(at(bad).is_err(), "{bad}");
        }
    }
}

//! Notes of the hooks that follow the ends of containers, so that `delete` runs them when the shim was killed.
//!
//! They are in the bundle of which containerd asks for such a deletion: the container's own, or, where containerd made
//! the sandbox by its Sandbox API, the sandbox's. There it never asks for a container's.

use std::{fs, io, path::PathBuf};

use skep::container::HostHooks;

use crate::bundle::{Bundle, BundleError};

const PREFIX: &str = "poststop-";
const SUFFIX: &str = ".json";
/// Largest note that is read: it holds annotations and hooks of a specification.
const LIMIT: u64 = 4 << 20;

/// The notes in a bundle.
#[derive(Debug, Clone)]
pub(crate) struct Notes(Bundle);

impl Notes {
    /// Those in `bundle`.
    pub(crate) fn in_bundle(bundle: Bundle) -> Self {
        Self(bundle)
    }

    /// Notes what is to be run when `container` is gone.
    pub(crate) fn write(&self, container: &str, hooks: &HostHooks) -> Result<(), BundleError> {
        self.0.write_json(&name(container), hooks)
    }

    /// Forgets them: they are being run, or nothing came of the container. The bundle may be gone already.
    pub(crate) fn remove(&self, container: &str) {
        remove(&self.0.path(&name(container)));
    }

    /// Everything that was noted, each with what it is or why it can't be read. It is forgotten: twice would be worse
    /// than not at all.
    pub(crate) fn take(&self) -> Vec<Result<HostHooks, BundleError>> {
        let Ok(entries) = fs::read_dir(self.0.dir()) else {
            // A bundle that is gone holds none.
            return Vec::new();
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> =
            names.filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)).collect();
        names.sort();
        let take = |name: &String| {
            let hooks = self.0.read_json(name, LIMIT);
            remove(&self.0.path(name));
            hooks
        };
        names.iter().map(take).collect()
    }
}

/// Ids of containerd are letters, digits, `.`, `_` and `-`: none leads out of the bundle.
fn name(container: &str) -> String {
    format!("{PREFIX}{container}{SUFFIX}")
}

fn remove(path: &PathBuf) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "{}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(id: &str) -> HostHooks {
        let list = serde_json::from_str(r#"{"poststop": [{"path": "/bin/true"}]}"#).unwrap();
        HostHooks::new(&list, id, "/b".into(), &oci_spec::runtime::Spec::default()).unwrap()
    }

    #[test]
    fn what_is_noted_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::in_bundle(Bundle::new(dir.path().into()));
        for id in ["b", "a", "c"] {
            notes.write(id, &hooks(id)).unwrap();
        }
        notes.remove("c");
        notes.remove("never-noted");
        fs::write(dir.path().join("poststop-x.json"), "{").unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        let taken = notes.take();
        assert_eq!(taken[0].as_ref().unwrap(), &hooks("a"));
        assert_eq!(taken[1].as_ref().unwrap(), &hooks("b"));
        assert!(taken[2].as_ref().unwrap_err().to_string().contains("poststop-x.json"));
        assert!(notes.take().is_empty());
        assert!(dir.path().join("config.json").exists());
        assert!(Notes::in_bundle(Bundle::new("/no/such/bundle".into())).take().is_empty());
    }
}

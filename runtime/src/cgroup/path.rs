//! How cgroups are named: the spellings of `linux.cgroupsPath` (OCI runtime specification, config-linux.md) that runc has.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The slice of whoever names none, as with runc.
const DEFAULT_SLICE: &str = "system.slice";
/// How names of slices end.
const SLICE: &str = ".slice";

/// Path of a cgroup below the root of every hierarchy; never the root itself, and never out of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "PathBuf", into = "PathBuf")]
pub struct CgroupPath(PathBuf);

/// Not the name of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` names no cgroup: {reason}")]
pub struct PathError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl CgroupPath {
    /// Reads `linux.cgroupsPath`: a path from the root on, or systemd's `slice:prefix:name`, which is the scope
    /// `prefix-name.scope` of that slice. Nothing if it names no cgroup but the root.
    pub fn parse(text: &str) -> Result<Option<Self>, PathError> {
        match text.split(':').collect::<Vec<_>>().as_slice() {
            [slice, prefix, name] if !text.contains('/') => {
                Self::of_systemd(text, slice, prefix, name).map(Some)
            }
            _ => Self::below_root(Path::new(text)),
        }
    }

    /// That of the pod `id` whose pods' parent is `parent` (CRI's `cgroup_parent`), by the rule of containerd's CRI plugin:
    /// a slice is systemd's.
    pub fn of_pod(parent: &str, id: &str) -> Result<Option<Self>, PathError> {
        let base = parent.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if base.strip_suffix(SLICE).is_some() {
            return Self::parse(&format!("{base}:cri-containerd:{id}"));
        }
        Self::parse(&format!("{parent}/{id}"))
    }

    fn below_root(path: &Path) -> Result<Option<Self>, PathError> {
        let wrong = |reason| PathError { text: path.display().to_string(), reason };
        let mut below = PathBuf::new();
        for part in path.components() {
            match part {
                Component::Normal(part) => below.push(part),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(wrong("`..` leads out of it")),
            }
        }
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(wrong("it contains a zero"));
        }
        Ok((!below.as_os_str().is_empty()).then_some(Self(below)))
    }

    fn of_systemd(text: &str, slice: &str, prefix: &str, name: &str) -> Result<Self, PathError> {
        let wrong = |reason| PathError { text: text.to_owned(), reason };
        let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
        let stem = slice.strip_suffix(SLICE).ok_or(wrong("what stands before the first `:` is no slice"))?;
        let mut below = PathBuf::new();
        // The slice "-" is the root; a.slice holds a-b.slice (systemd.slice(5)).
        if stem != "-" {
            let mut so_far = String::new();
            for part in stem.split('-') {
                if part.is_empty() {
                    return Err(wrong("a part of the slice's name is empty"));
                }
                if !so_far.is_empty() {
                    so_far.push('-');
                }
                so_far.push_str(part);
                below.push(format!("{so_far}.slice"));
            }
        }
        if name.is_empty() {
            return Err(wrong("what stands behind the last `:` is empty"));
        }
        below.push(match (name.strip_suffix(SLICE).is_some(), prefix) {
            (true, _) => name.to_owned(),
            (false, "") => format!("{name}.scope"),
            (false, prefix) => format!("{prefix}-{name}.scope"),
        });
        Self::below_root(&below)?.ok_or(wrong("it is the root"))
    }

    /// Relative to the root of a hierarchy.
    pub fn relative(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<PathBuf> for CgroupPath {
    type Error = PathError;

    fn try_from(path: PathBuf) -> Result<Self, PathError> {
        let root = PathError { text: path.display().to_string(), reason: "it is the root" };
        Self::below_root(&path)?.ok_or(root)
    }
}

impl From<CgroupPath> for PathBuf {
    fn from(path: CgroupPath) -> Self {
        path.0
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<String> {
        CgroupPath::parse(text).unwrap().map(|path| path.to_string())
    }

    #[test]
    fn both_spellings_are_read() {
        for (text, expected) in [
            ("/default/web", "/default/web"),
            ("kubepods/pod1/x", "/kubepods/pod1/x"),
            ("/a/./b//c/", "/a/b/c"),
            (
                "kubepods-burstable-pod1.slice:cri-containerd:ab",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-ab.scope",
            ),
            ("system.slice:nerdctl:ab", "/system.slice/nerdctl-ab.scope"),
            (":nerdctl:ab", "/system.slice/nerdctl-ab.scope"),
            ("-.slice::ab", "/ab.scope"),
            ("a.slice:x:a-b.slice", "/a.slice/a-b.slice"),
            // Of cgroupfs, however odd.
            ("/a:b:c", "/a:b:c"),
        ] {
            assert_eq!(parsed(text).as_deref(), Some(expected), "{text}");
        }
        for root in ["", "/", "."] {
            assert_eq!(parsed(root), None, "{root:?}");
        }
    }

    #[test]
    fn what_names_none_is_refused() {
        for (text, word) in [
            ("/a/../../etc", "`..`"),
            ("web:prefix:name", "no slice"),
            ("a--b.slice:p:n", "empty"),
            ("a.slice:p:", "empty"),
            ("a\0b", "zero"),
        ] {
            let error = CgroupPath::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(serde_json::from_str::<CgroupPath>("\"../x\"").is_err());
        assert!(serde_json::from_str::<CgroupPath>("\"/\"").is_err());
        let path: CgroupPath = serde_json::from_str("\"a/b\"").unwrap();
        assert_eq!(serde_json::to_string(&path).unwrap(), "\"a/b\"");
    }

    #[test]
    fn a_pods_is_below_its_parent() {
        let of_pod = |parent| CgroupPath::of_pod(parent, "ab").unwrap().unwrap().to_string();
        assert_eq!(of_pod("/kubepods/burstable/pod1"), "/kubepods/burstable/pod1/ab");
        assert_eq!(
            of_pod("/kubepods.slice/kubepods-pod1.slice"),
            "/kubepods.slice/kubepods-pod1.slice/cri-containerd-ab.scope"
        );
    }
}

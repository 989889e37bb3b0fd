//! State files: versioned, written whole or not at all, read strictly.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::PodOptions;
use crate::os::ProcessIdentity;

/// A state file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its content is not what it should be.
    #[error("{}: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It is of another version.
    #[error("{}: version {found}; this skep reads {expected}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The file's.
        found: u64,
        /// This runtime's.
        expected: u32,
    },
}

/// What a sandbox is: `sandbox.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxRecord {
    /// [`SandboxRecord::VERSION`].
    pub version: u32,
    /// containerd's namespace, or whatever keeps callers apart.
    pub namespace: String,
    /// The caller's name for it.
    pub id: String,
    /// The process that made it and looks after it.
    pub owner: ProcessIdentity,
    /// Seconds since the epoch.
    pub created_s: u64,
    /// Driver of the VM.
    pub hypervisor: String,
    /// `uname -r` of the guest.
    pub kernel_release: String,
    /// Size of the VM and the like.
    pub options: PodOptions,
}

impl SandboxRecord {
    /// The version that this runtime reads and writes.
    pub const VERSION: u32 = 1;
}

/// State files are small.
const MOST_BYTES: u64 = 1 << 20;

/// Writes a state file under a temporary name, syncs it and renames it.
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), RecordError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|source| RecordError::Content { path: path.to_owned(), source })?;
    text.push(b'\n');
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(".new");
    let write = || {
        let mut file =
            std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| RecordError::System { action: "write", path: path.to_owned(), source })
}

/// Writes a file that is none of state, for others to read.
pub(super) fn write_text(path: &Path, text: &str) -> Result<(), RecordError> {
    std::fs::write(path, text).map_err(|source| RecordError::System {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

/// Reads a state file that has a `version`. Nothing if there is none.
pub(super) fn read<T: DeserializeOwned>(path: &Path, version: u32) -> Result<Option<T>, RecordError> {
    #[derive(Deserialize)]
    struct Head {
        version: u64,
    }

    let mut text = Vec::new();
    match std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut text)) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::System { action: "read", path: path.to_owned(), source }),
    }
    let content = |source| RecordError::Content { path: path.to_owned(), source };
    // First, so that another version is told as such and not by its new fields.
    let head: Head = serde_json::from_slice(&text).map_err(content)?;
    if head.version != u64::from(version) {
        return Err(RecordError::Version { path: path.to_owned(), found: head.version, expected: version });
    }
    serde_json::from_slice(&text).map(Some).map_err(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn example() -> SandboxRecord {
        SandboxRecord {
            version: SandboxRecord::VERSION,
            namespace: "k8s.io".into(),
            id: "web \"1\"".into(),
            owner: ProcessIdentity { pid: 4, start: 5 },
            created_s: 6,
            hypervisor: "qemu".into(),
            kernel_release: "6.12".into(),
            options: PodOptions::defaults(&Config::default()),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sandbox.json");
        assert_eq!(read::<SandboxRecord>(&path, 1).unwrap(), None);
        write(&path, &example()).unwrap();
        write(&path, &example()).unwrap();
        assert_eq!(read(&path, SandboxRecord::VERSION).unwrap(), Some(example()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file stayed");
    }

    #[test]
    fn another_version_and_unknown_fields_are_told_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sandbox.json");
        let told = |change: &str| {
            let text = serde_json::to_string(&example()).unwrap().replacen("\"version\":1", change, 1);
            std::fs::write(&path, text).unwrap();
            read::<SandboxRecord>(&path, 1).unwrap_err().to_string()
        };
        assert!(told("\"version\":2,\"new\":1").ends_with("sandbox.json: version 2; this skep reads 1"));
        let error = told("\"version\":1,\"new\":1");
        assert!(error.contains("sandbox.json: unknown field `new`"), "{error}");
        assert!(told("\"other\":1").contains("missing field `version`"));
    }
}

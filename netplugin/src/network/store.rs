//! The files: one per network, one per attachment, one of addresses per network, and a lock over all.
//!
//! A file is written under another name, synced and renamed, so a reader sees the old or the new one. The default
//! directory does not survive a reboot, and neither does anything the files speak of.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Attachment, Network};
use crate::ipam::Used;

/// How long a call waits for others to be done with the files.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// What a file is called until it is complete.
const UNFINISHED: &str = "new";

/// Why our files failed us.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system said no.
    #[error("cannot {what} {}: {error}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file is not what this code writes.
    #[error("{}: {why}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The lock was held for too long.
    #[error("{}: still locked by another call after {} s", .0.display(), LOCK_TIMEOUT.as_secs())]
    Locked(PathBuf),
}

impl StateError {
    /// Whether the file system is to blame, not a file's content.
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}

/// Everything known of this host.
#[derive(Clone, Debug, Default)]
pub struct HostState {
    /// Its networks.
    pub networks: Vec<Network>,
    /// The attachments to them.
    pub attachments: Vec<Attachment>,
}

/// The directory of files.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// Holds the lock until dropped (and, by the kernel, no longer than the process lives).
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock that the file at `path` is, for a bounded time.
    pub(crate) fn take(path: &Path) -> Result<Self, StateError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(io("open", path))?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let mut pause = Duration::from_micros(200);
        loop {
            match flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(io("lock", path)(errno.into())),
            }
            if Instant::now() > deadline {
                return Err(StateError::Locked(path.to_owned()));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }
}

impl Store {
    /// Where the files are unless a configuration says otherwise.
    pub fn default_dir() -> &'static Path {
        Path::new(if cfg!(target_os = "freebsd") { "/var/run/skep/net" } else { "/run/skep/net" })
    }

    /// The store in `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits for the lock, for a bounded time.
    pub fn lock(&self) -> Result<Lock, StateError> {
        for dir in ["networks", "addresses", "attachments"] {
            let path = self.dir.join(dir);
            // The usual case, once per boot apart: no syscall but one stat.
            if !path.is_dir() {
                create_dir(&path)?;
            }
        }
        Lock::take(&self.dir.join("lock"))
    }

    fn network_path(&self, name: &str) -> PathBuf {
        self.dir.join("networks").join(format!("{name}.json"))
    }

    fn attachment_dir(&self, network: &str) -> PathBuf {
        self.dir.join("attachments").join(network)
    }

    fn attachment_path(&self, network: &str, id: &str) -> PathBuf {
        self.attachment_dir(network).join(format!("{id}.json"))
    }

    fn used_path(&self, network: &str) -> PathBuf {
        self.dir.join("addresses").join(format!("{network}.json"))
    }

    /// A network's record.
    pub fn network(&self, name: &str) -> Result<Option<Network>, StateError> {
        let path = self.network_path(name);
        let network: Option<Network> = read(&path)?;
        check_version(&path, network.as_ref().map(|network| network.version), Network::VERSION)?;
        Ok(network)
    }

    /// Writes a network's record.
    pub fn save_network(&self, network: &Network) -> Result<(), StateError> {
        write(&self.network_path(&network.name), network)
    }

    /// Removes a network's record and what was known of its addresses. Fails while it has attachments.
    pub fn remove_network(&self, name: &str) -> Result<(), StateError> {
        let dir = self.attachment_dir(name);
        // Halves of records that a killed call never renamed.
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == UNFINISHED) {
                remove(&entry.path())?;
            }
        }
        remove(&self.used_path(name).with_extension(UNFINISHED))?;
        remove(&self.network_path(name).with_extension(UNFINISHED))?;
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("remove", &dir)(error)),
            _ => {}
        }
        remove(&self.used_path(name))?;
        remove(&self.network_path(name))
    }

    /// An attachment's record.
    pub fn attachment(&self, network: &str, id: &str) -> Result<Option<Attachment>, StateError> {
        let path = self.attachment_path(network, id);
        let attachment: Option<Attachment> = read(&path)?;
        check_version(&path, attachment.as_ref().map(|one| one.version), Attachment::VERSION)?;
        Ok(attachment)
    }

    /// Writes an attachment's record.
    pub fn save_attachment(&self, attachment: &Attachment) -> Result<(), StateError> {
        let dir = self.attachment_dir(&attachment.network);
        if !dir.is_dir() {
            create_dir(&dir)?;
        }
        write(&self.attachment_path(&attachment.network, &attachment.id), attachment)
    }

    /// Removes an attachment's record.
    pub fn remove_attachment(&self, network: &str, id: &str) -> Result<(), StateError> {
        remove(&self.attachment_path(network, id))
    }

    /// Which addresses of a network are taken.
    pub fn used(&self, network: &str) -> Result<Used, StateError> {
        let path = self.used_path(network);
        let used: Option<Used> = read(&path)?;
        check_version(&path, used.as_ref().map(|used| used.version), Used::VERSION)?;
        Ok(used.unwrap_or_else(|| Used { version: Used::VERSION, ..Used::default() }))
    }

    /// Writes which addresses of a network are taken.
    pub fn save_used(&self, network: &str, used: &Used) -> Result<(), StateError> {
        write(&self.used_path(network), used)
    }

    /// The names of the networks on record.
    pub fn network_names(&self) -> Result<Vec<String>, StateError> {
        names(&self.dir.join("networks"))
    }

    /// Every attachment of a network on record.
    pub fn attachments(&self, network: &str) -> Result<Vec<Attachment>, StateError> {
        let ids = names(&self.attachment_dir(network))?;
        // A record may be removed between the listing and the reading.
        ids.iter().filter_map(|id| self.attachment(network, id).transpose()).collect()
    }

    /// Everything on record.
    pub fn load(&self) -> Result<HostState, StateError> {
        let mut state = HostState::default();
        for name in self.network_names()? {
            state.attachments.extend(self.attachments(&name)?);
            state.networks.extend(self.network(&name)?);
        }
        Ok(state)
    }

    /// Whether a network has an attachment besides `except`.
    pub fn has_others(&self, network: &str, except: &str) -> Result<bool, StateError> {
        Ok(names(&self.attachment_dir(network))?.iter().any(|id| id != except))
    }
}

pub(crate) fn create_dir(path: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("create", path))
}

pub(crate) fn io<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StateError + use<'a> {
    move |error| StateError::Io { what, path: path.to_owned(), error }
}

pub(crate) fn names(dir: &Path) -> Result<Vec<String>, StateError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io("read", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(io("read", dir))?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".json")) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("read", path)(error)),
    };
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&text)).map(Some).map_err(
        |error| StateError::Format {
            path: path.to_owned(),
            why: format!("{}: {}", error.path(), error.inner()),
        },
    )
}

fn check_version(path: &Path, found: Option<u32>, known: u32) -> Result<(), StateError> {
    match found {
        Some(version) if version != known => {
            let why = format!("is of version {version}, this program knows version {known}");
            Err(StateError::Format { path: path.to_owned(), why })
        }
        _ => Ok(()),
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
    let text = serde_json::to_vec(value)
        .map_err(|error| StateError::Format { path: path.to_owned(), why: error.to_string() })?;
    // Without the suffix, so that a leftover of a crash is not taken for a record.
    let temporary = path.with_extension(UNFINISHED);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io("create", &temporary))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io("rename", &temporary))
}

pub(crate) fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_versions_are_refused_by_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let _lock = store.lock().unwrap();
        let path = dir.path().join("addresses/pods.json");
        fs::write(&path, r#"{"version":1,"subnets":{},"last":{},"more":1}"#).unwrap();
        let error = store.used("pods").unwrap_err().to_string();
        assert!(error.contains("pods.json") && error.contains("more"), "{error}");
        fs::write(&path, r#"{"version":9,"subnets":{},"last":{}}"#).unwrap();
        assert!(store.used("pods").unwrap_err().to_string().contains("version 9"));
        fs::write(&path, "{").unwrap();
        assert!(matches!(store.used("pods"), Err(StateError::Format { .. })));
    }

    #[test]
    fn a_leftover_of_a_crash_is_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        drop(store.lock().unwrap());
        fs::create_dir(dir.path().join("attachments/pods")).unwrap();
        fs::write(dir.path().join("attachments/pods/0123456789ab.new"), "{\"half").unwrap();
        assert!(store.attachments("pods").unwrap().is_empty());
        assert!(!store.has_others("pods", "x").unwrap());
    }

    #[test]
    fn the_lock_keeps_others_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let counter = dir.path().join("counter");
        fs::write(&counter, "0").unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _lock = store.lock().unwrap();
                        let n: u32 = fs::read_to_string(&counter).unwrap().parse().unwrap();
                        fs::write(&counter, (n + 1).to_string()).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_to_string(&counter).unwrap(), "160");
    }
}

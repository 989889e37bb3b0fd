//! Reading and writing records.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a record is called until it is complete.
pub(super) const UNFINISHED: &str = "new";
/// What a policy is called that the kernel may not have taken yet.
pub(super) const STAGED: &str = "next";

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
    #[error("{}: still locked by another call after {} s", .path.display(), .limit.as_secs())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long we waited for it.
        limit: Duration,
    },
}

impl StateError {
    /// Whether the file system is to blame, not a file's content.
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}

pub(crate) fn create_dir(path: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("create", path))
}

pub(crate) fn io<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StateError + use<'a> {
    move |error| StateError::Io { what, path: path.to_owned(), error }
}

/// The names of the records in a directory, in order.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, StateError> {
    let mut names = Vec::new();
    for name in list(dir)? {
        names.extend(name?.strip_suffix(".json").map(ToOwned::to_owned));
    }
    names.sort();
    Ok(names)
}

/// The names in a directory; none if it is not there.
pub(super) fn list(dir: &Path) -> Result<impl Iterator<Item = Result<String, StateError>>, StateError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(io("read", dir)(error)),
    };
    let dir = dir.to_owned();
    Ok(entries.into_iter().flatten().filter_map(move |entry| match entry {
        Ok(entry) => entry.file_name().into_string().ok().map(Ok),
        Err(error) => Some(Err(io("read", &dir)(error))),
    }))
}

/// What a file must be to be a record.
pub(super) trait Record: DeserializeOwned {
    /// The version of its format that this code writes.
    const VERSION: u32;
    /// The version it was written as.
    fn version(&self) -> u32;
}

/// A record, and the file it was read from: while that is open, no other file can have its identity. Records are
/// replaced by renaming, so a record is the current one as long as its name leads to that file.
#[derive(Debug)]
pub(crate) struct Opened<T> {
    /// The record.
    pub(crate) value: T,
    // Open, so that no other can have its identity.
    _file: File,
    identity: (u64, u64),
    path: PathBuf,
}

impl<T> Opened<T> {
    /// Whether nobody has replaced or removed the record since it was read.
    pub(crate) fn is_current(&self) -> Result<bool, StateError> {
        match fs::metadata(&self.path) {
            Ok(now) => Ok((now.dev(), now.ino()) == self.identity),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io("look at", &self.path)(error)),
        }
    }
}

/// Reads a record and keeps its file open; none if there is none.
pub(super) fn open<T: Record>(path: &Path) -> Result<Option<Opened<T>>, StateError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("open", path)(error)),
    };
    let mut text = Vec::new();
    let meta = file.metadata().map_err(io("look at", path))?;
    file.read_to_end(&mut text).map_err(io("read", path))?;
    let identity = (meta.dev(), meta.ino());
    Ok(Some(Opened { value: parse(path, &text)?, _file: file, identity, path: path.to_owned() }))
}

/// Reads a record; none if there is none.
pub(super) fn read<T: Record>(path: &Path) -> Result<Option<T>, StateError> {
    Ok(open(path)?.map(|opened| opened.value))
}

/// Reads a record's text.
pub(super) fn parse<T: Record>(path: &Path, text: &[u8]) -> Result<T, StateError> {
    let format = |why| StateError::Format { path: path.to_owned(), why };
    let record: T = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(text))
        .map_err(|error| format(format!("{}: {}", error.path(), error.inner())))?;
    match record.version() {
        version if version != T::VERSION => {
            Err(format(format!("is of version {version}, this program knows version {}", T::VERSION)))
        }
        _ => Ok(record),
    }
}

pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
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

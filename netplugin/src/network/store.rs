//! The files: one per network, one per attachment, one of addresses per network, and a lock over all.
//!
//! A file is written under another name, synced and renamed, so a reader sees the old or the new one. The default
//! directory does not survive a reboot, and neither does anything the files speak of.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{
    Opened, STAGED, StateError, UNFINISHED, create_dir, io, list, names, open, read, remove, write,
};
use super::lock::{Lock, LockFile};
use super::{Attachment, Network};
use crate::dhcp::Lease;
use crate::ipam::Used;

/// The names of what a killed call never made complete.
const LEFT_OVER: [&str; 2] = [UNFINISHED, STAGED];

/// What the lease of an attachment's address is called, beside the attachment's record.
const LEASE: &str = "lease";

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
        let lock = Lock::take(&self.lock_path())?;
        self.ensure_claims()?;
        Ok(lock)
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The lock's file, for who takes it often. What [`Store::lock`] makes must be there.
    pub(crate) fn lock_file(&self) -> Result<LockFile, StateError> {
        LockFile::open(&self.lock_path())
    }

    fn network_path(&self, name: &str) -> PathBuf {
        self.dir.join("networks").join(format!("{name}.json"))
    }

    pub(super) fn attachment_dir(&self, network: &str) -> PathBuf {
        self.dir.join("attachments").join(network)
    }

    pub(super) fn attachment_path(&self, network: &str, id: &str) -> PathBuf {
        self.attachment_dir(network).join(format!("{id}.json"))
    }

    fn used_path(&self, network: &str) -> PathBuf {
        self.dir.join("addresses").join(format!("{network}.json"))
    }

    /// A network's record.
    pub fn network(&self, name: &str) -> Result<Option<Network>, StateError> {
        read(&self.network_path(name))
    }

    /// A network's record, with which to find out whether it still is.
    pub(crate) fn open_network(&self, name: &str) -> Result<Option<Opened<Network>>, StateError> {
        open(&self.network_path(name))
    }

    /// Writes a network's record.
    pub fn save_network(&self, network: &Network) -> Result<(), StateError> {
        write(&self.network_path(&network.name), network)
    }

    /// Removes a network's record and what was known of its addresses. Fails while it has attachments.
    pub fn remove_network(&self, name: &str) -> Result<(), StateError> {
        let dir = self.attachment_dir(name);
        for entry in list(&dir)? {
            let path = dir.join(entry?);
            if path.extension().is_some_and(|end| LEFT_OVER.iter().any(|left| end == *left)) {
                remove(&path)?;
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

    /// An attachment's record, with the policy that it has now.
    pub fn attachment(&self, network: &str, id: &str) -> Result<Option<Attachment>, StateError> {
        let mut attachment: Option<Attachment> = read(&self.attachment_path(network, id))?;
        if let Some(attachment) = &mut attachment
            && let Some(policy) = self.live_policy(network, id)?
        {
            attachment.policy = policy;
        }
        if let Some(attachment) = &mut attachment {
            attachment.lapsed = self.has_lapsed(attachment)?;
        }
        Ok(attachment)
    }

    fn lease_path(&self, network: &str, id: &str) -> PathBuf {
        self.attachment_dir(network).join(format!("{id}.{LEASE}"))
    }

    /// The lease of an attachment's address, where it is we who asked for it.
    pub fn lease(&self, network: &str, id: &str) -> Result<Option<Lease>, StateError> {
        read(&self.lease_path(network, id))
    }

    /// Whether the address of an attachment is lost to it for the time being.
    pub(crate) fn has_lapsed(&self, attachment: &Attachment) -> Result<bool, StateError> {
        if !attachment.dhcp {
            return Ok(false);
        }
        Ok(self.lease(&attachment.network, &attachment.id)?.is_some_and(|lease| lease.lost.is_some()))
    }

    /// Writes the lease of an attachment's address. The lock is held.
    pub fn save_lease(&self, network: &str, id: &str, lease: &Lease) -> Result<(), StateError> {
        write(&self.lease_path(network, id), lease)
    }

    /// An attachment's record as ADD wrote it, with which to find out whether it still is.
    pub(crate) fn open_attachment(
        &self,
        network: &str,
        id: &str,
    ) -> Result<Option<Opened<Attachment>>, StateError> {
        open(&self.attachment_path(network, id))
    }

    /// Writes an attachment's record. A policy that it was given at run time stays what it is.
    pub fn save_attachment(&self, attachment: &Attachment) -> Result<(), StateError> {
        let dir = self.attachment_dir(&attachment.network);
        if !dir.is_dir() {
            create_dir(&dir)?;
        }
        write(&self.attachment_path(&attachment.network, &attachment.id), attachment)
    }

    /// Removes an attachment's record and the policy it was given at run time. What it has claimed is free from then on.
    pub fn remove_attachment(&self, network: &str, id: &str) -> Result<(), StateError> {
        // The record last: a policy without one would be the next attachment's of this name.
        self.remove_policies(network, id)?;
        remove(&self.lease_path(network, id))?;
        remove(&self.attachment_path(network, id))
    }

    /// Which addresses of a network are taken.
    pub fn used(&self, network: &str) -> Result<Used, StateError> {
        let used: Option<Used> = read(&self.used_path(network))?;
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
        for name in list(&self.attachment_dir(network))? {
            if name?.strip_suffix(".json").is_some_and(|id| id != except) {
                return Ok(true);
            }
        }
        Ok(false)
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
}

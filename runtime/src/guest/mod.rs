//! The guest artefact: kernel, initramfs or root directory, and the manifest that says what they are.
//!
//! One directory for each operating system, built by `cargo xtask guest` and `cargo xtask freebsd guest`, which can be
//! copied to another host. What does not fit this runtime is refused before anything is booted.

mod manifest;
mod os;

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

#[cfg(test)]
pub(crate) use manifest::tests::example as example_manifest;
pub use manifest::{FileInfo, Files, Manifest, RootFile, RootInfo};
pub use os::GuestOs;

/// File name of the manifest in its directory.
pub const MANIFEST: &str = "manifest.json";

/// A guest that fits this runtime.
#[derive(Debug, Clone)]
pub struct Guest {
    os: GuestOs,
    dir: PathBuf,
    manifest: Manifest,
}

/// A guest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// There is none.
    #[error(
        "no {os} guest in {}: {} does not exist; build one with `{}` and set [guest] {} in the configuration to it",
        dir.display(), missing.display(), os.recipe(), os.key()
    )]
    Missing {
        /// Which system's.
        os: GuestOs,
        /// The directory.
        dir: PathBuf,
        /// What is missing in it.
        missing: PathBuf,
    },
    /// A file of it cannot be read.
    #[error("cannot read the guest's {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The manifest is not one.
    #[error("{}:{line}: {message}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// It was made for another runtime.
    #[error(
        "the guest in {} does not fit: its {what} is {guest}, this skep {} needs {host}; rebuild it with `{}`, or use the skep {skep_version} that it was built with",
        dir.display(), crate::VERSION, os.recipe()
    )]
    Mismatch {
        /// Which system's was wanted.
        os: GuestOs,
        /// The directory.
        dir: PathBuf,
        /// What differs.
        what: &'static str,
        /// The guest's.
        guest: String,
        /// This runtime's.
        host: String,
        /// The release that built the guest.
        skep_version: String,
    },
    /// A file is not the one that the manifest describes.
    #[error("{} is damaged: its {what} is {found}, the manifest says {expected}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Size or SHA-256.
        what: &'static str,
        /// The file's.
        found: String,
        /// The manifest's.
        expected: String,
    },
}

/// A manifest is a page.
const MOST_MANIFEST: u64 = 1 << 20;

impl Guest {
    /// Reads the manifest in `dir` and compares it with this runtime, with the system that is wanted and with the sizes
    /// of the files.
    pub fn load(dir: &Path, os: GuestOs) -> Result<Self, GuestError> {
        Self::new(dir, os, read(dir, os)?)
    }

    /// Like [`Guest::load`], whichever system the guest has.
    pub fn load_any(dir: &Path) -> Result<Self, GuestError> {
        let manifest = read(dir, GuestOs::Linux)?;
        let os = GuestOs::ALL.into_iter().find(|os| os.name() == manifest.os).unwrap_or_default();
        Self::new(dir, os, manifest)
    }

    fn new(dir: &Path, os: GuestOs, manifest: Manifest) -> Result<Self, GuestError> {
        if let Some((what, guest, host)) = manifest.mismatch(os) {
            let skep_version = manifest.skep_version;
            return Err(GuestError::Mismatch { os, dir: dir.to_owned(), what, guest, host, skep_version });
        }
        let guest = Self { os, dir: dir.to_owned(), manifest };
        for File { path, size: expected, .. } in guest.files() {
            let size = match std::fs::metadata(&path) {
                Ok(meta) => meta.len(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(GuestError::Missing { os, dir: dir.to_owned(), missing: path });
                }
                Err(source) => return Err(GuestError::Read { path, source }),
            };
            if size != expected {
                let (found, expected) = (format!("{size} bytes"), format!("{expected} bytes"));
                return Err(GuestError::Damaged { path, what: "size", found, expected });
            }
        }
        Ok(guest)
    }

    /// Compares the files with the manifest's SHA-256, byte by byte.
    pub fn verify(&self) -> Result<(), GuestError> {
        for File { path, sha256: expected, .. } in self.files() {
            let found = sha256(&path).map_err(|source| GuestError::Read { path: path.clone(), source })?;
            if found != expected {
                let expected = expected.to_owned();
                return Err(GuestError::Damaged { path, what: "SHA-256", found, expected });
            }
        }
        Ok(())
    }

    /// The kernel: an ELF file with a PVH entry.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(&self.manifest.files.kernel.name)
    }

    /// Its operating system.
    pub fn os(&self) -> GuestOs {
        self.os
    }

    /// The initramfs, a cpio archive: every Linux guest's.
    pub fn initramfs(&self) -> Option<PathBuf> {
        Some(self.dir.join(&self.manifest.files.initramfs.as_ref()?.name))
    }

    /// The directory that is the guest's root: every FreeBSD guest's.
    pub fn root(&self) -> Option<PathBuf> {
        Some(self.dir.join(&self.manifest.files.root.as_ref()?.name))
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn files(&self) -> impl Iterator<Item = File<'_>> {
        let Files { kernel, initramfs, root } = &self.manifest.files;
        let plain = [Some(kernel), initramfs.as_ref()].into_iter().flatten().map(|info| File {
            path: self.dir.join(&info.name),
            sha256: &info.sha256,
            size: info.size,
        });
        let in_root = root.iter().flat_map(|root| {
            root.files.iter().map(|file| File {
                path: self.dir.join(&root.name).join(&file.path),
                sha256: &file.sha256,
                size: file.size,
            })
        });
        plain.chain(in_root)
    }
}

fn read(dir: &Path, os: GuestOs) -> Result<Manifest, GuestError> {
    let path = dir.join(MANIFEST);
    let mut text = Vec::new();
    let read = std::fs::File::open(&path).and_then(|f| f.take(MOST_MANIFEST).read_to_end(&mut text));
    match read {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(GuestError::Missing { os, dir: dir.to_owned(), missing: path });
        }
        Err(source) => return Err(GuestError::Read { path, source }),
    }
    Manifest::parse(&text).map_err(|(line, message)| GuestError::Manifest { path, line, message })
}

/// A file as the manifest describes it.
struct File<'a> {
    path: PathBuf,
    sha256: &'a str,
    size: u64,
}

/// SHA-256 of a file in lowercase hex.
pub fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(crate::guest::hex(&hasher.finalize()))
}

/// Lowercase hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artefact(change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut files = serde_json::Map::new();
        for (key, name, content) in
            [("kernel", "vmlinux", "kernel!"), ("initramfs", "initramfs.cpio", "cpio")]
        {
            std::fs::write(dir.path().join(name), content).unwrap();
            let sha256 = sha256(&dir.path().join(name)).unwrap();
            files.insert(
                key.into(),
                serde_json::json!({"name": name, "sha256": sha256, "size": content.len()}),
            );
        }
        let mut manifest = manifest::tests::example();
        manifest["files"] = files.into();
        change(&mut manifest);
        std::fs::write(dir.path().join(MANIFEST), manifest.to_string()).unwrap();
        dir
    }

    fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
        Guest::load(artefact(change).path(), GuestOs::Linux).unwrap_err().to_string()
    }

    #[test]
    fn a_guest_that_fits_is_loaded_and_verified() {
        let dir = artefact(|_| ());
        let guest = Guest::load(dir.path(), GuestOs::Linux).unwrap();
        assert_eq!(guest.kernel(), dir.path().join("vmlinux"));
        guest.verify().unwrap();
        // Same size, other bytes.
        std::fs::write(guest.kernel(), "kernel?").unwrap();
        let error = Guest::load(dir.path(), GuestOs::Linux).unwrap().verify().unwrap_err().to_string();
        assert!(error.contains("vmlinux is damaged: its SHA-256"), "{error}");
    }

    #[test]
    fn another_version_is_refused_with_both() {
        let error = refusal(|m| m["agent_protocol"] = 99.into());
        let own = skep_protocol::PROTOCOL_VERSION;
        assert!(error.contains("agent protocol is 99") && error.contains(&format!("needs {own}")), "{error}");
        let error = refusal(|m| m["format"] = 2.into());
        assert!(error.contains("manifest format is 2") && error.contains("needs 1"), "{error}");
        let error = refusal(|m| m["arch"] = "aarch64".into());
        assert!(error.contains("architecture is aarch64") && error.contains("needs x86_64"), "{error}");
    }

    #[test]
    fn what_is_missing_or_cut_is_named() {
        let empty = tempfile::tempdir().unwrap();
        let error = Guest::load(empty.path(), GuestOs::Linux).unwrap_err().to_string();
        assert!(
            error.contains("manifest.json does not exist") && error.contains("cargo xtask guest"),
            "{error}"
        );
        let dir = artefact(|_| ());
        std::fs::write(dir.path().join("vmlinux"), "short").unwrap();
        let error = Guest::load(dir.path(), GuestOs::Linux).unwrap_err().to_string();
        assert!(error.contains("its size is 5 bytes, the manifest says 7 bytes"), "{error}");
        std::fs::remove_file(dir.path().join("vmlinux")).unwrap();
        let error = Guest::load(dir.path(), GuestOs::Linux).unwrap_err().to_string();
        assert!(error.contains("vmlinux does not exist"), "{error}");
        let error = refusal(|m| m["files"]["kernel"]["name"] = "../vmlinux".into());
        assert!(error.contains("manifest.json:1:") && error.contains("../vmlinux"), "{error}");
    }
}

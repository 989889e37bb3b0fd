//! The manifest of a guest's directory.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cache;

/// What a runtime checks before it boots this guest.
#[derive(Debug, Serialize)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    pub(crate) os: String,
    pub(crate) arch: String,
    pub(crate) kernel_release: String,
    pub(crate) skep_version: String,
    pub(crate) agent_version: String,
    pub(crate) agent_protocol: u32,
    pub(crate) files: Files,
    pub(crate) features: Vec<String>,
}

/// The files beside the manifest.
#[derive(Debug, Serialize)]
pub(crate) struct Files {
    pub(crate) kernel: FileEntry,
    pub(crate) initramfs: FileEntry,
}

/// One file.
#[derive(Debug, Serialize)]
pub(crate) struct FileEntry {
    pub(crate) name: String,
    pub(crate) sha256: String,
    pub(crate) size: u64,
}

impl FileEntry {
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().context("a path without a name")?.to_string_lossy().into_owned();
        let size = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        Ok(Self { name, sha256: cache::sha256_file(path)?, size })
    }
}

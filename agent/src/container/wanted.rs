//! What is asked of the part that is a system's own, in the host's words.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::Refusal;

/// A container to make.
#[derive(Debug)]
pub(crate) struct Create<'a> {
    pub(crate) id: &'a str,
    pub(crate) spec: &'a [u8],
    pub(crate) rootfs: &'a Path,
    pub(crate) overlay: bool,
    /// Where its terminal is sent, if it has one.
    pub(crate) terminal: Option<&'a Path>,
}

/// Reads what the host sent.
pub(crate) fn parse<T: DeserializeOwned>(field: &str, json: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(json).map_err(|e| Refusal::invalid(format!("{field}: {e}")))
}

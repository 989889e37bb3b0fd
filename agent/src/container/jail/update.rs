//! Changing a container's limits.

use std::path::Path;

use super::limits::{self, Resources};
use crate::container::wanted;
use crate::error::Refusal;

/// Reads the new limits.
pub(crate) fn parse(json: &[u8]) -> Result<Resources, Refusal> {
    wanted::parse("resources", json)
}

/// Holds the jail to them.
pub(crate) fn apply(jail: &Path, resources: &Resources) -> Result<(), Refusal> {
    Ok(limits::apply(jail, resources)?)
}

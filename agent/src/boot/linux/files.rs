//! Files of the kernel.

use std::path::Path;

use crate::boot::BootError;

pub(super) fn read(path: &'static str) -> Result<String, BootError> {
    std::fs::read_to_string(path).map_err(|source| BootError::Read { path, source })
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), BootError> {
    std::fs::write(path, value)
        .map_err(|source| BootError::Write { path: path.display().to_string(), source })
}

//! A system without cgroups.

use std::process::Command;

use super::{CgroupError, CgroupPath, HostSets};

/// There is none.
#[derive(Debug)]
pub struct Cgroup(std::convert::Infallible);

impl Cgroup {
    /// Nothing: the path is Linux's.
    pub fn open<E: From<CgroupError>>(
        _: &CgroupPath,
        _: impl FnOnce() -> Result<(), E>,
    ) -> Result<Option<Self>, E> {
        Ok(None)
    }

    /// Never called.
    pub fn enter(&self, _: &mut Command) -> Result<(), CgroupError> {
        match self.0 {}
    }

    /// Never called.
    pub fn killed_for_memory(&self) -> bool {
        match self.0 {}
    }

    /// Never called.
    pub fn memory_limit(&self) -> Option<u64> {
        match self.0 {}
    }

    /// Never called.
    pub fn confine(&self, _: &HostSets) -> Result<bool, CgroupError> {
        match self.0 {}
    }

    /// Never called.
    pub fn path(&self) -> &CgroupPath {
        match self.0 {}
    }
}

/// Says that there is none.
pub fn join(path: &CgroupPath, _: u32) -> Result<(), CgroupError> {
    Err(CgroupError::Unsupported(path.clone()))
}

/// Nothing was made.
pub fn remove(_: &CgroupPath) -> Result<(), CgroupError> {
    Ok(())
}

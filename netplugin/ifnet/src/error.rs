//! Why the kernel's network did not do what was asked.

use std::io;

/// The kernel's network did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("cannot {what}: {error}")]
    Kernel {
        /// What was tried, with its operand.
        what: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// A jail is not there or has no network stack of its own.
    #[error("jail {name}: {why}")]
    Jail {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Work inside a jail failed otherwise.
    #[error("{0}")]
    Inside(String),
    /// This system cannot do it.
    #[error("{what}: {why}")]
    Unsupported {
        /// What was wanted.
        what: String,
        /// Why not.
        why: String,
    },
}

impl Error {
    /// The kernel's number of the failure, if it has one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }
}

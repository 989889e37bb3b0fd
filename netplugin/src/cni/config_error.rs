//! What may be wrong with a network configuration.

use super::{ResultError, VersionError};
use crate::ipam::IpamError;
use crate::vxlan::VpcError;

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a field of the wrong kind.
    #[error("{field}: {why}")]
    Json {
        /// Where in the configuration.
        field: String,
        /// What the parser says.
        why: String,
    },
    /// A version we do not speak.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// A field's value breaks a rule.
    #[error("{field}: {why}")]
    Field {
        /// Where in the configuration.
        field: &'static str,
        /// Which rule.
        why: String,
    },
    /// A field nobody knows: a misspelt one must not silently leave a sandbox open. The specification wants its value named.
    #[error("{field}: is unknown; its value is {value}")]
    Unknown {
        /// Its name.
        field: String,
        /// The beginning of its value.
        value: String,
    },
    /// `ipam`.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// `vxlan`.
    #[error(transparent)]
    Vpc(#[from] VpcError),
    /// `prevResult`.
    #[error("prevResult.{0}")]
    PrevResult(#[from] ResultError),
}

/// A field whose value breaks a rule.
pub(super) fn wrong(field: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError::Field { field, why: why.into() }
}

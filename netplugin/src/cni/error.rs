//! One error for a whole call, and the number the specification gives it.

use serde_json::{Value, json};

use super::{CniVersion, ConfigError, EnvError, ResultError};
use crate::datapath::DatapathError;
use crate::dhcp::DhcpError;
use crate::ipam::IpamError;
use crate::network::StateError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The environment is not usable.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A result handed to us (`prevResult`) is not usable.
    #[error("prevResult: {0}")]
    PrevResult(#[from] ResultError),
    /// The same interface of the same container is already attached.
    #[error(
        "container `{container}` already has `{ifname}` on network `{network}`: DEL comes before another ADD"
    )]
    AlreadyAttached {
        /// The container.
        container: String,
        /// Its interface.
        ifname: String,
        /// The network.
        network: String,
    },
    /// CHECK, or a change of policy, for something ADD did not make.
    #[error("container `{container}` has no `{ifname}` on network `{network}`")]
    NotAttached {
        /// The container.
        container: String,
        /// Its interface.
        ifname: String,
        /// The network.
        network: String,
    },
    /// A host port is taken by another attachment.
    #[error("runtimeConfig.portMappings: {port} is already mapped to container `{owner}`")]
    PortTaken {
        /// Address, port and protocol.
        port: String,
        /// Who has it.
        owner: String,
    },
    /// CHECK found differences.
    #[error("{}", .0.join("; "))]
    Check(Vec<String>),
    /// Several things failed while undoing; nothing was skipped because of another's failure.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<CniError>),
    /// Addresses.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// A lease.
    #[error(transparent)]
    Dhcp(#[from] DhcpError),
    /// Our own files.
    #[error(transparent)]
    State(#[from] StateError),
    /// The operating system's part.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// STATUS: no ADD could succeed now.
    #[error("not ready: {0}")]
    NotReady(String),
    /// Standard input could not be read.
    #[error("cannot read the configuration from standard input: {0}")]
    Stdin(std::io::Error),
}

impl CniError {
    /// The error code: 1 to 99 are the specification's, 100 and above ours (see the README).
    pub fn code(&self) -> u32 {
        match self {
            Self::Config(ConfigError::Version(_)) => 1,
            Self::Config(ConfigError::Unknown { .. }) => 2,
            Self::Env(_) => 4,
            Self::Stdin(_) => 5,
            Self::Config(ConfigError::Json { .. }) | Self::PrevResult(_) => 6,
            Self::Ipam(IpamError::Delegate { code, .. }) => *code,
            Self::Config(_)
            | Self::PortTaken { .. }
            | Self::Dhcp(DhcpError::NoUplink)
            | Self::Ipam(IpamError::Config { .. } | IpamError::PluginMissing(_)) => 7,
            Self::NotReady(_) => 50,
            Self::NotAttached { .. } => 3,
            Self::AlreadyAttached { .. } => 100,
            Self::Check(_) => 101,
            Self::Ipam(_) | Self::Dhcp(_) => 102,
            Self::State(error) => {
                if error.is_io() {
                    5
                } else {
                    103
                }
            }
            Self::Datapath(DatapathError::Unsupported { .. }) => 105,
            Self::Datapath(error) if error.is_netns_gone() => 3,
            Self::Datapath(_) => 104,
            Self::Several(errors) => errors.first().map_or(104, Self::code),
        }
    }

    /// Whether somebody else has what was wanted.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::PortTaken { .. } | Self::Ipam(IpamError::Taken(_) | IpamError::Exhausted { .. }))
    }

    /// The error object of the specification.
    pub fn to_json(&self, version: CniVersion) -> Value {
        json!({ "cniVersion": version.as_str(), "code": self.code(), "msg": self.to_string() })
    }

    /// One error for a list: none for an empty one.
    pub fn collect(mut errors: Vec<CniError>) -> Result<(), CniError> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

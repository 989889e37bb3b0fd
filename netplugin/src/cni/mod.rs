//! The Container Network Interface: what comes in by environment and standard input, what goes out.
//!
//! Source of facts: the CNI specification 1.1.0, and for older configurations 0.3.1, 0.4.0 and 1.0.0.

mod config;
mod config_error;
mod dispatch;
mod env;
mod error;
mod groups;
mod result;
mod runtime_config;
mod version;

pub(crate) use config::check_name;
pub(crate) use config::default_bridge;
pub use config::{NetConf, Uplink};
pub use config_error::ConfigError;
pub use dispatch::{Outcome, run};
pub use env::{Args, Attach, Command, EnvError, Invocation};
pub use error::CniError;
pub use result::{AddResult, Dns, Interface, IpConfig, ResultError, Route};
pub use runtime_config::{Bandwidth, PortMapping, Protocol, RuntimeConfig};
pub use version::{CniVersion, VersionError};

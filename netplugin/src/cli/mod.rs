//! What administrators type: `skep net ...`, and the same as `skep-cni ...`.

mod declare;
mod host;
mod table;
mod vpc;

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::cni::{CniError, ConfigError, NetConf};
use crate::datapath::DatapathError;
use crate::network::{StateError, Store};
use crate::vpc::{DeclarationError, Directory, InstallError};

/// What was typed.
#[derive(Debug, Args)]
pub struct Net {
    /// Where the records of this host's networks are.
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where declarations are, instead of the system's directory.
    #[arg(long, global = true, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Where runtimes look for CNI configurations, instead of the system's directory.
    #[arg(long, global = true, value_name = "DIR")]
    cni_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Vpc(vpc::Command),
    #[command(flatten)]
    Host(host::Command),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A declaration.
    #[error(transparent)]
    Declaration(#[from] DeclarationError),
    /// Putting one into force.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A network or sandbox.
    #[error(transparent)]
    Cni(#[from] CniError),
    /// A configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operating system's part.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Files.
    #[error(transparent)]
    State(#[from] StateError),
    /// Standard input or a file that was named.
    #[error("{what}: {why}")]
    Input {
        /// Which.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A result cannot be printed.
    #[error("cannot print the result: {0}")]
    Output(#[from] serde_json::Error),
}

/// Does what was typed. The exit status is 1 where something is not as it should be, though nothing failed.
pub fn run(arguments: &Net) -> Result<ExitCode, CliError> {
    match &arguments.command {
        Command::Vpc(command) => vpc::run(command, arguments),
        Command::Host(command) => host::run(command, arguments),
    }
}

impl Net {
    fn directory(&self) -> Directory {
        Directory::new().at(self.config_dir.clone(), self.cni_dir.clone())
    }

    fn store(&self, conf: Option<&NetConf>) -> Store {
        let configured = conf.and_then(|conf| conf.data_dir.clone());
        Store::new(self.data_dir.clone().or(configured).unwrap_or_else(|| Store::default_dir().to_owned()))
    }
}

/// No configuration, declaration or policy is longer.
const MAX_INPUT: u64 = 64 << 20;

fn standard_input() -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_INPUT)
        .read_to_end(&mut bytes)
        .map_err(|error| CliError::Input { what: "standard input".to_owned(), why: error.to_string() })?;
    Ok(bytes)
}

fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    use std::io::Write as _;
    let text = serde_json::to_string_pretty(value)?;
    // Whoever reads may have heard enough.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

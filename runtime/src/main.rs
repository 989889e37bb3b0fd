//! `skep`: looks after what the runtime keeps on a host.

mod list;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use skep::config::Config;
use skep::doctor::Patient;
use skep::guest::Guest;
use skep::sandbox;

/// Containers in microVMs.
#[derive(Parser)]
#[command(name = "skep", version)]
struct Arguments {
    /// Configuration file, instead of `$SKEP_CONFIG` or the system's.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Lists sandboxes, with the processor time and resident memory that their VMs cost this host.
    List {
        /// As JSON: processor time in microseconds, memory in bytes.
        #[arg(long)]
        json: bool,
    },
    /// Removes what is left of sandboxes that nobody looks after any more.
    Gc,
    /// Says what this host lacks to run containers, and what to type for it. Exit status 0: they would run; 1: not.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// containerd's socket, instead of `$CONTAINERD_ADDRESS` or the usual one.
        #[arg(long, value_name = "SOCKET")]
        containerd: Option<PathBuf>,
    },
    /// Networks of sandboxes: declares them over several hosts, shows and repairs what this host has of them.
    Net(skep_cni::cli::Net),
    /// Looks at the configuration.
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Looks at a guest.
    Guest {
        #[command(subcommand)]
        verb: GuestVerb,
    },
}

#[derive(Subcommand)]
enum ConfigVerb {
    /// Says whether the configuration is valid.
    Check {
        /// The file, instead of the one that would be used.
        file: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum GuestVerb {
    /// Says whether a guest fits this release and whether its files are whole.
    Verify {
        /// Directory with manifest, kernel and initramfs.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    if let Some(code) = skep::stand_in::main() {
        return code;
    }
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(e) => {
            // Each error's text has that of its cause.
            eprintln!("skep: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.verb {
        Verb::List { json } => list::run(&Config::load(arguments.config.as_deref())?, *json),
        Verb::Gc => gc(&Config::load(arguments.config.as_deref())?),
        Verb::Doctor { json, containerd } => {
            let patient = Patient { config: arguments.config.clone(), containerd: containerd.clone() };
            doctor(&patient, *json)
        }
        Verb::Net(arguments) => Ok(skep_cni::cli::run(arguments)?),
        Verb::Config { verb: ConfigVerb::Check { file } } => {
            let file = file.as_deref().or(arguments.config.as_deref());
            Config::load(file)?;
            println!("valid");
            Ok(ExitCode::SUCCESS)
        }
        Verb::Guest { verb: GuestVerb::Verify { dir } } => {
            let guest = Guest::load_any(dir)?;
            guest.verify()?;
            let manifest = guest.manifest();
            println!(
                "valid: {} {} {}, agent {} (protocol {})",
                manifest.os,
                manifest.kernel_release,
                manifest.arch,
                manifest.agent_version,
                manifest.agent_protocol
            );
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn doctor(patient: &Patient, json: bool) -> anyhow::Result<ExitCode> {
    use std::io::Write as _;

    let report = skep::doctor::examine(patient);
    let text = if json { serde_json::to_string_pretty(&report)? } else { report.to_string() };
    // Whoever reads may have heard enough.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(if report.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn gc(config: &Config) -> anyhow::Result<ExitCode> {
    let report = sandbox::gc(config)?;
    for dir in &report.removed {
        println!("removed {}", dir.display());
    }
    for errors in &report.errors {
        eprintln!("skep: {errors}");
    }
    println!(
        "{} removed, {} in use, {} with errors",
        report.removed.len(),
        report.in_use.len(),
        report.errors.len()
    );
    Ok(if report.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! The CNI plugin's binary: without arguments the CNI speaks, by environment and standard input; with arguments an
//! administrator does.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use skep_cni::{cli, cni};

/// Skep's networks (`skep net` is the same). Called without arguments it is a CNI plugin.
#[derive(Parser)]
#[command(name = "skep-cni", version)]
struct Call {
    #[command(flatten)]
    arguments: cli::Net,
}

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        return match cli::run(&Call::parse().arguments) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("skep-cni: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if std::env::var_os("CNI_COMMAND").is_none() && std::io::stdin().is_terminal() {
        eprintln!("skep-cni: a CNI plugin, called by a container runtime; see skep-cni --help for the rest");
        return ExitCode::FAILURE;
    }
    let outcome = cni::run(|name| std::env::var(name).ok(), std::io::stdin().lock());
    if let Some(output) = outcome.output {
        println!("{output}");
    }
    if outcome.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

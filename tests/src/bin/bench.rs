//! `cargo xtask bench`: measures and prints.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use skep_tests::bench::{self, Options};
use skep_tests::containerd_versions::Line;
use skep_tests::process;

/// Measures what a container in a microVM costs, beside the same container by runc.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each thing is run; medians are reported.
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Under which containerd: 1.6, 1.7 or 2.
    #[arg(long, default_value = "1.6", value_parser = line)]
    containerd: Line,
    /// How many processes are added to one container, to see whether the shim grows.
    #[arg(long, default_value_t = 0)]
    execs: usize,
    /// How many containers are run one after another, and again ten at a time.
    #[arg(long, default_value_t = 0)]
    containers: usize,
    /// Prints JSON in the place of a table.
    #[arg(long)]
    json: bool,
}

fn line(name: &str) -> Result<Line, String> {
    let all = Line::ALL;
    all.into_iter()
        .find(|line| line.to_string() == name)
        .ok_or_else(|| format!("known are {}", all.map(|line| line.to_string()).join(", ")))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    process::catch_interrupts()?;
    let options = Options {
        runs: arguments.runs,
        line: arguments.containerd,
        execs: arguments.execs,
        containers: arguments.containers,
    };
    let report = bench::run(&options, &mut |what| eprintln!("{what}"))?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

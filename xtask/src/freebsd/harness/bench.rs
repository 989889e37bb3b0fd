//! `cargo xtask freebsd bench`: what sandboxes cost under bhyve, beside the same guest under QEMU on this host.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use skep_tests::figures::{Figure, table};
use skep_tests::suite::GUEST_VARIABLE;

use super::payload::{Contents, Group};
use super::{Host, run};
use crate::cache::Cache;
use crate::progress::{Step, heading, line};
use crate::{apt, command, guest, workspace};

/// The cases that measure: what containers cost, how much the console carries, and that many sandboxes leave nothing.
const CASES: &str = "skep::2::figures,console_both_ways,twenty_sandboxes";
const PROGRAM: [&str; 6] = ["--package", "skep-tests", "--features", "bench", "--bin", "bench-guest"];
/// How long the part on this host may take.
const LIMIT: Duration = Duration::from_secs(1200);

/// Which FreeBSD, and how much.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchOptions {
    #[command(flatten)]
    host: Host,
    /// How many sandboxes are booted by themselves on either host; medians are reported
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Build without optimisation: figures of such a run mean nothing
    #[arg(long)]
    dev: bool,
    /// A directory with a FreeBSD guest, as `freebsd guest` makes it, for cases that want one
    #[arg(long, value_name = "DIR")]
    freebsd_guest: Option<PathBuf>,
    /// Cases to run in place of those that measure containers
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

/// Measures and prints a table in Markdown; an error if anything failed on the way.
pub(crate) fn bench(options: &BenchOptions, cache: &Cache) -> Result<()> {
    let mut here = Vec::new();
    let contents = Contents {
        groups: vec![Group::E2e],
        arguments: if options.arguments.is_empty() {
            vec![CASES.to_owned()]
        } else {
            options.arguments.clone()
        },
        rounds: Some(options.rounds),
        freebsd_guest: options.freebsd_guest.clone(),
        dev: options.dev,
    };
    let results = run(&options.host, &contents, cache, || {
        here = on_this_host(options, cache)?;
        Ok(())
    })?;
    let table = table(&[("bhyve on FreeBSD", results.figures()), ("QEMU on this host", &here)]);
    let path = workspace::target_dir().join("freebsd-harness/figures.md");
    std::fs::write(&path, &table).with_context(|| format!("cannot write {}", path.display()))?;
    println!("\n{table}\n{results}");
    line(&format!("also in {}", path.display()));
    ensure!(results.none_failed(), "not all went well");
    Ok(())
}

/// The same guest under QEMU, before the other machine takes the processors.
fn on_this_host(options: &BenchOptions, cache: &Cache) -> Result<Vec<Figure>> {
    ensure!(nix::unistd::geteuid().is_root(), "this task makes sandboxes: run it as root");
    apt::ensure(&[apt::RUN], cache)?;
    heading("This host");
    let guest = guest::build(std::env::consts::ARCH, None, cache)?;
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--quiet", "--locked"]).args(PROGRAM);
    if !options.dev {
        cargo.arg("--release");
    }
    command::run(&mut cargo).context("the benchmark does not build")?;
    let profile = if options.dev { "debug" } else { "release" };
    let mut program = Command::new(workspace::target_dir().join(profile).join("bench-guest"));
    program.arg(options.rounds.to_string()).env(GUEST_VARIABLE, guest);
    let step = Step::start("booting its sandboxes");
    let said = command::output(&mut program, LIMIT).context("measuring on this host")?;
    step.done("");
    Ok(said.lines().filter_map(Figure::parse).collect())
}

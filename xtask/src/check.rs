//! `cargo xtask test`, `bench` and `lint`: running others' checks with all they need in place.

use anyhow::{Context as _, Result};
use skep_tests::{cnitool, containerd_versions, cri, nerdctl};

use crate::cache::Cache;
use crate::phases::Phases;
use crate::progress::{Step, heading};
use crate::setup::Setup;
use crate::{apt, command, freebsd, workspace};

/// What is not built without being asked for, and yet is to be checked: the benchmark.
const FEATURES: &str = "skep-tests/bench";
/// The version of cargo-deny that lint uses.
const CARGO_DENY: &str = "0.20.2";

/// Every test of the workspace, end-to-end ones included. `arguments` go to the test programs.
pub(crate) fn test(arguments: &[String], cache: &Cache) -> Result<()> {
    let setup = Setup::make(&[apt::TESTS], cache, &mut Phases::default())?;
    let mut step = Step::start("finding the versions of containerd");
    let versions =
        containerd_versions::fetch(&containerd_versions::default_cache()?, &mut |what| step.note(what))?;
    let versions: Vec<_> = versions.into_iter().map(|installation| installation.version).collect();
    step.done(&versions.join(", "));
    let mut step = Step::start("finding nerdctl");
    let tools = nerdctl::fetch(&containerd_versions::default_cache()?, &mut |what| step.note(what))?;
    step.done(&tools.nerdctl.display().to_string());
    let mut step = Step::start("finding crictl");
    let (crictl, _) = cri::fetch(&containerd_versions::default_cache()?, &mut |what| step.note(what))?;
    step.done(&crictl.display().to_string());
    let mut step = Step::start("finding cnitool and the CNI plugins");
    let tools = cnitool::fetch(&containerd_versions::default_cache()?, &mut |what| step.note(what))?;
    step.done(&tools.plugins.display().to_string());
    heading("Tests");
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--workspace", "--locked", "--features", FEATURES]).envs(setup.environment());
    if !arguments.is_empty() {
        cargo.arg("--").args(arguments);
    }
    command::run(&mut cargo)
}

/// The benchmark. `arguments` go to it.
pub(crate) fn bench(arguments: &[String], cache: &Cache) -> Result<()> {
    let setup = Setup::make(&[apt::TESTS], cache, &mut Phases::default())?;
    heading("Benchmark");
    let mut cargo = workspace::cargo();
    cargo.args([
        "run",
        "--release",
        "--quiet",
        "--locked",
        "--package",
        "skep-tests",
        "--features",
        "bench",
        "--bin",
        "bench",
        "--",
    ]);
    command::run(cargo.args(arguments).envs(setup.environment()))
}

/// Format, clippy, documentation, dependencies: nothing may warn, on either host.
pub(crate) fn lint(cache: &Cache) -> Result<()> {
    apt::ensure(&[apt::COMPILER, apt::AGENT], cache)?;
    heading("Format");
    command::run(workspace::cargo().args(["fmt", "--all", "--check"]))
        .context("some files are not formatted: cargo fmt --all")?;
    heading("Clippy and documentation");
    command::run(workspace::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        FEATURES,
        "--locked",
        "--keep-going",
        "--",
        "--deny",
        "warnings",
    ]))?;
    command::run(
        workspace::cargo()
            .args([
                "doc",
                "--workspace",
                "--no-deps",
                "--features",
                FEATURES,
                "--locked",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )?;
    heading("FreeBSD hosts");
    freebsd::check(cache)?;
    heading("Dependencies");
    deny(cache, &["licenses", "bans", "sources"])
}

/// Known vulnerabilities of dependencies. Apart from lint: it fetches `RustSec`'s database, and what it says changes
/// without a change here.
pub(crate) fn audit(cache: &Cache) -> Result<()> {
    apt::ensure(&[apt::COMPILER], cache)?;
    deny(cache, &["advisories"])
}

fn deny(cache: &Cache, what: &[&str]) -> Result<()> {
    let dir = cache.get_or_build("cargo-deny", CARGO_DENY, |dir| {
        let mut step = Step::start(format!("building cargo-deny {CARGO_DENY}"));
        let mut cargo = workspace::cargo();
        cargo.args(["install", "cargo-deny", "--version", CARGO_DENY, "--locked", "--root"]).arg(dir);
        command::run_logged(&mut cargo, &cache.log("cargo-deny")?, &mut step)?;
        step.done("");
        Ok(())
    })?;
    let mut deny = std::process::Command::new(dir.join("bin/cargo-deny"));
    deny.current_dir(workspace::root());
    command::run(deny.args(["--locked", "check"]).args(what))
}

//! `cargo xtask freebsd`: everything that runs on a FreeBSD host, built and checked on Linux, and run by [`harness`].

mod debian;
pub(crate) mod guest;
pub(crate) mod harness;
mod rustup;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::Cache;
use crate::progress::{Step, heading, line};
use crate::{apt, command, workspace};

/// The target of FreeBSD hosts.
pub(crate) const TARGET: &str = "x86_64-unknown-freebsd";
/// The crates that make up a host, and the agent of FreeBSD guests.
const CRATES: &[&str] = &[
    "skep",
    "containerd-shim-skep-v2",
    "skep-containerd-api",
    "skep-protocol",
    "skep-ifnet",
    "skep-cni",
    "skep-agent",
];
/// The linker, with FreeBSD's libraries in it, and what makes it look like one to cargo: both from `PyPI`.
const LINKER: &[&str] = &["ziglang==0.17.0", "cargo-zigbuild==0.24.0"];
/// `debian` leaves rustup out even where it is.
const TOOLCHAIN_VARIABLE: &str = "SKEP_FREEBSD_TOOLCHAIN";

/// A Rust that compiles for FreeBSD, and a linker for it.
#[derive(Debug)]
pub(crate) struct Toolchain {
    linker: PathBuf,
    rust: Rust,
}

#[derive(Debug)]
enum Rust {
    /// The one that runs us, with the target's standard library added.
    Own,
    /// Debian's, unpacked below this directory.
    Debian(PathBuf),
}

impl Toolchain {
    fn make(cache: &Cache) -> Result<Self> {
        let linker = linker(cache)?;
        let forced = std::env::var_os(TOOLCHAIN_VARIABLE).is_some_and(|value| value == "debian");
        let refusal = if forced {
            format!("{TOOLCHAIN_VARIABLE} says so")
        } else {
            match rustup::add_target(TARGET) {
                Ok(()) => return Ok(Self { linker, rust: Rust::Own }),
                Err(error) => format!("{error:#}"),
            }
        };
        line(&format!("taking Debian's Rust and building its standard library for {TARGET}: {refusal}"));
        let rust = debian::toolchain(&linker, cache)?;
        Ok(Self { linker, rust: Rust::Debian(rust) })
    }

    /// cargo with `subcommand` for FreeBSD, in a target directory of its own: another compiler, other flags.
    fn cargo(&self, subcommand: &str) -> Command {
        let mut command = match (&self.rust, subcommand) {
            (Rust::Own, "zigbuild") => {
                let mut command = Command::new(self.linker.join("bin/cargo-zigbuild"));
                command.current_dir(workspace::root());
                command
            }
            (Rust::Own, _) => workspace::cargo(),
            (Rust::Debian(dir), _) => debian::cargo(dir, &self.linker),
        };
        command.arg(subcommand).env("CARGO_ZIGBUILD_ZIG_PATH", self.linker.join("ziglang/zig"));
        command.arg("--target-dir").arg(self.target_dir());
        command.args(["--locked", "--target", TARGET]);
        command
    }

    /// Where [`Toolchain::cargo`] puts what it builds.
    fn target_dir(&self) -> PathBuf {
        let dir = match self.rust {
            Rust::Own => "freebsd",
            Rust::Debian(_) => "freebsd-debian",
        };
        workspace::target_dir().join(dir)
    }
}

/// Builds, lints and documents every host crate, and the agent, for FreeBSD; a warning is an error.
pub(crate) fn check(cache: &Cache) -> Result<()> {
    apt::ensure(&[apt::COMPILER, apt::PYTHON], cache)?;
    let toolchain = Toolchain::make(cache)?;
    let crates = || CRATES.iter().flat_map(|name| ["--package", name]);
    heading(&format!("Building for {TARGET}"));
    command::run(toolchain.cargo("zigbuild").args(crates())).context("they do not build")?;
    heading(&format!("Clippy and documentation for {TARGET}"));
    command::run(toolchain.cargo("clippy").args(crates()).args([
        "--keep-going",
        "--",
        "--deny",
        "warnings",
    ]))?;
    let tests =
        ["--package", "skep-tests", "--package", "skep-cni", "--all-targets", "--", "--deny", "warnings"];
    command::run(toolchain.cargo("clippy").args(tests)).context("the tests that run there")?;
    command::run(toolchain.cargo("doc").args(crates()).arg("--no-deps").env("RUSTDOCFLAGS", "-Dwarnings"))?;
    Ok(())
}

/// The linker's directory in the cache: `bin/cargo-zigbuild` and `ziglang/zig`.
fn linker(cache: &Cache) -> Result<PathBuf> {
    cache.get_or_build("freebsd-linker", &LINKER.join(" "), |dir| {
        let mut step = Step::start(format!("fetching {}", LINKER.join(" and ")));
        let log = cache.log("freebsd-linker")?;
        // Debian's pip installs into environments only; what is wanted is the files.
        let environment = tempfile::tempdir_in(dir).context("cannot make a Python environment")?;
        let mut venv = Command::new(apt::SYSTEM_PYTHON);
        command::run_logged(venv.args(["-m", "venv"]).arg(environment.path()), &log, &mut step)?;
        let mut pip = Command::new(environment.path().join("bin/pip"));
        pip.args(["install", "--no-deps", "--no-cache-dir", "--target"]).arg(dir).args(LINKER);
        command::run_logged(&mut pip, &log, &mut step)?;
        for tool in ["bin/cargo-zigbuild", "ziglang/zig"] {
            let path: &Path = &dir.join(tool);
            anyhow::ensure!(path.is_file(), "{} has no {tool}", LINKER.join(" and "));
        }
        step.done("");
        Ok(())
    })
}

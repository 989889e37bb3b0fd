//! The target's standard library from rustup: the usual case.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::command;
use crate::progress::Step;
use crate::workspace;

/// A download over a slow line, with rustup's own retries.
const LIMIT: Duration = Duration::from_secs(600);

/// Adds `target` to the toolchain that runs us, unless it is there.
pub(super) fn add_target(target: &str) -> Result<()> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "sysroot"]).current_dir(workspace::root());
    let sysroot = command::output(&mut rustc, Duration::from_secs(30))?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib");
    if library.is_dir() {
        return Ok(());
    }
    ensure!(command::find_program("rustup").is_some(), "there is no rustup that could add {target}");
    let step = Step::start(format!("adding {target} by rustup"));
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", target]).current_dir(workspace::root());
    command::output(&mut rustup, LIMIT)
        .with_context(|| format!("rustup has no {target} for this toolchain"))?;
    ensure!(library.is_dir(), "rustup added {target}, but {} is not there", library.display());
    step.done("");
    Ok(())
}

//! The program that gives a VM a socket device where the host's kernel has no vhost-vsock.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::containerd_versions::default_cache;
use crate::process::{Input, Running};

const PROGRAM: &str = "vhost-device-vsock";
/// What of it was seen working with Skep.
const VERSION: &str = "0.3.0";
/// How long its build may take.
const BUILD: Duration = Duration::from_secs(1200);

/// Where the program is: in the search path, or in the cache, where it is built the first time.
pub fn backend() -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) =
        std::env::split_paths(&path).map(|place| place.join(PROGRAM)).find(|path| path.exists())
    {
        return Ok(found);
    }
    let containerds = default_cache()?;
    let root = containerds.parent().unwrap_or(Path::new("/")).join(PROGRAM);
    let program = root.join("bin").join(PROGRAM);
    if !program.exists() {
        eprintln!("building {PROGRAM} {VERSION}, which takes a minute or two");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["install", PROGRAM, "--version", VERSION, "--locked", "--root"]).arg(&root);
        Running::spawn(cargo, Input::Empty)?
            .wait(BUILD)?
            .succeeded()
            .context("building the vsock backend")?;
        ensure!(program.exists(), "cargo install left no {}", program.display());
    }
    Ok(program)
}

//! nerdctl and the CNI plugins it uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::containerd_versions::default_cache;
use crate::debian::Apt;
use crate::go::Module;

const NERDCTL: Module = Module {
    name: "nerdctl",
    path: "github.com/containerd/nerdctl/v2",
    version: "2.0.4",
    packages: &["cmd/nerdctl"],
    go: (1, 23),
    replaced: &["github.com/containerd/nerdctl/mod/tigron"],
};
/// The CNI plugins that networks need.
const CNI: (&str, &[&str]) = ("bookworm", &["containernetworking-plugins"]);
/// Where the package has them.
const CNI_DIRECTORY: &str = "usr/lib/cni";

/// Where things are.
#[derive(Clone, Debug)]
pub struct Tools {
    /// nerdctl's program.
    pub nerdctl: PathBuf,
    /// The directory of the CNI plugins.
    pub cni: PathBuf,
}

/// nerdctl and the plugins, got if they are nowhere yet.
pub fn require() -> Result<Tools> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    fetch(&default_cache()?, &mut |step| eprintln!("{step}"))
}

/// Gets what is not in `cache` yet. `progress` is told what takes long.
pub fn fetch(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<Tools> {
    Ok(Tools { cni: fetch_cni(cache, progress)?, nerdctl: NERDCTL.fetch(cache, progress)? })
}

/// The directory of the CNI plugins, got if they are not in `cache` yet.
pub fn fetch_cni(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    fs::create_dir_all(cache).with_context(|| format!("creating {}", cache.display()))?;
    let directory = cache.join("cni").join(CNI_DIRECTORY);
    if !directory.join("bridge").exists() {
        progress("fetching the CNI plugins from Debian");
        Apt::new(&[CNI.0], cache)?.unpack(CNI.1, CNI.0, &cache.join("cni"))?;
    }
    Ok(directory)
}

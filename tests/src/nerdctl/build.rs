//! nerdctl and the CNI plugins it uses: Debian packages neither nerdctl nor a Go that is new enough, so nerdctl is built
//! from its Go module, by the machine's Go or one from another Debian release.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::containerd_versions::default_cache;
use crate::debian::Apt;
use crate::process::{Input, Running, run};

/// The version that is built.
const VERSION: &str = "2.0.4";
/// What its go.mod asks for.
const LEAST_GO: (u32, u32) = (1, 23);
/// A Go that is new enough: release and packages.
const GO: (&str, &[&str]) = ("trixie", &["golang-1.24-go", "golang-1.24-src"]);
/// Where the packages have it.
const GO_PROGRAM: &str = "usr/lib/go-1.24/bin/go";
/// The CNI plugins that nerdctl's networks need.
const CNI: (&str, &[&str]) = ("bookworm", &["containernetworking-plugins"]);
/// Where the package has them.
const CNI_DIRECTORY: &str = "usr/lib/cni";
/// Building may take that long on a busy machine.
const LIMIT: Duration = Duration::from_secs(3600);

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
    fs::create_dir_all(cache).with_context(|| format!("creating {}", cache.display()))?;
    let tools = Tools {
        nerdctl: cache.join(format!("nerdctl-{VERSION}")),
        cni: cache.join("cni").join(CNI_DIRECTORY),
    };
    let mut apt = Lazy { cache, apt: None };
    if !tools.cni.join("bridge").exists() {
        progress("fetching the CNI plugins from Debian");
        apt.get()?.unpack(CNI.1, CNI.0, &cache.join("cni"))?;
    }
    if !tools.nerdctl.exists() {
        let go = if let Some(go) = machine_go() {
            go
        } else {
            let unpacked = cache.join("go").join(GO_PROGRAM);
            if !unpacked.exists() {
                progress("fetching Go from Debian");
                apt.get()?.unpack(GO.1, GO.0, &cache.join("go"))?;
            }
            unpacked
        };
        progress(&format!("building nerdctl {VERSION}"));
        build(&go, cache, &tools.nerdctl)?;
    }
    Ok(tools)
}

/// Package lists are read when the first package is asked for.
struct Lazy<'a> {
    cache: &'a Path,
    apt: Option<Apt>,
}

impl Lazy<'_> {
    fn get(&mut self) -> Result<&Apt> {
        if self.apt.is_none() {
            self.apt = Some(Apt::new(&[GO.0, CNI.0], self.cache)?);
        }
        self.apt.as_ref().context("the package lists have been read")
    }
}

/// The machine's own Go, if it is new enough.
fn machine_go() -> Option<PathBuf> {
    let mut command = Command::new("go");
    command.args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local");
    let version = run(command).ok()?.text().ok()?;
    (parse_version(&version)? >= LEAST_GO).then(|| "go".into())
}

/// Of "go1.24.4" or "go1.23rc1 X:none".
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.strip_prefix("go")?.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Builds nerdctl, every module being checked against Go's checksum database.
fn build(go: &Path, cache: &Path, program: &Path) -> Result<()> {
    let work = tempfile::tempdir_in(cache)
        .with_context(|| format!("creating a directory in {}", cache.display()))?;
    let path = |name: &str| work.path().join(name);
    // nerdctl's own go.mod points to a directory for a module that its tests need: a stand-in is enough.
    fs::create_dir(path("tigron"))?;
    fs::write(path("tigron/go.mod"), "module github.com/containerd/nerdctl/mod/tigron\n")?;
    let (major, minor) = LEAST_GO;
    fs::write(
        path("go.mod"),
        format!(
            "module skep.test/nerdctl\n\
             go {major}.{minor}\n\
             require github.com/containerd/nerdctl/v2 v{VERSION}\n\
             replace github.com/containerd/nerdctl/mod/tigron => ./tigron\n"
        ),
    )?;
    let mut command = Command::new(go);
    command.args(["build", "-trimpath", "-ldflags=-s -w", "-o"]).arg(path("nerdctl"));
    command.arg("github.com/containerd/nerdctl/v2/cmd/nerdctl").current_dir(work.path());
    command.env("GOPATH", path("modules")).env("GOCACHE", path("objects")).env("CGO_ENABLED", "0");
    command.env("GOFLAGS", "-mod=mod -modcacherw -buildvcs=false").env("GOTOOLCHAIN", "local");
    for variable in ["GOMODCACHE", "GOROOT", "GOWORK", "GO111MODULE"] {
        command.env_remove(variable);
    }
    Running::spawn(command, Input::Empty)?.wait(LIMIT)?.succeeded().context("nerdctl does not build")?;
    ensure!(path("nerdctl").exists(), "go left no program");
    fs::rename(path("nerdctl"), program).with_context(|| format!("putting {} in place", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_compared_as_numbers() {
        assert_eq!(parse_version("go1.24.4"), Some((1, 24)));
        assert_eq!(parse_version("go1.9"), Some((1, 9)));
        assert_eq!(parse_version("go1.25rc1 X:nodwarf5"), Some((1, 25)));
        assert!(parse_version("go1.9").unwrap() < LEAST_GO);
        assert_eq!(parse_version("devel +0123"), None);
    }
}

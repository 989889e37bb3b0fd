//! Programs built from Go modules that Debian does not package, by the machine's Go or one from another Debian release.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::debian::Apt;
use crate::process::{Input, Running, run};

/// A Go that is new enough for all modules: release and packages.
const PACKAGES: (&str, &[&str]) = ("trixie", &["golang-1.24-go", "golang-1.24-src"]);
/// Where the packages have it.
const PROGRAM: &str = "usr/lib/go-1.24/bin/go";
/// Building may take that long on a busy machine.
const LIMIT: Duration = Duration::from_secs(3600);

/// A module, and the programs that are built from it.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// What they are called: the program, or the directory of several.
    pub name: &'static str,
    /// The module's path.
    pub path: &'static str,
    /// Its version, without `v`.
    pub version: &'static str,
    /// The packages of the programs, below the module.
    pub packages: &'static [&'static str],
    /// The Go that its go.mod asks for.
    pub go: (u32, u32),
    /// Modules that its go.mod replaces by directories, and which only its tests need: stand-ins are enough.
    pub replaced: &'static [&'static str],
}

impl Module {
    /// The program in `cache`, or the directory of several, built if it is not there. `progress` is told what takes long.
    pub fn fetch(&self, cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let program = cache.join(format!("{}-{}", self.name, self.version));
        if program.exists() {
            return Ok(program);
        }
        fs::create_dir_all(cache).with_context(|| format!("creating {}", cache.display()))?;
        let go = require(self.go, cache, progress)?;
        progress(&format!("building {} {}", self.name, self.version));
        self.build(&go, cache, &program)?;
        Ok(program)
    }

    /// Builds, every module being checked against Go's checksum database.
    fn build(&self, go: &Path, cache: &Path, program: &Path) -> Result<()> {
        let work = tempfile::tempdir_in(cache)
            .with_context(|| format!("creating a directory in {}", cache.display()))?;
        let path = |name: &str| work.path().join(name);
        let (major, minor) = self.go;
        let mut text = format!(
            "module skep.test/{}\ngo {major}.{minor}\nrequire {} v{}\n",
            self.name, self.path, self.version
        );
        for (index, module) in self.replaced.iter().enumerate() {
            let directory = format!("replaced-{index}");
            fs::create_dir(path(&directory))?;
            fs::write(path(&directory).join("go.mod"), format!("module {module}\n"))?;
            let _ = writeln!(text, "replace {module} => ./{directory}");
        }
        fs::write(path("go.mod"), text)?;
        if self.packages.len() > 1 {
            // To go, a file is the one program, a directory the place of several.
            fs::create_dir(path(self.name))?;
        }
        let mut command = Command::new(go);
        command.args(["build", "-trimpath", "-ldflags=-s -w", "-o"]).arg(path(self.name));
        command.args(self.packages.iter().map(|package| format!("{}/{package}", self.path)));
        command.current_dir(work.path());
        command.env("GOPATH", path("modules")).env("GOCACHE", path("objects")).env("CGO_ENABLED", "0");
        command.env("GOFLAGS", "-mod=mod -modcacherw -buildvcs=false").env("GOTOOLCHAIN", "local");
        for variable in ["GOMODCACHE", "GOROOT", "GOWORK", "GO111MODULE"] {
            command.env_remove(variable);
        }
        Running::spawn(command, Input::Empty)?
            .wait(LIMIT)?
            .succeeded()
            .with_context(|| format!("{} does not build", self.name))?;
        ensure!(path(self.name).exists(), "go left no program");
        fs::rename(path(self.name), program)
            .with_context(|| format!("putting {} in place", program.display()))
    }
}

/// The machine's own Go if it is new enough, else one from Debian.
fn require(least: (u32, u32), cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    if let Some(go) = machine_go(least) {
        return Ok(go);
    }
    let unpacked = cache.join("go").join(PROGRAM);
    if !unpacked.exists() {
        progress("fetching Go from Debian");
        Apt::new(&[PACKAGES.0], cache)?.unpack(PACKAGES.1, PACKAGES.0, &cache.join("go"))?;
    }
    Ok(unpacked)
}

fn machine_go(least: (u32, u32)) -> Option<PathBuf> {
    let mut command = Command::new("go");
    command.args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local");
    let version = run(command).ok()?.text().ok()?;
    (parse_version(&version)? >= least).then(|| "go".into())
}

/// Of "go1.24.4" or "go1.23rc1 X:none".
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.strip_prefix("go")?.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_compared_as_numbers() {
        assert_eq!(parse_version("go1.24.4"), Some((1, 24)));
        assert_eq!(parse_version("go1.9"), Some((1, 9)));
        assert_eq!(parse_version("go1.25rc1 X:nodwarf5"), Some((1, 25)));
        assert!(parse_version("go1.9").unwrap() < (1, 23));
        assert_eq!(parse_version("devel +0123"), None);
    }
}

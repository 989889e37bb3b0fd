//! Packages of Debian's releases, unpacked and not installed.
//!
//! They come from the mirror that the machine's own apt sources name, verified with the machine's own keys, through an
//! apt with lists of its own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Input, Running, run};

/// An apt with sources and lists of its own, and everything else as the machine has it.
pub(crate) struct Apt {
    work: tempfile::TempDir,
}

impl Apt {
    /// Reads the package lists of the releases `suites`; it works in a directory in `cache`.
    pub(crate) fn new(suites: &[&str], cache: &Path) -> Result<Self> {
        let (mirror, architecture) = mirror()?;
        let work = tempfile::tempdir_in(cache)
            .with_context(|| format!("creating a directory in {}", cache.display()))?;
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(work.path().join(directory))?;
        }
        let sources: Vec<String> =
            suites.iter().map(|suite| format!("deb [arch={architecture}] {mirror} {suite} main")).collect();
        fs::write(work.path().join("sources.list"), sources.join("\n") + "\n")?;
        let apt = Self { work };
        apt.run(&["update"])?;
        Ok(apt)
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let path = |name: &str| self.work.path().join(name).display().to_string();
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").current_dir(self.work.path()).arg("-q");
        for option in [
            &format!("Dir::Etc::sourcelist={}", path("sources.list")),
            "Dir::Etc::sourceparts=/dev/null",
            &format!("Dir::State::lists={}", path("lists")),
            &format!("Dir::Cache={}", path("cache")),
            // The unprivileged user of apt's downloads can't read a cache in root's home.
            "APT::Sandbox::User=root",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Acquire::Retries=3",
        ] {
            command.args(["-o", option]);
        }
        command.args(arguments);
        Running::spawn(command, Input::Empty)?.wait(Duration::from_secs(600))?.succeeded()?;
        Ok(())
    }

    /// Unpacks `packages` of the release `suite` into `target`, whatever was there.
    pub(crate) fn unpack(&self, packages: &[&str], suite: &str, target: &Path) -> Result<()> {
        let part = self.work.path().join("unpacked");
        for package in packages {
            self.run(&["download", &format!("{package}/{suite}")])?;
            let deb = fs::read_dir(self.work.path())?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
                .context("apt-get download left no package")?;
            let mut command = Command::new("dpkg-deb");
            command.arg("-x").args([&deb, &part]);
            run(command)?.succeeded()?;
            fs::remove_file(&deb)?;
        }
        if target.exists() {
            fs::remove_dir_all(target).with_context(|| format!("removing {}", target.display()))?;
        }
        fs::rename(&part, target).with_context(|| format!("putting {} in place", target.display()))
    }
}

/// The Debian mirror that this machine uses, and its architecture.
fn mirror() -> Result<(String, String)> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ARCHITECTURE)"]);
    command.arg("Created-By: Packages");
    let targets = run(command)?.text()?;
    let os_release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let release = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or("sid");
    choose_mirror(&targets, release.trim_matches('"')).with_context(|| {
        format!(
            "apt's sources have no Debian mirror with main of {release}: packages of other releases can't be fetched"
        )
    })
}

/// Chooses the mirror with the main component of the release itself: security and updates have a mirror of their own.
fn choose_mirror(targets: &str, release: &str) -> Option<(String, String)> {
    targets.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [uri, suite, "main", architecture] = words[..] else { return None };
        let aliases = [release, "stable", "oldstable", "testing", "unstable"];
        aliases.contains(&suite).then(|| (uri.to_owned(), architecture.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_release_itself() {
        let targets = "http://s.example/debian-security/ bookworm-security main amd64\n\
                       http://o.example/other/ nodistro main amd64\n\
                       http://m.example/debian/ bookworm contrib amd64\n\
                       http://m.example/debian/ bookworm main amd64\n";
        let expected = ("http://m.example/debian/".to_owned(), "amd64".to_owned());
        assert_eq!(choose_mirror(targets, "bookworm"), Some(expected));
        assert_eq!(choose_mirror(targets, "trixie"), None);
    }
}

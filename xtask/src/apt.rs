//! Debian packages: what each task needs, and installing only what is missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::command;
use crate::progress::Step;

/// Something a task needs and the package that has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    package: &'static str,
    probe: Probe,
}

/// How to tell that a need is met.
///
/// Programs are looked for by name, not by package: who has Docker's containerd.io must not have it replaced by
/// Debian's containerd.
#[derive(Clone, Copy, Debug)]
enum Probe {
    Program(&'static str),
    File(&'static str),
    PythonModule(&'static str),
}

const fn program(package: &'static str, name: &'static str) -> Need {
    Need { package, probe: Probe::Program(name) }
}

const fn file(package: &'static str, path: &'static str) -> Need {
    Need { package, probe: Probe::File(path) }
}

/// The tarball that Debian's kernel source package installs.
pub(crate) const KERNEL_SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// The package it comes from.
pub(crate) const KERNEL_SOURCE_PACKAGE: &str = "linux-source-6.12";

/// To compile C and to link Rust.
pub(crate) const COMPILER: &[Need] =
    &[program("gcc", "gcc"), file("libc6-dev", "/usr/include/stdlib.h"), program("make", "make")];

/// To build the guest's kernel.
pub(crate) const KERNEL: &[Need] = &[
    file(KERNEL_SOURCE_PACKAGE, KERNEL_SOURCE),
    program("xz-utils", "xz"),
    program("flex", "flex"),
    program("bison", "bison"),
    program("bc", "bc"),
    program("perl", "perl"),
    program("patch", "patch"),
    file("libelf-dev", "/usr/include/libelf.h"),
    program("binutils", "strip"),
];

/// To build the agent: its seccomp filters come from libseccomp, linked statically.
pub(crate) const AGENT: &[Need] = &[file("libseccomp-dev", "/usr/include/seccomp.h")];

/// To run containers under a containerd of our own.
pub(crate) const RUN: &[Need] = &[
    program("containerd", "containerd"),
    program("containerd", "ctr"),
    program("runc", "runc"),
    program("qemu-system-x86", "qemu-system-x86_64"),
    program("mount", "mount"),
];

/// What the end-to-end tests look at and play with besides.
pub(crate) const TESTS: &[Need] = &[
    program("iproute2", "ip"),
    program("nftables", "nft"),
    // `skep net sync` talks to a real one.
    program("openssh-server", "sshd"),
    program("openssh-client", "ssh"),
    // An underlay, in user space: not every kernel has WireGuard.
    program("wireguard-go", "wireguard-go"),
    program("wireguard-tools", "wg"),
    program("dnsmasq-base", "dnsmasq"),
    // What nerdctl's CNI plugins run.
    program("iptables", "iptables"),
    file("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
    file("containernetworking-plugins", "/usr/lib/cni/host-local"),
];

/// Debian's own Python: another one in PATH need not have the modules that packages install.
pub(crate) const SYSTEM_PYTHON: &str = "/usr/bin/python3";

/// To make a Python environment for the FreeBSD linker.
pub(crate) const PYTHON: &[Need] = &[
    file("python3", SYSTEM_PYTHON),
    Need { package: "python3-venv", probe: Probe::PythonModule("ensurepip") },
];

impl Need {
    fn met(self) -> bool {
        match self.probe {
            Probe::Program(name) => command::find_program(name).is_some(),
            Probe::File(path) => Path::new(path).exists(),
            Probe::PythonModule(name) => {
                let mut python = Command::new(SYSTEM_PYTHON);
                python.args(["-c", &format!("import {name}")]);
                command::output(&mut python, Duration::from_secs(30)).is_ok()
            }
        }
    }
}

/// Installs the packages of those needs that are not met yet.
pub(crate) fn ensure(needs: &[&[Need]], cache: &Cache) -> Result<()> {
    let mut missing: Vec<&str> =
        needs.iter().copied().flatten().filter(|need| !need.met()).map(|need| need.package).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_debian() {
        bail!(
            "this task needs what Debian packages as: {list}; installing it automatically works on Debian 12 and \
             its derivatives only, so install the like of it and run the task again"
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "these Debian packages are missing: {list}; run the task as root, or \
             'apt-get install --no-install-recommends {list}' first"
        );
    }
    let log = cache.log("apt")?;
    let mut step = Step::start(format!("installing Debian packages: {list}"));
    command::run_logged(apt_get().args(["update"]), &log, &mut step)?;
    command::run_logged(
        // --no-remove: better to fail than to take away something the machine's owner uses.
        apt_get().args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(&missing),
        &log,
        &mut step,
    )?;
    step.done("");
    let still: Vec<&str> =
        needs.iter().copied().flatten().filter(|need| !need.met()).map(|need| need.package).collect();
    anyhow::ensure!(
        still.is_empty(),
        "apt-get installed {list}, yet this is still missing: {}",
        still.join(" ")
    );
    Ok(())
}

/// The unpacked contents of a package that is not to be installed: busybox-static, for one, would displace the
/// busybox that most Debians have.
pub(crate) fn unpacked(package: &str, cache: &Cache) -> Result<PathBuf> {
    if !is_debian() {
        bail!("this task takes {package} from Debian: run it on Debian 12");
    }
    let version = if let Ok(version) = candidate(package) {
        version
    } else {
        let mut step = Step::start("reading the lists of Debian packages");
        command::run_logged(apt_get().args(["update"]), &cache.log("apt")?, &mut step)?;
        step.done("");
        candidate(package)?
    };
    cache.get_or_build("deb", &format!("{package} {version}"), |dir| {
        let mut step = Step::start(format!("fetching Debian's {package} {version}"));
        let log = cache.log("apt")?;
        download(&[format!("{package}={version}")], dir, &log, &mut step)?;
        step.done("");
        Ok(())
    })
}

/// Unpacks packages into `dir` without installing them.
pub(crate) fn download(packages: &[String], dir: &Path, log: &Path, step: &mut Step) -> Result<()> {
    let debs = tempfile::tempdir_in(dir).context("cannot make a directory for the download")?;
    command::run_logged(
        // The unprivileged user of apt's downloads can't write into a cache in root's home.
        apt_get().args(["-o", "APT::Sandbox::User=root", "download"]).args(packages).current_dir(debs.path()),
        log,
        step,
    )?;
    for deb in std::fs::read_dir(debs.path()).context("cannot list the download")? {
        let deb = deb.context("cannot list the download")?.path();
        command::run_logged(Command::new("dpkg-deb").arg("-x").arg(deb).arg(dir), log, step)?;
    }
    Ok(())
}

/// The version of an installed package.
pub(crate) fn installed_version(package: &str) -> Result<String> {
    command::output(
        Command::new("dpkg-query").args(["--show", "--showformat=${Version}", package]),
        Duration::from_secs(30),
    )
    .with_context(|| format!("cannot tell the version of the package {package}"))
}

/// The version of a package that apt would take.
pub(crate) fn candidate(package: &str) -> Result<String> {
    let shown = command::output(
        Command::new("apt-cache").args(["show", "--no-all-versions", package]),
        Duration::from_secs(60),
    )?;
    field(&shown, "Version").with_context(|| format!("Debian's lists have no package {package}"))
}

/// The first value of a field in Debian's control format.
pub(crate) fn field(control: &str, name: &str) -> Option<String> {
    control
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command.args(["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3", "-q"]);
    command
}

/// Whether this is Debian or made from it.
pub(crate) fn is_debian() -> bool {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    like_debian(&text) && command::find_program("apt-get").is_some()
}

fn like_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .any(|value| value.trim_matches('"').split(' ').any(|word| word == "debian"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_count_as_debian() {
        assert!(like_debian("PRETTY_NAME=\"Debian\"\nID=debian\n"));
        assert!(like_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!like_debian("ID=fedora\nID_LIKE=\"rhel\"\n"));
        assert!(!like_debian(""));
    }

    #[test]
    fn control_fields_are_found_whole() {
        let control = "Package: a\nVersion: 1:2-3\nDepends: b (>= 1)\n";
        assert_eq!(field(control, "Version").as_deref(), Some("1:2-3"));
        assert_eq!(field(control, "Vers"), None);
    }
}

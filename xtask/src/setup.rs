//! What demo, tests and benchmark have in common: packages, programs, guest, busybox.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use skep_tests::image::BUSYBOX_VARIABLE;
use skep_tests::suite::{BIN_VARIABLE, Build, GUEST_VARIABLE};

use crate::cache::Cache;
use crate::phases::Phases;
use crate::progress::{self, heading};
use crate::{apt, command, guest, workspace};

/// Everything that a container needs to run.
#[derive(Debug)]
pub(crate) struct Setup {
    /// The programs and the guest.
    pub(crate) build: Build,
    /// Debian's static busybox.
    pub(crate) busybox: PathBuf,
}

impl Setup {
    /// Installs, builds and fetches what is not there yet.
    pub(crate) fn make(needs: &[&[apt::Need]], cache: &Cache, phases: &mut Phases) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this task starts a containerd and mounts file systems: run it as root"
        );
        heading("What it needs");
        let busybox = phases.time("Debian packages", || {
            // All at once: apt is slow to start.
            let mut all = vec![apt::COMPILER, apt::KERNEL, apt::AGENT, apt::RUN];
            all.extend(needs);
            apt::ensure(&all, cache)?;
            let busybox = apt::unpacked("busybox-static", cache)?.join("bin/busybox");
            ensure!(busybox.is_file(), "Debian's busybox-static has no bin/busybox");
            Ok(busybox)
        })?;
        let bin = phases.time("programs", programs)?;
        let guest = phases.time("guest", || guest::build(std::env::consts::ARCH, None, cache))?;
        for line in guest::describe(&guest)? {
            progress::line(&line);
        }
        Ok(Self { build: Build { bin, guest }, busybox })
    }

    /// The variables by which tests and benchmark find all this.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 3] {
        [
            (BIN_VARIABLE, self.build.bin.clone()),
            (GUEST_VARIABLE, self.build.guest.clone()),
            (BUSYBOX_VARIABLE, self.busybox.clone()),
        ]
    }
}

/// Builds the host's programs as they are released; the directory where they are.
fn programs() -> Result<PathBuf> {
    progress::line("building the host's programs");
    let mut cargo = workspace::cargo();
    cargo.args([
        "build",
        "--release",
        "--locked",
        "--package",
        "skep",
        "--package",
        "containerd-shim-skep-v2",
        "--package",
        "skep-cni",
    ]);
    command::run(&mut cargo).context("the host's programs do not build")?;
    Ok(workspace::target_dir().join("release"))
}

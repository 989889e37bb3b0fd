//! How long the guest's kernel itself takes to its first process, with the devices of a sandbox.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use skep::config::Config;
use skep::guest::Guest;
use skep::hypervisor::{ConsolePort, Place, Share, VmSpec, driver};
use skep::journal::Journal;

use super::sample::milliseconds;
use crate::init::{Ending, initramfs};
use crate::suite::Build;

const SAID: &str = "the first process runs";
const LIMIT: Duration = Duration::from_secs(60);

/// Boots the kernel of `build` with a first process that says so and powers off; gives the milliseconds from QEMU's
/// start to its saying so.
pub(super) fn boot(build: &Build) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let directory = tempfile::Builder::new().prefix("skep-b-").tempdir_in("/tmp")?;
        let share = directory.path().join("share");
        fs::create_dir(&share)?;
        let archive = directory.path().join("initramfs.cpio");
        fs::write(&archive, initramfs(SAID, Ending::PowerOff)?)?;
        let guest = Guest::load(&build.guest)?;
        let config = Config::default();
        // As a sandbox without containers has it.
        let spec = VmSpec {
            name: "skep-bench".to_owned(),
            kernel: guest.kernel(),
            initramfs: archive,
            cmdline: "console=ttyS0 quiet loglevel=1 panic=-1".to_owned(),
            memory: config.sandbox.memory_mib,
            vcpus: config.sandbox.vcpus,
            shares: vec![Share { tag: "skep".to_owned(), path: share, readonly: false }],
            disks: Vec::new(),
            nics: Vec::new(),
            console_ports: vec![ConsolePort {
                name: "skep.agent".to_owned(),
                socket: "agent.sock".to_owned(),
            }],
            rng: true,
            vsock: None,
        };
        let journal = Arc::new(Journal::create(&directory.path().join("journal"))?);
        let place = Place { dir: directory.path().to_owned(), journal };
        let begin = Instant::now();
        let vm = driver(&config)?.boot(spec, place).await.context("booting the bare kernel")?;
        let took = loop {
            if vm.console_tail().contains(SAID) {
                break begin.elapsed();
            }
            if begin.elapsed() > LIMIT {
                vm.kill().await?;
                break begin.elapsed();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let exit = vm.wait().await;
        ensure!(took < LIMIT, "the bare kernel did not come to its first process: {exit}");
        Ok(milliseconds(took))
    })
}

//! How long the guest's kernel itself takes to its first process, with the devices of a sandbox.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use skep::config::Config;
use skep::guest::Guest;
use skep::hypervisor::{ConsolePort, Place, Share, VmSpec, driver};
use skep::journal::Journal;

use super::sample::{Sample, milliseconds, processor_time};
use crate::init::{Ending, initramfs};
use crate::suite::Build;

const SAID: &str = "the first process runs";
const LIMIT: Duration = Duration::from_secs(60);

/// Boots the kernel of `build` with a first process that says so; gives the milliseconds from QEMU's
/// start to its saying so, and the processor time that QEMU took.
pub(super) fn boot(build: &Build) -> Result<Sample> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let directory = tempfile::Builder::new().prefix("skep-b-").tempdir_in("/tmp")?;
        let share = directory.path().join("share");
        fs::create_dir(&share)?;
        let archive = directory.path().join("initramfs.cpio");
        fs::write(&archive, initramfs(SAID, Ending::Hang)?)?;
        let guest = Guest::load(&build.guest, skep::guest::GuestOs::Linux)?;
        let config = Config::default();
        // As a sandbox without containers has it.
        let spec = VmSpec {
            name: "skep-bench".to_owned(),
            kernel: guest.kernel(),
            os: skep::guest::GuestOs::Linux,
            initramfs: Some(archive),
            cmdline: "console=ttyS0 quiet loglevel=1 no_timer_check pci=lastbus=0 panic=-1".to_owned(),
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
        let place = Place { netns: None, taps: Vec::new(), dir: directory.path().to_owned(), journal };
        let begin = Instant::now();
        let vm = driver(&config)?.boot(spec, place).await.context("booting the bare kernel")?;
        let pid = i32::try_from(vm.process().pid)?;
        while !vm.console_tail().contains(SAID) {
            if begin.elapsed() > LIMIT {
                vm.kill().await?;
                bail!("the bare kernel did not come to its first process: {}", vm.wait().await);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = begin.elapsed();
        let spent = processor_time(pid)?;
        vm.kill().await?;
        vm.wait().await;
        Ok(vec![
            ("bare kernel to its first process".to_owned(), milliseconds(took)),
            ("bare kernel to its first process: VMM's processor time".to_owned(), spent),
        ])
    })
}

//! What the guest's kernel and its console port do by themselves, with the devices of a sandbox and no agent: how long the
//! kernel takes to its first process, and what goes through the port when nothing but `dd` is at it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use skep::config::Config;
use skep::guest::Guest;
use skep::hypervisor::{ConsolePort, Place, Share, Vm, VmSpec, driver};
use skep::journal::Journal;

use super::execs::{AMOUNT, BLOCK};
use super::sample::{Sample, megabytes_per_second, milliseconds, per_mib, processor_time};
use crate::image::installed_busybox;
use crate::init::{Ending, initramfs, shell};
use crate::suite::Build;

const SAID: &str = "the first process runs";
const LIMIT: Duration = Duration::from_secs(60);
/// The port's socket, in the VM's directory.
const SOCKET: &str = "agent.sock";

/// A VM with the devices of a sandbox and a first process of its own.
struct Bare {
    vm: Arc<dyn Vm>,
    begin: Instant,
    directory: tempfile::TempDir,
}

impl Bare {
    async fn start(build: &Build, initramfs: &[u8]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("skep-b-").tempdir_in("/tmp")?;
        let share = directory.path().join("share");
        fs::create_dir(&share)?;
        let archive = directory.path().join("initramfs.cpio");
        fs::write(&archive, initramfs)?;
        let config = Config::default();
        let spec = spec(build, &config, archive, share)?;
        let journal = Arc::new(Journal::create(&directory.path().join("journal"))?);
        let place =
            Place { netns: None, taps: Vec::new(), cgroup: None, dir: directory.path().to_owned(), journal };
        let begin = Instant::now();
        let vm = driver(&config)?.boot(spec, place).await.context("booting the bare kernel")?;
        Ok(Self { vm, begin, directory })
    }

    /// Processor time of the VMM so far, milliseconds.
    fn spent(&self) -> Result<f64> {
        processor_time(i32::try_from(self.vm.process().pid)?)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }

    async fn end(self) -> Result<()> {
        self.vm.kill().await?;
        self.vm.wait().await;
        Ok(())
    }
}

/// As a sandbox without containers has it.
fn spec(build: &Build, config: &Config, initramfs: PathBuf, share: PathBuf) -> Result<VmSpec> {
    let guest = Guest::load(&build.guest, skep::guest::GuestOs::Linux)?;
    Ok(VmSpec {
        name: "skep-bench".to_owned(),
        kernel: guest.kernel(),
        os: skep::guest::GuestOs::Linux,
        initramfs: Some(initramfs),
        cmdline: "console=ttyS0 quiet loglevel=1 no_timer_check pci=lastbus=0 panic=-1".to_owned(),
        memory: config.sandbox.memory_mib,
        vcpus: config.sandbox.vcpus,
        shares: vec![Share { tag: "skep".to_owned(), path: share, readonly: false }],
        disks: Vec::new(),
        nics: Vec::new(),
        console_ports: vec![ConsolePort { name: "skep.agent".to_owned(), socket: SOCKET.to_owned() }],
        rng: true,
        vsock: None,
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Boots the kernel of `build` with a first process that says so; gives the milliseconds from QEMU's
/// start to its saying so, and the processor time that QEMU took.
pub(super) fn boot(build: &Build) -> Result<Sample> {
    runtime()?.block_on(async {
        let bare = Bare::start(build, &initramfs(SAID, Ending::Hang)?).await?;
        while !bare.vm.console_tail().contains(SAID) {
            if bare.begin.elapsed() > LIMIT {
                bare.vm.kill().await?;
                bail!("the bare kernel did not come to its first process: {}", bare.vm.wait().await);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = bare.begin.elapsed();
        let spent = bare.spent()?;
        bare.end().await?;
        Ok(vec![
            ("bare kernel to its first process".to_owned(), milliseconds(took)),
            ("bare kernel to its first process: VMM's processor time".to_owned(), spent),
        ])
    })
}

/// One way over the bare port.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    /// What the guest runs; descriptor 3 is the port.
    script: &'static str,
    to_host: bool,
}

/// The writes are as large as the driver takes them at once. With a pipe before or behind it the port is what no agent can
/// do better than: the process has one, and somebody has to move the bytes.
const WAYS: [Way; 4] = [
    Way { name: "output by the bare port", script: "dd if=/dev/zero bs=32k count=$n >&3", to_host: true },
    Way {
        name: "output by a pipe and the bare port",
        script: "dd if=/dev/zero bs=32k count=$n | dd bs=32k iflag=fullblock >&3",
        to_host: true,
    },
    Way {
        name: "input by the bare port",
        script: "dd of=/dev/null bs=32k count=$n iflag=fullblock <&3",
        to_host: false,
    },
    Way {
        name: "input by the bare port and a pipe",
        script: "dd bs=32k count=$n iflag=fullblock <&3 | dd of=/dev/null bs=32k",
        to_host: false,
    },
];

/// Sends as much over the port as the benchmark sends over a process's streams.
pub(super) fn channel(build: &Build) -> Result<Sample> {
    let steps = WAYS.map(|way| format!("go; {}; end\n", way.script)).concat();
    // The port stays open: the driver throws away what has come when it is closed.
    let script = format!(
        "exec >/dev/null 2>&1\n\
         /busybox mkdir -p /sys; /busybox mount -t devtmpfs d /dev; /busybox mount -t sysfs s /sys\n\
         for name in $(/busybox ls /sys/class/virtio-ports); do port=/dev/$name; done\n\
         exec 3<>$port\n\
         n={}\n\
         dd() {{ /busybox dd \"$@\"; }}\n\
         go() {{ dd of=/dev/null bs=1 count=1 <&3; }}\n\
         end() {{ echo >&3; }}\n\
         end\n\
         {steps}\
         while :; do /busybox sleep 1000; done",
        AMOUNT / (32 << 10),
    );
    let busybox = installed_busybox()?;
    let busybox = fs::read(&busybox).with_context(|| format!("reading {}", busybox.display()))?;
    runtime()?.block_on(async {
        let bare = Bare::start(build, &shell(&busybox, &script)?).await?;
        let sample = move_bytes(&bare, &bare.socket());
        let console = bare.vm.console_tail();
        bare.end().await?;
        sample.with_context(|| format!("at the bare port; the console says {console:?}"))
    })
}

fn move_bytes(bare: &Bare, socket: &Path) -> Result<Sample> {
    let mut port = UnixStream::connect(socket).context("connecting to the port")?;
    port.set_read_timeout(Some(LIMIT))?;
    port.set_write_timeout(Some(LIMIT))?;
    let mut buffer = vec![b'x'; 1 << 20];
    let mut sample = Sample::new();
    port.read_exact(&mut buffer[..1]).context("waiting for the guest")?;
    for way in &WAYS {
        let before = bare.spent()?;
        port.write_all(b"g").context("starting")?;
        let mut begin = Instant::now();
        if way.to_host {
            let mut seen = 0;
            while seen < AMOUNT {
                let count = port.read(&mut buffer).with_context(|| format!("{}: after {seen}", way.name))?;
                ensure!(count > 0, "the port was closed");
                if seen == 0 {
                    begin = Instant::now();
                }
                seen += count;
            }
            ensure!(seen <= AMOUNT + 1, "{}: {seen} bytes came", way.name);
            if seen == AMOUNT {
                port.read_exact(&mut buffer[..1]).context("the end")?;
            }
        } else {
            for _ in 0..AMOUNT / BLOCK {
                port.write_all(&buffer[..BLOCK]).with_context(|| way.name.to_owned())?;
            }
            port.read_exact(&mut buffer[..1]).context("the end")?;
        }
        let took = begin.elapsed();
        let spent = bare.spent()? - before;
        sample.push((format!("throughput of {}", way.name), megabytes_per_second(AMOUNT, took)?));
        sample.push((format!("each MiB of {}: VMM's processor time", way.name), per_mib(spent, AMOUNT)?));
    }
    Ok(sample)
}

//! QEMU with FreeBSD in it.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::image::{self, Disk};
use super::payload::Payload;
use super::{Accelerator, Host};
use crate::command::{self, Group};

/// QEMU whose software emulation runs bhyve: older ones lose nested page faults.
const LEAST: (u32, u32) = (10, 0);
/// Size of the disk that the logs come back on.
const LOGS: u64 = 256 << 20;
/// How long QEMU may take to open its sockets.
const START: Duration = Duration::from_secs(60);
/// How long the system may take to go down.
const STOP: Duration = Duration::from_secs(120);

/// How much of what the console said goes into a message.
const TAIL: usize = 1500;
/// What a kernel says that will not go on.
const DEATHS: &[&str] = &["panic:", "Fatal trap", "db> "];

/// A running machine. Dropping it ends it; what it has written to the image's disk is gone then.
pub(crate) struct Machine {
    qemu: Group,
    directory: PathBuf,
}

/// QEMU's program, of a version that will do.
pub(crate) fn qemu(given: Option<&Path>, accel: Accelerator) -> Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => command::find_program("qemu-system-x86_64")
            .context("there is no qemu-system-x86_64 in PATH: install it, or name it with --qemu")?,
    };
    let version = image::version(&path)?;
    ensure!(
        accel == Accelerator::Kvm || version >= LEAST,
        "{} is version {}.{}; bhyve runs under the software emulation of {}.{} and newer, as of Debian's \
         bookworm-backports: name one with --qemu",
        path.display(),
        version.0,
        version.1,
        LEAST.0,
        LEAST.1
    );
    Ok(path)
}

impl Machine {
    /// Starts `disk` with `payload` as its second disk. Logs and sockets are in `directory`.
    pub(crate) fn start(
        qemu: &Path,
        disk: &Disk,
        payload: &Payload,
        host: &Host,
        directory: &Path,
    ) -> Result<Self> {
        for old in ["console.log", "results.log", "qemu.log", "console.sock", "logs.disk"] {
            match std::fs::remove_file(directory.join(old)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove the old {old}"));
                }
                _ => {}
            }
        }
        File::create(directory.join("logs.disk"))
            .and_then(|file| file.set_len(LOGS))
            .context("cannot create the disk for logs")?;
        File::create(directory.join("results.log")).context("cannot create results.log")?;
        let log = File::create(directory.join("qemu.log")).context("cannot create qemu.log")?;
        let (accel, cpu) = match host.accel {
            // Without LA57, with which every nested page fault would repeat for ever, and without AVX2, with which the code
            // that ZFS has for SHA-256 reads beyond its input. Without ERMS and FSRM, for which software copies by
            // `rep movsb`: TCG does that byte by byte.
            Accelerator::Tcg => ("tcg", "max,-la57,+svm,+npt,-avx2,-erms,-fsrm"),
            Accelerator::Kvm => ("kvm", "host"),
        };
        let mut command = Command::new(qemu);
        command.args(["-nodefaults", "-no-reboot", "-display", "none", "-machine", "q35", "-accel", accel]);
        command.args(["-cpu", cpu, "-smp", "2", "-m", &format!("{}M", host.memory)]);
        // In this order: the system's disk is the first.
        command.arg("-drive").arg(drive(&disk.path, disk.format, "snapshot=on"));
        command.arg("-drive").arg(drive(&payload.disk, "raw", "readonly=on"));
        command.arg("-drive").arg(drive(&directory.join("logs.disk"), "raw", "cache=unsafe"));
        let console = format!(
            "socket,id=console,server=on,wait=on,path={},logfile={}",
            comma(&directory.join("console.sock")),
            comma(&directory.join("console.log"))
        );
        command.args(["-chardev", &console, "-serial", "chardev:console"]);
        let results = format!("file,id=results,path={}", comma(&directory.join("results.log")));
        command.args(["-chardev", &results, "-serial", "chardev:results"]);
        command.args(["-device", "virtio-rng-pci"]);
        // Where `snapshot` keeps what is written.
        command.env("TMPDIR", directory);
        command.stdin(Stdio::null()).stdout(log.try_clone().context("cannot share qemu.log")?).stderr(log);
        Ok(Self { qemu: Group::spawn(&mut command)?, directory: directory.to_owned() })
    }

    /// Connects to the first serial port.
    pub(crate) fn console(&self) -> Result<UnixStream> {
        let path = self.directory.join("console.sock");
        let begin = Instant::now();
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Ok(stream),
                Err(error) if begin.elapsed() > START => {
                    return Err(error).with_context(|| format!("QEMU does not answer: {}", self.qemu_log()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
            skep_tests::process::check_interrupt()?;
        }
    }

    /// An error if the kernel has said that it will not go on, or QEMU has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        let text = self.console_log();
        if let Some(death) = DEATHS.iter().find(|death| text.contains(**death)) {
            bail!("FreeBSD's kernel is dead ('{death}'):\n{}", tail(&text));
        }
        if let Some(status) = self.qemu.try_wait()? {
            bail!(
                "the machine ended ({status}); QEMU said: {}\nthe console's last words:\n{}",
                self.qemu_log(),
                tail(&text)
            );
        }
        Ok(())
    }

    /// What the console said so far.
    fn console_log(&self) -> String {
        let text = std::fs::read(self.directory.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The file with what came over the second serial port.
    pub(crate) fn results(&self) -> PathBuf {
        self.directory.join("results.log")
    }

    /// Ends it, after the time that a system takes to go down that was asked to.
    pub(crate) fn end(&mut self) {
        let begin = Instant::now();
        while begin.elapsed() < STOP && matches!(self.qemu.try_wait(), Ok(None)) {
            if self.check().is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        self.qemu.end(Duration::from_secs(5));
    }

    /// Unpacks what the runner wrote to the third disk.
    pub(crate) fn logs(&self) -> Result<PathBuf> {
        let path = self.directory.join("logs");
        crate::cache::remove_dir(&path)?;
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let disk = File::open(self.directory.join("logs.disk")).context("cannot open the disk with logs")?;
        let mut archive = tar::Archive::new(disk);
        let mut count = 0;
        for entry in archive.entries().context("the runner wrote no logs")? {
            count += usize::from(entry.context("the logs are cut off")?.unpack_in(&path)?);
        }
        ensure!(count > 0, "the runner did not get as far as to write logs");
        Ok(path)
    }

    fn qemu_log(&self) -> String {
        std::fs::read_to_string(self.directory.join("qemu.log")).unwrap_or_default()
    }
}

fn drive(path: &Path, format: &str, more: &str) -> String {
    format!("if=virtio,file={},format={format},{more}", comma(path))
}

/// In QEMU's options a comma in a value is written twice.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The end of what was said.
pub(crate) fn tail(text: &str) -> &str {
    let start = text.char_indices().rev().nth(TAIL).map_or(0, |(at, _)| at);
    &text[start..]
}

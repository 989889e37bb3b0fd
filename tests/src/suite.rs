//! What all cases share: where Skep's parts are, and containerds that are started when needed and used again.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};

use crate::census::Census;
use crate::containerd::Containerd;
use crate::containerd_versions::{self, Line};
use crate::ctr::{BUSYBOX, Runtime, Subject};
use crate::image::Image;
use crate::process::{Output, run};

/// Names the directory with the programs `containerd-shim-skep-v2` and `skep`.
pub const BIN_VARIABLE: &str = "SKEP_BIN_DIR";
/// Names the directory with the guest's kernel, initramfs and manifest.
pub const GUEST_VARIABLE: &str = "SKEP_GUEST_DIR";
/// Names the directory with a FreeBSD guest, where there is one.
pub const FREEBSD_GUEST_VARIABLE: &str = "SKEP_FREEBSD_GUEST_DIR";
/// The containerd shim's program.
pub const SHIM: &str = "containerd-shim-skep-v2";

/// How much of a sandbox's log goes into a message.
const TAIL: usize = 40;

/// Skep as it was built.
#[derive(Clone, Debug)]
pub struct Build {
    /// Where the programs are.
    pub bin: PathBuf,
    /// Where the guest is.
    pub guest: PathBuf,
}

impl Build {
    /// What the environment names.
    pub fn from_environment() -> Result<Self> {
        let directory = |variable: &str, file: &str| {
            let path = std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from).with_context(|| {
                format!("{variable} is not set: run the end-to-end tests by `cargo xtask test`, which builds all they need")
            })?;
            ensure!(path.join(file).exists(), "{variable} is {}, where there is no {file}", path.display());
            Ok(path)
        };
        Ok(Self { bin: directory(BIN_VARIABLE, SHIM)?, guest: directory(GUEST_VARIABLE, "manifest.json")? })
    }
}

/// Skep's configuration of a test, to be changed by the cases that are about it.
#[derive(Clone, Debug)]
pub struct Configuration {
    state: PathBuf,
    /// Where the guest is.
    pub guest: PathBuf,
    /// Where the FreeBSD guest is, if there is one.
    pub freebsd_guest: Option<PathBuf>,
    /// The limit for a boot in seconds.
    pub boot: u32,
    /// The limit for an answer of the guest in seconds, if it is not the usual one.
    pub call: Option<u32>,
    /// The limit for its power-off in seconds, if it is not the usual one.
    pub stop: Option<u32>,
    /// QEMU's program.
    pub qemu: String,
    /// More of the file: keys of the table `qemu`, and then other tables with their headers.
    pub more: String,
}

impl Configuration {
    /// What cases get: an empty state directory, this build's guest, and QEMU from the search path.
    pub fn new(containerd: &Containerd, guest: &Path) -> Self {
        Self {
            state: containerd.skep_state(),
            guest: guest.to_owned(),
            freebsd_guest: std::env::var_os(FREEBSD_GUEST_VARIABLE).map(PathBuf::from),
            // Where FreeBSD itself runs under emulation, its VMs are slow.
            boot: if cfg!(target_os = "linux") { 180 } else { 300 },
            call: None,
            stop: None,
            qemu: "qemu-system-x86_64".to_owned(),
            more: String::new(),
        }
    }

    /// Writes it where the shims of `containerd` read it.
    pub fn write(&self, containerd: &Containerd) -> Result<()> {
        let text = format!(
            "state_dir = {}\n[guest]\ndir = {}\n{}[timeouts]\nboot_s = {}\n{}[qemu]\nbinary = {:?}\n{}",
            quoted(&self.state),
            quoted(&self.guest),
            self.freebsd_guest
                .as_deref()
                .map(|guest| format!("freebsd_dir = {}\n", quoted(guest)))
                .unwrap_or_default(),
            self.boot,
            [("call_s", self.call), ("stop_s", self.stop)]
                .into_iter()
                .filter_map(|(key, seconds)| Some(format!("{key} = {}\n", seconds?)))
                .collect::<String>(),
            self.qemu,
            self.more
        );
        let path = containerd.skep_config();
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}

/// A path as a string of TOML.
fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}

/// The suite's fixtures. Dropping it ends every containerd.
#[derive(Default)]
pub struct Suite {
    idle: Mutex<Vec<Containerd>>,
}

impl Suite {
    /// Runs `case` on a containerd of `line` that nobody else uses, and compares the census before and after.
    pub fn case(
        &self,
        line: Line,
        runtime: Runtime,
        case: impl FnOnce(&mut Lease) -> Result<()>,
    ) -> Result<()> {
        let build = Build::from_environment();
        let build = if runtime == Runtime::Skep { Some(build?) } else { build.ok() };
        let containerd = match self.take(line) {
            Some(containerd) => containerd,
            None => start(line, build.as_ref())?,
        };
        if let Some(build) = &build {
            Configuration::new(&containerd, &build.guest).write(&containerd)?;
        }
        let before = Census::take(&containerd.scope())?;
        let mut lease = Lease { containerd, runtime, build };
        let outcome = case(&mut lease);
        let containerd = lease.containerd;
        let scope = containerd.scope();
        match outcome.and_then(|()| before.settle(&scope)) {
            Ok(()) => {
                self.idle().push(containerd);
                Ok(())
            }
            // What a failed case left is not for the next one: this containerd ends here.
            Err(error) => Err(anyhow!("{error:#}{}", troubles(&containerd))),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Containerd>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, line: Line) -> Option<Containerd> {
        let mut idle = self.idle();
        let position = idle.iter().position(|containerd| containerd.installation().line == line)?;
        Some(idle.swap_remove(position))
    }
}

/// A containerd for the time of one case.
pub struct Lease {
    /// The daemon, nobody else's for now.
    pub containerd: Containerd,
    /// Who runs the containers.
    pub runtime: Runtime,
    build: Option<Build>,
}

impl Lease {
    /// The daemon and the runtime under test.
    pub fn subject(&self) -> Subject<'_> {
        self.with(self.runtime)
    }

    /// The daemon and either runtime.
    pub fn with(&self, runtime: Runtime) -> Subject<'_> {
        Subject { containerd: &self.containerd, runtime }
    }

    /// Skep as it was built.
    pub fn build(&self) -> Result<&Build> {
        self.build.as_ref().context("this case is about Skep, but runs without it")
    }

    /// Changes Skep's configuration until the case ends.
    pub fn configure(&self, change: impl FnOnce(&mut Configuration)) -> Result<()> {
        let mut configuration = Configuration::new(&self.containerd, &self.build()?.guest);
        change(&mut configuration);
        configuration.write(&self.containerd)
    }

    /// Has Skep attach sandboxes to the CNI networks described in `conf`, by the plugins in `bin`.
    pub fn attach_to_networks(&self, conf: &Path, bin: &Path) -> Result<()> {
        self.configure(|configuration| {
            configuration.more = format!(
                "[network]\ncni = \"auto\"\nconf_dirs = [{}]\nbin_dirs = [{}]\n",
                quoted(conf),
                quoted(bin)
            );
        })
    }

    /// The program `skep` with `arguments`, to its end.
    pub fn skep(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(self.build()?.bin.join("skep"));
        command.args(arguments).env("SKEP_CONFIG", self.containerd.skep_config());
        run(command)
    }

    /// Makes an image known to containerd.
    pub fn import(&self, image: &Image) -> Result<()> {
        import(&self.containerd, image)
    }

    /// A directory outside of the census, made anew, with the files of the usual image: a root for whole specs.
    pub fn rootfs(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch(name)?;
        Image::busybox(BUSYBOX)?.unpack(&path)?;
        Ok(path)
    }

    /// A directory outside of the census, empty.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.containerd.directory().join("scratch").join(name);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }
}

fn start(line: Line, build: Option<&Build>) -> Result<Containerd> {
    let installation = containerd_versions::require(line)?;
    let containerd = Containerd::start(&installation, build.map(|build| build.bin.as_path()))?;
    import(&containerd, &Image::busybox(BUSYBOX)?)?;
    // containerd opens some files with its first container, and with the first of a snapshotter, and keeps them.
    let runtime = if cfg!(target_os = "linux") { Runtime::Runc } else { Runtime::Skep };
    if let Some(build) = build {
        Configuration::new(&containerd, &build.guest).write(&containerd)?;
    }
    let subject = Subject { containerd: &containerd, runtime };
    subject.sh("first", "true")?.succeeded()?;
    subject.run("first").flags(["--snapshotter", "native"]).sh("true").output()?.succeeded()?;
    Ok(containerd)
}

fn import(containerd: &Containerd, image: &Image) -> Result<()> {
    let archive = containerd.directory().join("image.tar");
    image.write(&archive)?;
    containerd.import(&archive)
}

/// What the logs say, for the message of a failed case.
fn troubles(containerd: &Containerd) -> String {
    let mut text =
        format!("\n--- containerd {}\n{}", containerd.installation().version, containerd.log_tail());
    let Ok(sandboxes) = fs::read_dir(containerd.skep_state().join("sb")) else { return text };
    for sandbox in sandboxes.flatten() {
        for name in ["console.log", "vmm.log"] {
            if let Ok(log) = fs::read(sandbox.path().join(name)) {
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
                let _ = write!(text, "\n--- {}\n{tail}", sandbox.path().join(name).display());
            }
        }
    }
    text
}

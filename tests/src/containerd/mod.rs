//! A containerd of one's own: root, state, sockets, configuration and Skep's state in one temporary directory.

#[cfg(target_os = "freebsd")]
#[path = "freebsd.rs"]
mod system;
#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod system;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wait_timeout::ChildExt as _;

use crate::census::{self, MARK, Scope};
use crate::containerd_versions::Installation;
use crate::process::{Output, run, wait_for};

const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(10);
/// The flags by which `ctr` takes and runs Linux images where the host is something else, on a snapshotter that it has.
pub const PLATFORM: &[&str] = system::PLATFORM;

/// How much of a log goes into a message.
const TAIL: usize = 30;

/// A running containerd. Dropping it ends it and all that it started, and removes its directory.
pub struct Containerd {
    installation: Installation,
    directory: tempfile::TempDir,
    namespace: String,
    search_path: OsString,
    child: Child,
}

impl Containerd {
    /// Starts `installation` in a new directory, with `programs` (where the shim is) in its search path.
    pub fn start(installation: &Installation, programs: Option<&Path>) -> Result<Self> {
        Self::start_with(installation, programs, |_| Ok(WITHOUT_CRI.to_owned()))
    }

    /// The same with this part of its configuration in the notation of version 2, for which it is told its directory.
    pub fn start_with(
        installation: &Installation,
        programs: Option<&Path>,
        configure: impl FnOnce(&Path) -> Result<String>,
    ) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the end-to-end tests start a containerd: run them as root"
        );
        // In /tmp, whatever TMPDIR says: a unix socket's path has at most 107 bytes.
        let directory =
            tempfile::Builder::new().prefix("skep-t-").tempdir_in("/tmp").context("creating a directory")?;
        let path = directory.path();
        for name in ["root", "state", "tmp", "skep"] {
            fs::create_dir(path.join(name))
                .with_context(|| format!("creating {name} in {}", path.display()))?;
        }
        let text = config(path, &configure(path)?);
        fs::write(path.join("config.toml"), text).context("writing containerd's configuration")?;
        let namespace =
            path.file_name().context("a temporary directory has a name")?.to_string_lossy().into_owned();
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let mut places = vec![installation.bin.clone()];
        places.extend(programs.map(Path::to_owned));
        places.extend(std::env::split_paths(&inherited));
        let search_path = std::env::join_paths(places).context("building the search path")?;
        let child = spawn(installation, path, &search_path)?;
        let containerd =
            Self { installation: installation.clone(), directory, namespace, search_path, child };
        containerd.wait_ready()?;
        Ok(containerd)
    }

    /// The directory that holds everything of this containerd.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where Skep's state belongs.
    pub fn skep_state(&self) -> PathBuf {
        self.directory().join("skep")
    }

    /// The file that `SKEP_CONFIG` names for the shims of this containerd.
    pub fn skep_config(&self) -> PathBuf {
        self.directory().join("skep.toml")
    }

    /// What is running.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The namespace that tests use: no other containerd on the machine has the same.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// containerd's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where a container's bundle is while its task exists.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.bundle_in(&self.namespace, id)
    }

    /// The same of another namespace.
    pub fn bundle_in(&self, namespace: &str, id: &str) -> PathBuf {
        self.directory().join("state/io.containerd.runtime.v2.task").join(namespace).join(id)
    }

    /// The limits of this containerd's census.
    pub fn scope(&self) -> Scope {
        Scope {
            directory: self.directory().to_owned(),
            watched: ["state", "skep", "tmp", "root/io.containerd.runtime.v2.task"]
                .map(|name| self.directory().join(name))
                .into(),
            permanent: ["s", "sb", "sb/lock"].map(|name| self.skep_state().join(name)).into(),
            own: self.directory().join("root"),
            namespace: self.namespace.clone(),
            daemon: self.pid(),
        }
    }

    /// `ctr` of the same version, with address and namespace set, and then `arguments`.
    pub fn ctr_command<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        self.ctr_command_in(&self.namespace, arguments)
    }

    /// The same in another namespace.
    pub fn ctr_command_in<S: AsRef<std::ffi::OsStr>>(
        &self,
        namespace: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(self.installation.bin.join("ctr"));
        command.arg("--address").arg(self.directory().join("c.sock")).args(["--namespace", namespace]);
        command.args(arguments).env("TMPDIR", self.directory().join("tmp"));
        command
    }

    /// Runs `ctr` to its end.
    pub fn ctr<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Output> {
        run(self.ctr_command(arguments))
    }

    /// Imports an image archive.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.import_for(PLATFORM, archive)
    }

    /// The same with these flags for its platform.
    pub fn import_for(&self, platform: &[&str], archive: &Path) -> Result<()> {
        let words = ["image", "import"].map(OsString::from).into_iter();
        let words = words.chain(platform.iter().map(OsString::from)).chain([archive.into()]);
        self.ctr(words)?.succeeded()?;
        Ok(())
    }

    /// Ends the daemon with `signal` and starts it again; shims go on running.
    pub fn restart(&mut self, signal: Signal) -> Result<()> {
        self.stop(signal)?;
        self.resume()
    }

    /// Ends the daemon with `signal`; shims go on running.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal).context("signalling containerd")?;
        ensure!(self.child.wait_timeout(STOP)?.is_some(), "containerd outlived {signal}");
        Ok(())
    }

    /// Starts the daemon that was stopped.
    pub fn resume(&mut self) -> Result<()> {
        self.child = spawn(&self.installation, self.directory.path(), &self.search_path)?;
        self.wait_ready()
    }

    /// The last lines of containerd's log that tell of a trouble.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.directory().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.contains("level=info") && !line.contains("level=debug"))
            .collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    fn wait_ready(&self) -> Result<()> {
        let ready = wait_for("containerd to answer", START, || {
            let answer = self.ctr(["version"])?;
            if answer.status.success() {
                return Ok(Some(()));
            }
            let status = census::processes(&self.scope())?;
            ensure!(!status.is_empty(), "containerd ended");
            Ok(None)
        });
        ready.with_context(|| {
            format!("containerd {} did not start:\n{}", self.installation.version, self.log_tail())
        })
    }

    /// Has Skep undo what its journals know, now that nobody uses it: what lies outside of the directory, such as the
    /// attachments to networks, is known to nobody else.
    fn collect(&self) -> Result<()> {
        let sandboxes = match fs::read_dir(self.skep_state().join("sb")) {
            Ok(entries) => entries.flatten().filter(|entry| entry.path().is_dir()).count(),
            Err(_) => 0,
        };
        let program = std::env::split_paths(&self.search_path).map(|place| place.join("skep"));
        let Some(program) = program.into_iter().find(|path| path.is_file()).filter(|_| sandboxes > 0) else {
            return Ok(());
        };
        let mut command = Command::new(program);
        command.arg("gc").env("SKEP_CONFIG", self.skep_config()).env("PATH", &self.search_path);
        run(command)?.succeeded().map(drop)
    }

    /// Ends everything of this containerd, in the order in which nothing comes back.
    fn clean_up(&mut self) -> Result<()> {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if !matches!(self.child.wait_timeout(STOP), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        for _ in 0..50 {
            let left = census::processes(&self.scope())?;
            if left.is_empty() {
                break;
            }
            for member in left {
                let _ = kill(Pid::from_raw(member.pid), Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(100));
        }
        if let Err(error) = self.collect() {
            eprintln!("undoing the sandboxes of {}: {error:#}", self.directory().display());
        }
        for mount in census::mounts(self.directory())?.iter().rev() {
            system::unmount(mount).with_context(|| format!("unmounting {}", mount.display()))?;
        }
        system::forget(&self.namespace)?;
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(error) = self.clean_up() {
            eprintln!("cleaning up after {}: {error:#}", self.directory().display());
        }
    }
}

fn spawn(installation: &Installation, directory: &Path, search_path: &OsString) -> Result<Child> {
    let log =
        File::options().create(true).append(true).open(directory.join("log")).context("opening the log")?;
    let mut command = system::alone(&installation.bin.join("containerd"));
    command.arg("--config").arg(directory.join("config.toml"));
    command.env("PATH", search_path).env(MARK, directory).env("TMPDIR", directory.join("tmp"));
    command.env("SKEP_CONFIG", directory.join("skep.toml"));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    command.spawn().with_context(|| format!("starting {}", command.get_program().to_string_lossy()))
}

/// Without the plugins of Kubernetes' Container Runtime Interface, which the configuration's other parts follow.
const WITHOUT_CRI: &str = "disabled_plugins = [\"io.containerd.grpc.v1.cri\", \
    \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\"]\n";

/// Begins with keys that belong to no table; `part` may do so as well.
fn config(directory: &Path, part: &str) -> String {
    let path = |name: &str| directory.join(name).display().to_string();
    format!(
        "version = 2\n\
         root = {:?}\n\
         state = {:?}\n\
         {part}\
         [grpc]\n\
         address = {:?}\n\
         [ttrpc]\n\
         address = {:?}\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\n\
         path = {:?}\n",
        path("root"),
        path("state"),
        path("c.sock"),
        path("c.sock.ttrpc"),
        path("root/opt"),
    )
}

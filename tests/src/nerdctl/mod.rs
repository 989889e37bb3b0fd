//! A typed `nerdctl`, for either runtime.

mod build;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::ctr::Subject;
use crate::netns;
use crate::process::{Input, Output, Running, run};

pub use build::{Tools, fetch, fetch_cni, require};

/// How long nerdctl may take for one thing.
const LIMIT: Duration = Duration::from_secs(300);

/// nerdctl with a containerd and a runtime, and directories of its own.
pub struct Nerdctl<'a> {
    subject: Subject<'a>,
    tools: Tools,
    configuration: PathBuf,
}

impl<'a> Nerdctl<'a> {
    /// For the containers of `subject`.
    pub fn new(subject: Subject<'a>) -> Result<Self> {
        Self::with_plugin(subject, None)
    }

    /// For the containers of `subject`, with one more CNI plugin.
    pub fn with_plugin(subject: Subject<'a>, plugin: Option<&Path>) -> Result<Self> {
        let mut tools = require()?;
        let directory = subject.containerd.directory();
        let own = directory.join("scratch/nerdctl");
        fs::create_dir_all(&own).with_context(|| format!("creating {}", own.display()))?;
        if let Some(plugin) = plugin {
            tools.cni = plugins(&tools.cni, plugin, &own.join("plugins"))?;
        }
        let quoted = |path: PathBuf| format!("{:?}", path.to_string_lossy());
        let configuration = own.join("nerdctl.toml");
        let text = format!(
            "address = {}\nnamespace = {:?}\ndata_root = {}\ncni_path = {}\ncni_netconfpath = {}\n\
             cgroup_manager = \"cgroupfs\"\n",
            quoted(directory.join("c.sock")),
            subject.containerd.namespace(),
            quoted(own.join("data")),
            quoted(tools.cni.clone()),
            quoted(own.join("networks")),
        );
        fs::write(&configuration, text).with_context(|| format!("writing {}", configuration.display()))?;
        let nerdctl = Self { subject, tools, configuration };
        // A host's own addresses, published ports among them, are reached by it.
        let mut loopback = nerdctl.inside("ip");
        loopback.args(["link", "set", "lo", "up"]);
        run(loopback)?.succeeded()?;
        Ok(nerdctl)
    }

    /// Where it looks for networks.
    pub fn networks(&self) -> Result<PathBuf> {
        let networks = self.configuration.with_file_name("networks");
        fs::create_dir_all(&networks).with_context(|| format!("creating {}", networks.display()))?;
        Ok(networks)
    }

    /// nerdctl with `arguments`, where containerd's network is.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.inside(&self.tools.nerdctl);
        command.args(arguments).env("NERDCTL_TOML", &self.configuration);
        command.env("TMPDIR", self.subject.containerd.directory().join("tmp"));
        command
    }

    /// A program in containerd's network namespace.
    pub fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        netns::inside(self.subject.containerd.pid(), program)
    }

    /// nerdctl to its end.
    pub fn nerdctl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Output> {
        Running::spawn(self.command(arguments), Input::Empty)?.wait(LIMIT)
    }

    /// What nerdctl says, if it succeeds. Words of `arguments` are separated by spaces.
    pub fn said(&self, arguments: &str) -> Result<String> {
        self.nerdctl(arguments.split_whitespace())?.text()
    }

    /// `nerdctl run` with this runtime: flags separated by spaces, the container's image, its command.
    pub fn run(&self, flags: &str, command: &[&str]) -> Result<Output> {
        Running::spawn(self.run_command(flags, command), Input::Empty)?.wait(LIMIT)
    }

    /// The same, to be started by the caller.
    pub fn run_command(&self, flags: &str, command: &[&str]) -> Command {
        let runtime = self.subject.runtime.name();
        let mut words = vec!["run", "--pull", "never", "--runtime", runtime];
        words.extend(flags.split_whitespace());
        words.push(crate::ctr::BUSYBOX);
        words.extend(command);
        self.command(words)
    }

    /// A program of busybox in containerd's network namespace, to its end.
    pub fn outside(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.inside(crate::image::installed_busybox()?);
        command.args(arguments);
        run(command)
    }
}

/// A directory with all plugins of another and one more, by links.
fn plugins(others: &Path, plugin: &Path, directory: &Path) -> Result<PathBuf> {
    if directory.exists() {
        return Ok(directory.to_owned());
    }
    let at = || format!("filling {}", directory.display());
    fs::create_dir_all(directory).with_context(at)?;
    let others =
        fs::read_dir(others).with_context(at)?.collect::<std::io::Result<Vec<_>>>().with_context(at)?;
    for path in others.into_iter().map(|entry| entry.path()).chain([plugin.to_owned()]) {
        let path = path.canonicalize().with_context(at)?;
        let name = path.file_name().with_context(at)?;
        symlink(&path, directory.join(name)).with_context(at)?;
    }
    Ok(directory.to_owned())
}

//! Network namespaces made by hand with ip(8), as whoever makes networks for containers does.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::image::installed_busybox;
use crate::process::{Input, Output, Running, run};

/// A network namespace with a name. Dropping it removes it, with all that is in it.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes an empty one, its loopback interface up.
    pub fn create() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self { name: format!("skep-t-{}-{number}", std::process::id()) };
        ip(&["netns", "add", &namespace.name])?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Where it is in the file system.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Its name for ip(8).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The flag with which `ctr run` puts a container into it.
    pub fn flag(&self) -> [String; 2] {
        ["--with-ns".to_owned(), format!("network:{}", self.path().display())]
    }

    /// `ip` inside; the words of `arguments` are separated by spaces.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut words = vec!["-n", &self.name];
        words.extend(arguments.split_whitespace());
        ip(&words)
    }

    /// What tc(8) says of the queues inside.
    pub fn queues(&self) -> Result<String> {
        let mut command = Command::new("tc");
        command.args(["-n", &self.name, "qdisc", "show"]);
        run(command)?.text()
    }

    /// A program inside.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// An applet of busybox inside, to its end.
    pub fn busybox(&self, arguments: &[&str]) -> Result<Output> {
        run(self.command(arguments)?)
    }

    /// A script for busybox's shell inside, to its end; `$TMP` is a file for it.
    pub fn script(&self, script: &str) -> Result<String> {
        let file = tempfile::NamedTempFile::new().context("creating a file")?;
        let mut command = self.command(&["sh", "-c", &applets(script)?])?;
        command.env("TMP", file.path());
        run(command)?.text()
    }

    /// A script for busybox's shell inside, left running.
    pub fn start_script(&self, script: &str) -> Result<Running> {
        Running::spawn(self.command(&["sh", "-c", &applets(script)?])?, Input::Empty)
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.program(installed_busybox()?);
        command.args(arguments);
        Ok(command)
    }
}

/// Not every build of busybox finds its applets by itself, and not every machine has them as programs.
fn applets(script: &str) -> Result<String> {
    let busybox = installed_busybox()?;
    let aliases = ["head", "md5sum", "nc", "tee"]
        .map(|name| format!("{name}() {{ {} {name} \"$@\"; }}\n", busybox.display()));
    Ok(aliases.concat() + script)
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// A program in the network namespace of the process `pid`.
pub fn inside(pid: u32, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{pid}/ns/net")).arg(program);
    command
}

/// `ip` to its end.
pub fn ip(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(arguments);
    run(command)?.text()
}

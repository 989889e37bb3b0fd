//! A typed `ctr`: what the suite does to containers, with either runtime.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::containerd::{Containerd, PLATFORM};
use crate::process::{Input, LIMIT, Output, Running, wait_for};

/// The image that cases use unless they say otherwise.
pub const BUSYBOX: &str = "skep.test/busybox:latest";

/// Who runs the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// runc's own shim: the measure.
    Runc,
    /// Skep's.
    Skep,
}

impl Runtime {
    /// containerd's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Skep => "io.containerd.skep.v2",
        }
    }
}

impl std::fmt::Display for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Runc => "runc",
            Self::Skep => "skep",
        })
    }
}

/// A containerd and the runtime that its containers are to have.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The daemon.
    pub containerd: &'a Containerd,
    /// The runtime.
    pub runtime: Runtime,
}

/// One line of `ctr task ls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The container's id.
    pub id: String,
    /// The host's process id for its first process.
    pub pid: u32,
    /// `CREATED`, `RUNNING`, `STOPPED` …
    pub status: String,
}

impl<'a> Subject<'a> {
    /// `ctr run` of the container `id`, to be completed and then started.
    pub fn run(&self, id: &str) -> Run<'a> {
        Run {
            subject: *self,
            id: id.to_owned(),
            source: Source::Image(BUSYBOX.to_owned()),
            flags: Vec::new(),
            arguments: Vec::new(),
            input: Input::Empty,
            terminal: false,
            remove: true,
            platform: PLATFORM,
        }
    }

    /// Runs a shell script in a container that is removed afterwards.
    pub fn sh(&self, id: &str, script: &str) -> Result<Output> {
        self.run(id).sh(script).output()
    }

    /// `ctr task exec` of the process `exec` in the container `id`.
    pub fn exec(&self, id: &str, exec: &str) -> Exec<'a> {
        Exec {
            subject: *self,
            id: id.to_owned(),
            name: exec.to_owned(),
            flags: Vec::new(),
            arguments: Vec::new(),
            input: Input::Empty,
            terminal: false,
        }
    }

    /// `ctr` to its end.
    pub fn ctr<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Output> {
        self.containerd.ctr(arguments)
    }

    /// Signals a container's first process.
    pub fn kill(&self, id: &str, signal: &str) -> Result<Output> {
        self.ctr(["task", "kill", "--signal", signal, id])
    }

    /// All tasks.
    pub fn tasks(&self) -> Result<Vec<Task>> {
        let table = self.ctr(["task", "ls"])?.text()?;
        let rows = table.lines().skip(1).filter_map(|line| {
            let mut words = line.split_whitespace();
            Some(Task {
                id: words.next()?.to_owned(),
                pid: words.next()?.parse().ok()?,
                status: words.next()?.to_owned(),
            })
        });
        Ok(rows.collect())
    }

    /// The task of a container, if it has one.
    pub fn task(&self, id: &str) -> Result<Option<Task>> {
        Ok(self.tasks()?.into_iter().find(|task| task.id == id))
    }

    /// Waits until the task of a container has `status`.
    pub fn wait_status(&self, id: &str, status: &str) -> Result<Task> {
        wait_for(&format!("task {id} to be {status}"), LIMIT, || {
            Ok(self.task(id)?.filter(|task| task.status == status))
        })
    }

    /// Removes a container and its task, whatever state they are in.
    pub fn remove(&self, id: &str) -> Result<()> {
        if self.task(id)?.is_some() {
            self.ctr(["task", "delete", "--force", id])?.succeeded()?;
        }
        self.ctr(["container", "delete", id])?.succeeded()?;
        Ok(())
    }

    /// Deletes a task that has ended and gives its exit code, which `ctr` tells as a warning.
    pub fn delete_task(&self, id: &str) -> Result<i32> {
        let output = self.ctr(["task", "delete", id])?;
        let said = output.succeeded()?.err();
        let Some((_, rest)) = said.split_once("exit with non-zero exit code ") else { return Ok(0) };
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().with_context(|| format!("no exit code: {}", output.describe()))
    }

    /// The spec that `ctr oci spec` gives, with `rootfs` as root and `arguments` as command, for [`Run::spec`].
    pub fn spec<S: Into<String>>(
        &self,
        id: &str,
        rootfs: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Value> {
        let platform = ["--platform", "linux/amd64"];
        let flags = if cfg!(target_os = "linux") { &[][..] } else { &platform[..] };
        let text = self.ctr(["oci", "spec"].iter().chain(flags))?.text()?;
        let mut spec: Value = serde_json::from_str(&text).context("reading what `ctr oci spec` says")?;
        spec["root"] = json!({ "path": rootfs });
        spec["process"]["args"] = arguments.into_iter().map(|word| Value::from(word.into())).collect();
        spec["process"]["env"] = json!([crate::image::PATH]);
        if !cfg!(target_os = "linux") {
            // ctr's own is that of a jail, whatever the platform.
            spec["annotations"]["org.skep.os"] = "linux".into();
        }
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/{id}", self.containerd.namespace()));
        Ok(spec)
    }

    /// The directory of the sandbox that runs the container `id`.
    pub fn sandbox(&self, id: &str) -> Result<PathBuf> {
        let all = self.containerd.skep_state().join("sb");
        for entry in fs::read_dir(&all).with_context(|| format!("listing {}", all.display()))? {
            let directory = entry?.path();
            let record = directory.join("sandbox.json");
            let Ok(text) = fs::read(&record) else { continue };
            let state: Value =
                serde_json::from_slice(&text).with_context(|| format!("reading {}", record.display()))?;
            if state["id"] == id {
                return Ok(directory);
            }
        }
        bail!("no sandbox in {} is that of {id}", all.display())
    }
}

enum Source {
    Image(String),
    Spec(PathBuf),
}

/// A `ctr run`.
#[must_use]
pub struct Run<'a> {
    subject: Subject<'a>,
    id: String,
    source: Source,
    flags: Vec<OsString>,
    arguments: Vec<OsString>,
    input: Input,
    terminal: bool,
    remove: bool,
    platform: &'static [&'static str],
}

impl Run<'_> {
    /// Takes another image.
    pub fn image(mut self, reference: &str) -> Self {
        self.source = Source::Image(reference.to_owned());
        self
    }

    /// Takes these flags for its platform and its snapshotter.
    pub fn platform(mut self, flags: &'static [&'static str]) -> Self {
        self.platform = flags;
        self
    }

    /// Takes a whole OCI spec in the place of an image.
    pub fn spec(mut self, spec: &Value) -> Result<Self> {
        let path = self.subject.containerd.directory().join(format!("{}.json", self.id));
        fs::write(&path, serde_json::to_vec_pretty(spec)?)
            .with_context(|| format!("writing {}", path.display()))?;
        self.source = Source::Spec(path);
        Ok(self)
    }

    /// Adds flags of `ctr run`.
    pub fn flags<S: Into<OsString>>(mut self, flags: impl IntoIterator<Item = S>) -> Self {
        self.flags.extend(flags.into_iter().map(Into::into));
        self
    }

    /// Sets the command.
    pub fn args<S: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments = arguments.into_iter().map(Into::into).collect();
        self
    }

    /// Sets a shell script as the command.
    pub fn sh(self, script: &str) -> Self {
        self.args(["/bin/sh", "-c", script])
    }

    /// Sets what the container reads.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Gives the container these bytes and then the end at once, as from a pipe.
    pub fn piped(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Piped(bytes.into());
        self
    }

    /// Gives the container a terminal, and `ctr` one to show it on. There is no input then.
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self.flags(["--tty"])
    }

    /// Keeps the container when its process has ended.
    pub fn keep(mut self) -> Self {
        self.remove = false;
        self
    }

    /// Starts it and waits for its end.
    pub fn output(self) -> Result<Output> {
        self.start()?.wait(LIMIT)
    }

    /// Starts it and waits for its end, at most `limit`.
    pub fn output_within(self, limit: Duration) -> Result<Output> {
        self.start()?.wait(limit)
    }

    /// Starts it and leaves `ctr` attached.
    pub fn start(mut self) -> Result<Running> {
        let input = std::mem::take(&mut self.input);
        let terminal = self.terminal;
        start(self.command(), terminal, input)
    }

    /// Starts it in the background; returns when it runs.
    pub fn detached(self) -> Result<()> {
        let this = self.keep().flags(["--detach"]);
        // ctr keeps the fifos of a detached container only as long as it lives itself.
        let output = this.start()?.wait(LIMIT)?;
        output.succeeded()?;
        Ok(())
    }

    fn command(self) -> Command {
        let mut words: Vec<OsString> =
            vec!["run".into(), "--runtime".into(), self.subject.runtime.name().into()];
        if self.remove {
            words.push("--rm".into());
        }
        words.extend(self.platform.iter().map(OsString::from));
        words.extend(self.flags);
        match self.source {
            Source::Image(reference) => words.extend([reference.into(), self.id.into()]),
            Source::Spec(path) => words.extend(["--config".into(), path.into(), self.id.into()]),
        }
        words.extend(self.arguments);
        self.subject.containerd.ctr_command(words)
    }
}

/// A `ctr task exec`.
#[must_use]
pub struct Exec<'a> {
    subject: Subject<'a>,
    id: String,
    name: String,
    flags: Vec<OsString>,
    arguments: Vec<OsString>,
    input: Input,
    terminal: bool,
}

impl Exec<'_> {
    /// Adds flags of `ctr task exec`.
    pub fn flags<S: Into<OsString>>(mut self, flags: impl IntoIterator<Item = S>) -> Self {
        self.flags.extend(flags.into_iter().map(Into::into));
        self
    }

    /// Sets the command.
    pub fn args<S: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments = arguments.into_iter().map(Into::into).collect();
        self
    }

    /// Sets a shell script as the command.
    pub fn sh(self, script: &str) -> Self {
        self.args(["/bin/sh", "-c", script])
    }

    /// Sets what the process reads.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Gives the process a terminal, and `ctr` one to show it on. There is no input then.
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self.flags(["--tty"])
    }

    /// Starts it and waits for its end.
    pub fn output(self) -> Result<Output> {
        self.start()?.wait(LIMIT)
    }

    /// Starts it and leaves `ctr` attached.
    pub fn start(self) -> Result<Running> {
        let mut words: Vec<OsString> = ["task", "exec", "--exec-id", &self.name].map(OsString::from).into();
        words.extend(self.flags);
        words.push(self.id.into());
        words.extend(self.arguments);
        start(self.subject.containerd.ctr_command(words), self.terminal, self.input)
    }
}

fn start(command: Command, terminal: bool, input: Input) -> Result<Running> {
    if terminal { Running::spawn_on_terminal(command) } else { Running::spawn(command, input) }
}

/// An error unless both programs ended alike and wrote the same lines.
pub fn same_outcome(one: &Output, other: &Output) -> Result<()> {
    if one.code() == other.code() && one.stdout == other.stdout {
        return Ok(());
    }
    let mut lines: BTreeMap<String, isize> = BTreeMap::new();
    for (output, step) in [(one, -1), (other, 1)] {
        for line in output.out().lines() {
            *lines.entry(line.to_owned()).or_default() += step;
        }
    }
    let differing: Vec<String> = lines
        .into_iter()
        .filter(|(_, count)| *count != 0)
        .map(|(line, count)| format!("{} {line}", if count < 0 { '-' } else { '+' }))
        .collect();
    bail!(
        "outcomes differ, code {} and {}:\n{}\n{}",
        one.code(),
        other.code(),
        differing.join("\n"),
        other.err()
    )
}

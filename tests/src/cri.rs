//! Kubernetes' Container Runtime Interface: a containerd with its CRI plugin, networks by CNI plugins, and crictl.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::census::Census;
use crate::containerd::Containerd;
use crate::containerd_versions::{self, Installation, Line, default_cache};
use crate::ctr::BUSYBOX;
use crate::go::Module;
use crate::image::Image;
use crate::nerdctl::fetch_cni;
use crate::netns;
use crate::process::{Input, Output, Running, run};
use crate::suite::{Build, Configuration};

const CRICTL: Module = Module {
    name: "crictl",
    path: "sigs.k8s.io/cri-tools",
    version: "1.34.0",
    packages: &["cmd/crictl"],
    go: (1, 24),
    replaced: &[],
};
/// How long crictl may take for one thing.
const LIMIT: Duration = Duration::from_secs(180);
/// Where CRI keeps its containers.
pub const NAMESPACE: &str = "k8s.io";
/// The image of a pod's own container.
const PAUSE: &str = "skep.test/pause:latest";

/// How containerd makes pods of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// runc: the measure.
    Runc,
    /// Skep, with a container that stands for the pod.
    Container,
    /// Skep, by containerd's Sandbox API.
    Sandbox,
}

impl Handler {
    /// Its name in containerd's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Container => "skep",
            Self::Sandbox => "skep-sandbox",
        }
    }
}

/// A containerd with CRI, for the time of one case.
pub struct Cri {
    /// The daemon.
    pub containerd: Containerd,
    crictl: PathBuf,
}

/// crictl and the CNI plugins, got if they are not in `cache` yet: their places.
pub fn fetch(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<(PathBuf, PathBuf)> {
    Ok((CRICTL.fetch(cache, progress)?, fetch_cni(cache, progress)?))
}

impl Cri {
    /// Starts one.
    pub fn start(build: &Build) -> Result<Self> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let (crictl, cni) = {
            let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
            fetch(&default_cache()?, &mut |step| eprintln!("{step}"))?
        };
        let installation = containerd_versions::require(Line::V2)?;
        let containerd = Containerd::start_with(&installation, Some(&build.bin), |directory| {
            let networks = directory.join("networks");
            fs::create_dir(&networks)?;
            fs::create_dir(directory.join("logs"))?;
            fs::create_dir(directory.join("ends"))?;
            fs::write(networks.join("10-pods.conflist"), network(directory).to_string())?;
            let base = directory.join("base.json");
            fs::write(&base, base_spec(&installation, directory)?.to_string())?;
            Ok(config(&cni, &networks, &base))
        })?;
        Configuration::new(&containerd, &build.guest).write(&containerd)?;
        let cri = Self { containerd, crictl };
        let pause = "trap 'exit 0' TERM INT; while :; do sleep 1000 & wait; done";
        let images = [
            Image::busybox(BUSYBOX)?,
            Image::busybox(PAUSE)?.entrypoint(["sh", "-c", pause]).cmd(Vec::<String>::new()),
        ];
        for image in images {
            let archive = cri.containerd.directory().join("image.tar");
            image.write(&archive)?;
            let mut command = cri.containerd.ctr_command_in(NAMESPACE, ["image", "import"]);
            command.arg(&archive);
            run(command)?.succeeded()?;
        }
        // Streams are served on a loopback address.
        let mut loopback = cri.inside("ip");
        loopback.args(["link", "set", "lo", "up"]);
        run(loopback)?.succeeded()?;
        let sandboxes = "state/io.containerd.sandbox.controller.v1.shim";
        fs::create_dir_all(cri.containerd.directory().join(sandboxes).join(NAMESPACE))?;
        // containerd opens some files with its first pod, and keeps them; its bridge stays.
        let first = cri.pod(Handler::Runc, "first", &json!({}))?;
        first.run(&cri, "first", "sleep 1000", &json!({}))?;
        first.remove(&cri)?;
        Ok(cri)
    }

    /// Counts what there is.
    pub fn census(&self) -> Result<Census> {
        Census::take(&self.containerd.scope())
    }

    /// A program in containerd's network namespace.
    pub fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        netns::inside(self.containerd.pid(), program)
    }

    /// crictl with `arguments`, where containerd's network is.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let endpoint = format!("unix://{}", self.containerd.directory().join("c.sock").display());
        let mut command = self.inside(&self.crictl);
        command.args(["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint, "--timeout", "120s"]);
        command.args(arguments).env("TMPDIR", self.containerd.directory().join("tmp"));
        command.env("HOME", self.containerd.directory());
        command
    }

    /// crictl to its end. Words of `arguments` are separated by spaces.
    pub fn crictl(&self, arguments: &str) -> Result<Output> {
        Running::spawn(self.command(arguments.split_whitespace()), Input::Empty)?.wait(LIMIT)
    }

    /// What crictl says, if it succeeds, without the line's end.
    pub fn said(&self, arguments: &str) -> Result<String> {
        Ok(self.crictl(arguments)?.text()?.trim_end().to_owned())
    }

    /// `sh -c script` in a container, by `ExecSync`.
    pub fn exec(&self, container: &str, script: &str) -> Result<Output> {
        let command = self.command(["exec", "--sync", container, "sh", "-c", script]);
        Running::spawn(command, Input::Empty)?.wait(LIMIT)
    }

    /// Makes a pod; `more` is laid over its usual configuration.
    pub fn pod(&self, handler: Handler, name: &str, more: &Value) -> Result<Pod> {
        let mut config = json!({
            "metadata": { "name": name, "namespace": "test", "uid": name, "attempt": 0 },
            "hostname": format!("{name}-host"),
            "log_directory": self.containerd.directory().join("logs"),
            "dns_config": { "servers": ["10.9.8.7"], "searches": ["pods.test"], "options": ["ndots:5"] },
            "linux": {},
        });
        merge(&mut config, more);
        let pod = Pod { id: String::new(), config: self.write("pod", name, &config)? };
        let mut command = self.command(["runp", "--cancel-timeout", "120s", "--runtime", handler.name()]);
        command.arg(&pod.config);
        let id = Running::spawn(command, Input::Empty)?.wait(LIMIT)?.text()?.trim_end().to_owned();
        Ok(Pod { id, ..pod })
    }

    /// How many poststop hooks have run for a container.
    pub fn ends(&self, container: &str) -> Result<usize> {
        let path = self.containerd.directory().join("ends").join(container);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().count()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn write(&self, kind: &str, name: &str, config: &Value) -> Result<PathBuf> {
        let path = self.containerd.directory().join(format!("{kind}-{name}.json"));
        fs::write(&path, config.to_string()).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// A pod.
pub struct Pod {
    /// Its id.
    pub id: String,
    config: PathBuf,
}

impl Pod {
    /// Starts a container that runs `sh -c script`; `more` is laid over its usual configuration. Answers its id.
    pub fn run(&self, cri: &Cri, name: &str, script: &str, more: &Value) -> Result<String> {
        let mut config = json!({
            "metadata": { "name": name, "attempt": 0 },
            "image": { "image": BUSYBOX },
            "command": ["sh", "-c", script],
            "log_path": format!("{name}.log"),
            "linux": {},
        });
        merge(&mut config, more);
        let config = cri.write("container", name, &config)?;
        let mut command = cri.command(["create", &self.id]);
        command.arg(config).arg(&self.config);
        let id = Running::spawn(command, Input::Empty)?.wait(LIMIT)?.text()?.trim_end().to_owned();
        cri.said(&format!("start {id}"))?;
        Ok(id)
    }

    /// What `crictl inspectp` says.
    pub fn inspect(&self, cri: &Cri) -> Result<Value> {
        Ok(serde_json::from_str(&cri.said(&format!("inspectp {}", self.id))?)?)
    }

    /// Its first IPv4 address.
    pub fn address(&self, cri: &Cri) -> Result<String> {
        let status = self.inspect(cri)?;
        let ip = status["status"]["network"]["ip"].as_str().context("a pod without an address")?;
        Ok(ip.to_owned())
    }

    /// Stops and removes it with its containers.
    pub fn remove(self, cri: &Cri) -> Result<()> {
        cri.said(&format!("stopp {}", self.id))?;
        cri.said(&format!("rmp {}", self.id))?;
        Ok(())
    }
}

/// Objects are merged, all else is replaced.
fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

/// One bridge for all pods of this containerd, in its own network namespace.
fn network(directory: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "pods0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": directory.join("addresses"),
                "ranges": [[{ "subnet": "10.88.0.0/16" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
}

/// The specification that every container of Skep's begins with: containerd's usual one, and a hook that notes the end.
fn base_spec(installation: &Installation, directory: &Path) -> Result<Value> {
    let mut command = Command::new(installation.bin.join("ctr"));
    command.args(["oci", "spec"]);
    let mut spec: Value = serde_json::from_str(&run(command)?.text()?)?;
    let note = format!(
        "id=$(sed 's/.*\"id\": *\"\\([0-9a-f]*\\)\".*/\\1/'); echo ended >>{}/$id",
        directory.join("ends").display()
    );
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", note], "env": ["PATH=/usr/bin:/bin"] });
    spec["hooks"] = json!({ "poststop": [hook] });
    Ok(spec)
}

/// CRI's part of containerd's configuration (version 2's notation, which 2.x migrates).
fn config(plugins: &Path, networks: &Path, base: &Path) -> String {
    let runtimes = [
        (Handler::Runc, "io.containerd.runc.v2", "podsandbox"),
        (Handler::Container, "io.containerd.skep.v2", "podsandbox"),
        (Handler::Sandbox, "io.containerd.skep.v2", "shim"),
    ];
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    // runc 1.1 can't lower its score as containerd asks for, in a container of a build service.
    let mut text = format!(
        "[{cri}]\n\
         sandbox_image = {PAUSE:?}\n\
         restrict_oom_score_adj = true\n\
         [{cri}.cni]\n\
         bin_dir = {:?}\n\
         conf_dir = {:?}\n",
        plugins.to_string_lossy(),
        networks.to_string_lossy(),
    );
    for (handler, name, sandboxer) in runtimes {
        let table = format!("{cri}.containerd.runtimes.{:?}", handler.name());
        let _ = writeln!(text, "[{table}]\nruntime_type = {name:?}\nsandboxer = {sandboxer:?}");
        if handler != Handler::Runc {
            let _ = writeln!(text, "base_runtime_spec = {:?}", base.to_string_lossy());
        }
    }
    text
}

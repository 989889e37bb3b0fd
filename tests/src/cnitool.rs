//! cnitool, which calls plugins by CNI's own library (libcni), and the project's plugins as they are now.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::containerd_versions::default_cache;
use crate::go::Module;
use crate::netns::Namespace;
use crate::process::{Output, run};

const CNITOOL: Module = Module {
    name: "cnitool",
    path: "github.com/containernetworking/cni",
    version: "1.3.0",
    packages: &["cnitool"],
    go: (1, 21),
    replaced: &[],
};
/// Debian's are of before CNI 1.1.
const PLUGINS: Module = Module {
    name: "cni-plugins",
    path: "github.com/containernetworking/plugins",
    version: "1.8.0",
    packages: &[
        "plugins/main/bridge",
        "plugins/meta/bandwidth",
        "plugins/meta/portmap",
        "plugins/meta/tuning",
        "plugins/ipam/host-local",
    ],
    go: (1, 24),
    replaced: &[],
};

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Tools {
    /// cnitool.
    pub cnitool: PathBuf,
    /// The directory of the plugins.
    pub plugins: PathBuf,
}

/// Gets what is not in `cache` yet. `progress` is told what takes long.
pub fn fetch(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<Tools> {
    Ok(Tools { cnitool: CNITOOL.fetch(cache, progress)?, plugins: PLUGINS.fetch(cache, progress)? })
}

/// A host, which is a network namespace, whose runtime is cnitool.
pub struct Host {
    /// Its network.
    pub ns: Namespace,
    tools: Tools,
    bin: PathBuf,
    networks: PathBuf,
    results: PathBuf,
}

impl Host {
    /// A host with plugins in `bin` besides those of the project, and its files below `directory`.
    pub fn new(bin: &Path, directory: &Path) -> Result<Self> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let tools = {
            let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
            fetch(&default_cache()?, &mut |step| eprintln!("{step}"))?
        };
        let (networks, results) = (directory.join("networks"), directory.join("results"));
        for path in [&networks, &results, Path::new(RESULTS)] {
            fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        }
        Ok(Self { ns: Namespace::create()?, tools, bin: bin.to_owned(), networks, results })
    }

    /// Writes the list of plugins of a network.
    pub fn declare(&self, version: &str, name: &str, plugins: &[Value]) -> Result<()> {
        let list = serde_json::json!({ "cniVersion": version, "name": name, "plugins": plugins });
        fs::write(self.networks.join(format!("{name}.conflist")), list.to_string())
            .context("writing a network")
    }

    /// `cnitool VERB` for a network and a container's namespace. `capabilities` are the runtime's arguments.
    pub fn call(&self, verb: &str, network: &str, netns: &Path, capabilities: &Value) -> Result<Output> {
        // libcni keeps results where every runtime of the machine would.
        let script = "mount --bind \"$RESULTS\" \"$0\" && exec \"$@\"";
        let mut command = self.ns.program("sh");
        command.args(["-c", script, RESULTS]).arg(&self.tools.cnitool).args([verb, network]).arg(netns);
        let path: Vec<OsString> = [&self.tools.plugins, &self.bin].map(|path| path.clone().into()).into();
        command.env("RESULTS", &self.results).env("NETCONFPATH", &self.networks);
        command.env("CNI_PATH", path.join(":".as_ref())).env("CAP_ARGS", capabilities.to_string());
        run(command)
    }
}

/// Where libcni keeps the results of ADD.
const RESULTS: &str = "/var/lib/cni";

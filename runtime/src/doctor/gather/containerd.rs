//! The containerd that listens on a socket: its program, its environment, its configuration.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::super::facts::{ContainerdFacts, ShimFacts};
use super::super::{RUNTIME, SHIM};
use super::{command, system};
use crate::hypervisor::find_program_in;

/// A configuration is a few pages; more is a mistake.
const MOST_CONFIG: u64 = 4 << 20;

/// What is known of a containerd.
pub(super) struct Daemon {
    socket: PathBuf,
    listening: Result<(), String>,
    process: Option<Process>,
}

/// A process as the kernel shows it.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) program: Option<PathBuf>,
    pub(super) arguments: Vec<OsString>,
    /// `NAME=value`.
    pub(super) environment: Vec<OsString>,
}

impl Daemon {
    /// Looks for it at `socket`, or where `ctr` would.
    pub(super) fn find(socket: Option<&Path>) -> Self {
        let usual = if cfg!(target_os = "freebsd") { "/var/run" } else { "/run" };
        let socket = socket
            .map(Path::to_owned)
            .or_else(|| std::env::var_os("CONTAINERD_ADDRESS").map(PathBuf::from))
            .unwrap_or_else(|| Path::new(usual).join("containerd/containerd.sock"));
        match UnixStream::connect(&socket) {
            Ok(stream) => {
                let process = system::peer(&stream).and_then(system::process);
                Self { socket, listening: Ok(()), process }
            }
            Err(e) => Self { socket, listening: Err(e.to_string()), process: None },
        }
    }

    /// A variable of its environment.
    pub(super) fn variable(&self, name: &str) -> Option<OsString> {
        self.process.as_ref()?.environment.iter().find_map(|pair| {
            let value = pair.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(OsStr::from_bytes(value).to_owned())
        })
    }

    /// Where it would find the shim: in `path`, or beside itself.
    pub(super) fn shim(&self, path: &OsStr) -> ShimFacts {
        let own = self.process.as_ref().and_then(|process| process.program.as_deref()?.parent());
        let beside = || find_program_in(&own?.join(SHIM), path);
        ShimFacts {
            found: find_program_in(Path::new(SHIM), path).or_else(beside),
            searched: path.to_string_lossy().into_owned(),
            of_containerd: self.variable("PATH").is_some(),
        }
    }

    pub(super) fn facts(self, path: &OsStr) -> ContainerdFacts {
        let process = self.process.unwrap_or_default();
        let program = process.program.or_else(|| find_program_in(Path::new("containerd"), path));
        let version = program.as_deref().and_then(|program| command::output(program, &["--version"]).ok());
        let config = config_file(&process.arguments);
        ContainerdFacts {
            socket: self.socket,
            listening: self.listening,
            program,
            version: version.map(|text| text.trim().to_owned()),
            registered: registered(&config),
            config,
        }
    }
}

/// Words that end with a zero each, as kernels tell arguments and environments.
pub(super) fn words(bytes: &[u8]) -> Vec<OsString> {
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| OsStr::from_bytes(word).to_owned()).collect()
}

/// What `--config` or `-c` says.
fn config_file(arguments: &[OsString]) -> PathBuf {
    let usual = if cfg!(target_os = "freebsd") { "/usr/local/etc" } else { "/etc" };
    let mut words = arguments.iter().skip(1).filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        let named = match word.split_once('=') {
            Some(("--config" | "-config" | "-c", file)) => Some(file),
            None if matches!(word, "--config" | "-config" | "-c") => words.next(),
            _ => None,
        };
        if let Some(file) = named {
            return file.into();
        }
    }
    Path::new(usual).join("containerd/config.toml")
}

fn registered(config: &Path) -> Result<Option<bool>, String> {
    use std::io::Read as _;

    let mut text = String::new();
    match std::fs::File::open(config).and_then(|file| file.take(MOST_CONFIG).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    }
    let table: toml::Table = toml::from_str(&text).map_err(|e| e.message().to_owned())?;
    Ok(Some(names_our_runtime(&table)))
}

/// Whether a runtime of any CRI plugin (each version of containerd has another name for it) is ours.
fn names_our_runtime(config: &toml::Table) -> bool {
    let plugins = config.get("plugins").and_then(toml::Value::as_table);
    plugins.into_iter().flatten().any(|(_, plugin)| {
        let runtimes =
            plugin.get("containerd").and_then(|c| c.get("runtimes")).and_then(toml::Value::as_table);
        runtimes
            .into_iter()
            .flatten()
            .any(|(_, runtime)| runtime.get("runtime_type").and_then(toml::Value::as_str) == Some(RUNTIME))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_the_one_it_was_started_with() {
        let of = |line: &str| config_file(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in
            ["containerd --config /x.toml", "containerd --config=/x.toml", "containerd -l debug -c /x.toml"]
        {
            assert_eq!(of(line), Path::new("/x.toml"), "{line}");
        }
        assert!(of("containerd").ends_with("containerd/config.toml"));
    }

    #[test]
    fn our_runtime_is_found_in_the_configuration_of_any_version() {
        let example = include_str!("../../../../packaging/containerd/skep.toml");
        for start in ["# containerd 1.6", "# containerd 2.x"] {
            let (_, rest) = example.split_once(start).unwrap();
            let (_, entry) = rest.split_once('\n').unwrap();
            let entry = entry.split("\n\n").next().unwrap();
            assert!(names_our_runtime(&toml::from_str(entry).unwrap()), "{entry}");
        }
        let other = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'";
        assert!(!names_our_runtime(&toml::from_str(other).unwrap()));
        assert!(!names_our_runtime(&toml::from_str("version = 2").unwrap()));
    }
}

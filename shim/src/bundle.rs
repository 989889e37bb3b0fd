//! A bundle: containerd's directory of one container, in which the shim keeps what `delete` needs to know.

use std::{
    collections::HashMap,
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use skep::{container::spec::FreeBsd, os::ProcessIdentity};

use crate::input::ConfigSource;

/// Largest specification that is read. Those of containerd have a few kilobytes; what the guest is sent is bounded by
/// the protocol, and refused with a better message here.
const SPEC_LIMIT: u64 = 2 << 20;
/// Largest state file that is read: it may hold a whole configuration.
const STATE_LIMIT: u64 = 4 << 20;
/// Containers with the same value share a sandbox.
const GROUP_ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// A bundle could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// The system refused.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Too large.
    #[error("{} has more than {limit} bytes", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// Not what it should be.
    #[error("{}: {error}", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, with line and column.
        error: serde_json::Error,
    },
    /// Written by another version of the shim.
    #[error("{}: version {found}, this shim knows {STATE_VERSION}", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

const STATE_VERSION: u32 = 1;
/// Where containerd keeps the bundles of its Sandbox API.
const SANDBOX_PLUGIN: &str = "io.containerd.sandbox.controller.v1.shim";

/// What `start` notes for the shim and for `delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShimState {
    /// Version of this file's format.
    pub(crate) version: u32,
    /// Name of the sandbox: the container's id, or its pod's.
    pub(crate) group: String,
    /// Where the shim of that sandbox listens.
    pub(crate) socket: PathBuf,
    /// The configuration.
    pub(crate) config: ConfigSource,
    /// Where events go.
    pub(crate) ttrpc_address: Option<String>,
    /// The shim's process, if this bundle's `start` started one.
    pub(crate) server: Option<ProcessIdentity>,
}

impl ShimState {
    /// A state in this version's format.
    pub(crate) fn new(group: String, socket: PathBuf, config: ConfigSource) -> Self {
        Self { version: STATE_VERSION, group, socket, config, ttrpc_address: None, server: None }
    }
}

/// A bundle's directory.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    dir: PathBuf,
}

impl Bundle {
    /// The bundle in `dir`.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The specification.
    pub(crate) fn spec(&self) -> Result<oci_spec::runtime::Spec, BundleError> {
        self.read_json("config.json", SPEC_LIMIT)
    }

    /// The specification's `freebsd` section, which `oci_spec` does not know.
    pub(crate) fn freebsd(&self) -> Result<Option<FreeBsd>, BundleError> {
        #[derive(Deserialize)]
        struct Sections {
            freebsd: Option<FreeBsd>,
        }
        let Sections { freebsd } = self.read_json("config.json", SPEC_LIMIT)?;
        Ok(freebsd)
    }

    /// Whether it is one of a sandbox of containerd's Sandbox API, from version 2.0 on, and not of a container: the
    /// directory is `<state>/io.containerd.sandbox.controller.v1.shim/<namespace>/<id>`.
    pub(crate) fn is_of_sandbox(&self) -> bool {
        let plugin = self.dir.parent().and_then(Path::parent).and_then(Path::file_name);
        plugin.is_some_and(|name| name == SANDBOX_PLUGIN)
    }

    /// The specification, where a bundle may have none: a sandbox's does if its client gives it one.
    pub(crate) fn spec_if_any(&self) -> Result<Option<oci_spec::runtime::Spec>, BundleError> {
        match self.spec() {
            Err(BundleError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// The name of the sandbox that a container belongs to: `id` if it is alone, or if it is the pod's first.
    pub(crate) fn group(&self, id: &str) -> Result<String, BundleError> {
        #[derive(Deserialize)]
        struct Annotated {
            #[serde(default)]
            annotations: Option<HashMap<String, String>>,
        }
        let spec: Annotated = match self.read_json("config.json", SPEC_LIMIT) {
            // A sandbox of containerd's Sandbox API has no specification.
            Err(BundleError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(id.to_owned());
            }
            other => other?,
        };
        let annotations = spec.annotations.unwrap_or_default();
        let group =
            GROUP_ANNOTATIONS.iter().find_map(|key| annotations.get(*key)).filter(|group| !group.is_empty());
        Ok(group.cloned().unwrap_or_else(|| id.to_owned()))
    }

    /// What `start` noted, if it did.
    pub(crate) fn state(&self) -> Result<Option<ShimState>, BundleError> {
        let state: ShimState = match self.read_json("skep.json", STATE_LIMIT) {
            Err(BundleError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if state.version != STATE_VERSION {
            return Err(BundleError::Version { path: self.path("skep.json"), found: state.version });
        }
        Ok(Some(state))
    }

    /// Notes the state.
    pub(crate) fn write_state(&self, state: &ShimState) -> Result<(), BundleError> {
        self.write_json("skep.json", state)
    }

    /// Notes where the shim listens, for containerd before 2.0, which looks here after a restart.
    pub(crate) fn write_address(&self, address: &str) -> Result<(), BundleError> {
        self.replace("address", address.as_bytes())
    }

    /// Replaces a file by `value`.
    pub(crate) fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), BundleError> {
        let mut text =
            serde_json::to_vec(value).map_err(|error| BundleError::Json { path: self.path(name), error })?;
        text.push(b'\n');
        self.replace(name, &text)
    }

    /// What is in a file of at most `limit` bytes.
    pub(crate) fn read_json<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
        limit: u64,
    ) -> Result<T, BundleError> {
        let path = self.path(name);
        let read = || -> io::Result<Vec<u8>> {
            use std::io::Read as _;
            let mut text = Vec::new();
            fs::File::open(&path)?.take(limit + 1).read_to_end(&mut text)?;
            Ok(text)
        };
        let text = read().map_err(|error| BundleError::Io { action: "read", path: path.clone(), error })?;
        if text.len() as u64 > limit {
            return Err(BundleError::TooLarge { path, limit });
        }
        serde_json::from_slice(&text).map_err(|error| BundleError::Json { path, error })
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), BundleError> {
        let path = self.path(name);
        let temporary = self.path(&format!(".{name}.new"));
        let write = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| BundleError::Io { action: "write", path, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path().into());
        (dir, bundle)
    }

    #[test]
    fn groups() {
        let (_dir, bundle) = bundle();
        assert_eq!(bundle.group("c1").unwrap(), "c1");
        for (annotations, group) in [
            ("{}", "c1"),
            ("null", "c1"),
            (r#"{"io.kubernetes.cri.sandbox-id": "pod"}"#, "pod"),
            (r#"{"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "g"}"#, "g"),
            (r#"{"io.containerd.runc.v2.group": ""}"#, "c1"),
        ] {
            let text = format!(r#"{{"ociVersion": "1.1.0", "annotations": {annotations}}}"#);
            fs::write(bundle.path("config.json"), text).unwrap();
            assert_eq!(bundle.group("c1").unwrap(), group, "{annotations}");
        }
    }

    #[test]
    fn bundles_of_sandboxes_are_known_by_their_place() {
        let of = |path: &str| Bundle::new(path.into()).is_of_sandbox();
        assert!(of("/run/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io/abc"));
        assert!(!of("/run/containerd/io.containerd.sandbox.controller.v1.local/k8s.io/abc"));
        assert!(!of("/run/containerd/io.containerd.runtime.v2.task/k8s.io/abc"));
        assert!(!of("/"));
    }

    #[test]
    fn state_survives_and_is_checked() {
        let (_dir, bundle) = bundle();
        assert_eq!(bundle.state().unwrap(), None);
        let mut state = ShimState::new("g".into(), "/run/s".into(), ConfigSource::Text("x = 1".into()));
        state.server = Some(ProcessIdentity::own().unwrap());
        bundle.write_state(&state).unwrap();
        assert_eq!(bundle.state().unwrap(), Some(state.clone()));
        state.version = 9;
        bundle.write_state(&state).unwrap();
        assert!(bundle.state().unwrap_err().to_string().contains("version 9"));
        fs::write(bundle.path("skep.json"), r#"{"version": 1, "surprise": 2}"#).unwrap();
        let error = bundle.state().unwrap_err().to_string();
        assert!(error.contains("skep.json") && error.contains("surprise"), "{error}");
    }

    #[test]
    fn a_broken_specification_is_named_with_its_line() {
        let (_dir, bundle) = bundle();
        fs::write(bundle.path("config.json"), "{\n  \"ociVersion\": 1\n}").unwrap();
        let error = bundle.spec().unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("line 2"), "{error}");
        fs::write(bundle.path("config.json"), vec![b' '; 3 << 20]).unwrap();
        assert!(bundle.spec().unwrap_err().to_string().contains("more than"));
    }
}

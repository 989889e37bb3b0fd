//! `-info` and `-v`: what this shim is.

use std::{io::Write as _, os::fd::AsFd};

use anyhow::Context as _;
use protobuf::well_known_types::any::Any;
use protobuf::{Message as _, MessageField};
use serde_json::json;
use skep_containerd_api::introspection::{RuntimeInfo, RuntimeVersion};

use crate::input;

/// The name under which containerd finds this program.
const RUNTIME: &str = "io.containerd.skep.v2";

/// The type under which containerd decodes [`features`] (its core/runtime/typeurl.go).
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints what containerd asks before it creates a container, from 2.2 on, and of every runtime of its CRI plugin, after
/// 2.1, which asks runc's alone.
pub(crate) fn run() -> anyhow::Result<()> {
    // Options that are sent along change nothing of this, but whoever writes them waits for a reader.
    let _ = input::read(std::io::stdin().as_fd());
    std::io::stdout().write_all(&describe().write_to_bytes()?).context("standard output")
}

/// Prints the version for people.
pub(crate) fn version() {
    println!("containerd-shim-skep-v2 {}", skep::VERSION);
}

fn describe() -> RuntimeInfo {
    RuntimeInfo {
        name: RUNTIME.into(),
        version: MessageField::some(RuntimeVersion {
            version: skep::VERSION.into(),
            ..RuntimeVersion::default()
        }),
        features: MessageField::some(Any {
            type_url: FEATURES.into(),
            value: features().to_string().into_bytes(),
            ..Any::default()
        }),
        ..RuntimeInfo::default()
    }
}

/// What a Linux container can ask for, as the OCI runtime specification's features.md writes it. CRI offers recursive
/// read-only mounts where "rro" is among the options of mounts.
fn features() -> serde_json::Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "startContainer", "poststart", "poststop"],
        "mountOptions": [
            "async", "atime", "bind", "dev", "diratime", "dirsync", "exec", "noatime", "nodev", "nodiratime", "noexec",
            "norelatime", "nostrictatime", "nosuid", "private", "rbind", "relatime", "remount", "ro", "rprivate",
            "rro", "rslave", "rw", "slave", "strictatime", "suid", "sync",
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": { "v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": { "enabled": true },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_name_and_version() {
        let bytes = describe().write_to_bytes().unwrap();
        let info = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!(info.name, RUNTIME);
        assert_eq!(info.version.version, skep::VERSION);
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert!(features["mountOptions"].as_array().unwrap().contains(&json!("rro")));
    }
}

//! Namespaces: the sandbox is the container's network, IPC and UTS namespace.

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType as Type};

use super::SpecError;
use crate::network::NetworkRequest;

const FIELD: &str = "linux.namespaces";

/// Leaves in the list what the guest has to make, and says where the network comes from; refuses the host's
/// namespaces.
pub(super) fn rewrite(linux: &mut Linux, sandbox_pids: &[u32]) -> Result<NetworkRequest, SpecError> {
    let given = linux.namespaces().clone().unwrap_or_default();
    let network = given
        .iter()
        .filter(|namespace| namespace.typ() == Type::Network)
        .find_map(|namespace| path_of(namespace))
        .filter(|path| !is_of_any(path, sandbox_pids))
        .map_or(NetworkRequest::Own, |path| NetworkRequest::Join(path.to_owned()));
    // Whoever leaves one of these out asks for the host's.
    for (kind, name, option) in [
        (Type::Network, "network", "without --net-host or hostNetwork"),
        (Type::Pid, "pid", "without --pid=host or hostPID"),
        (Type::Ipc, "ipc", "without --ipc=host or hostIPC"),
        (Type::Uts, "uts", "without --uts=host"),
        (Type::Mount, "mount", "with one"),
    ] {
        if !given.iter().any(|namespace| namespace.typ() == kind) {
            return Err(SpecError::unsupported(
                FIELD,
                format!(
                    "no {name} namespace in the list, which asks for the host's {name} namespace: a microVM can't \
                     share it, run {option}"
                ),
            ));
        }
    }
    let mut kept = Vec::new();
    for namespace in given {
        if keep(&namespace, sandbox_pids)? {
            kept.push(namespace);
        }
    }
    // The guest always has cgroup v2, whatever the host has: as containerd does on hosts with v2.
    if !kept.iter().any(|namespace| namespace.typ() == Type::Cgroup)
        && let Ok(namespace) = LinuxNamespaceBuilder::default().typ(Type::Cgroup).build()
    {
        kept.push(namespace);
    }
    linux.set_namespaces(Some(kept));
    Ok(network)
}

fn path_of(namespace: &LinuxNamespace) -> Option<&Path> {
    namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}

/// Whether the guest makes this one; otherwise the container has the sandbox's.
fn keep(namespace: &LinuxNamespace, sandbox_pids: &[u32]) -> Result<bool, SpecError> {
    let shared = match path_of(namespace) {
        None => false,
        Some(path) if is_of_any(path, sandbox_pids) => true,
        // The sandbox takes it over.
        Some(_) if namespace.typ() == Type::Network => false,
        Some(path) => {
            return Err(SpecError::unsupported(
                format!("{FIELD} {}", namespace.typ()),
                format!("{} is a namespace of the host: a microVM can't join it", path.display()),
            ));
        }
    };
    match namespace.typ() {
        Type::Network | Type::Ipc | Type::Uts => Ok(false),
        Type::Pid => Ok(!shared),
        Type::Mount | Type::Cgroup | Type::User | Type::Time if shared => Err(SpecError::unsupported(
            format!("{FIELD} {}", namespace.typ()),
            "containers of a sandbox do not share this one",
        )),
        Type::Mount | Type::Cgroup | Type::User | Type::Time => Ok(true),
    }
}

/// Whether `path` is below `/proc/<pid>/ns` of one of `pids`.
fn is_of_any(path: &Path, pids: &[u32]) -> bool {
    let Some(parent) = path.parent() else { return false };
    pids.iter().any(|pid| parent == Path::new(&format!("/proc/{pid}/ns")))
}

//! What a request and its specification ask for beyond a container's own.

use std::{collections::HashMap, path::Path};

use skep::{
    config::PodOptions,
    container::ErrorKind,
    share::{Rootfs, RootfsMount},
};
use skep_containerd_api::task::CreateTaskRequest;

use crate::convert::Failure;

/// By it containerd's CRI plugin tells a pod's own container from the others.
pub(super) const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// How large the /dev/shm of a container's pod has to be: what an annotation says, or what the caller made on this host
/// for all of the pod.
pub(super) fn shared_memory(
    spec: &oci_spec::runtime::Spec,
    annotations: &HashMap<String, String>,
) -> Result<Option<u64>, Failure> {
    let asked = PodOptions::shm_bytes(annotations)
        .map_err(|error| Failure::new(ErrorKind::InvalidArgument, &error))?;
    let made = || {
        let mounts = spec.mounts().iter().flatten();
        let shared = mounts.filter(|mount| mount.destination() == Path::new("/dev/shm"));
        let source =
            shared.filter_map(|mount| mount.source().as_deref()).find(|source| source.is_absolute())?;
        // Of a directory on a disk the size says nothing.
        skep::os::memory_filesystem_bytes(source)
    };
    Ok(asked.or_else(made))
}

/// Kernel parameters of the pod, which its own container brings; other containers bring their own to the guest.
pub(super) fn pod_sysctls(
    spec: &oci_spec::runtime::Spec,
    annotations: &HashMap<String, String>,
) -> HashMap<String, String> {
    if annotations.get(CONTAINER_TYPE).is_none_or(|kind| kind != "sandbox") {
        return HashMap::new();
    }
    spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default()
}

/// Where the container's root comes from.
pub(super) fn rootfs(request: &CreateTaskRequest, bundle: &Path, spec: &oci_spec::runtime::Spec) -> Rootfs {
    if request.rootfs.is_empty() {
        // The caller has it ready, where the specification says.
        let path = spec.root().as_ref().map_or(Path::new("rootfs"), |root| root.path());
        return Rootfs::Directory(bundle.join(path));
    }
    Rootfs::Mounts(
        request
            .rootfs
            .iter()
            .map(|mount| RootfsMount {
                fstype: mount.type_.clone(),
                source: mount.source.clone().into(),
                target: mount.target.clone(),
                options: mount.options.clone(),
            })
            .collect(),
    )
}

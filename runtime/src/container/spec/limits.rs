//! Resources, cgroup and devices.

use oci_spec::runtime::{Linux, LinuxBlockIo, LinuxDevice, LinuxDeviceType, LinuxNetwork, LinuxResources};

use super::SpecError;

/// Character devices that every guest has: major and minor numbers (Linux, Documentation/admin-guide/devices.txt) of
/// null, zero, full, random, urandom, tty, console, ptmx.
const GUEST_DEVICES: [(i64, i64); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// `linux.rootfsPropagation`, of the OCI runtime specification.
const PROPAGATIONS: [&str; 4] = ["shared", "slave", "private", "unbindable"];

/// Rewrites what limits the container and gives it devices.
pub(super) fn rewrite(linux: &mut Linux, id: &str, notes: &mut Vec<String>) -> Result<(), SpecError> {
    for (present, field, reason) in [
        (linux.intel_rdt().is_some(), "linux.intelRdt", "a microVM can't set the host's cache allocation"),
        (linux.memory_policy().is_some(), "linux.memoryPolicy", "a guest has one memory node"),
        (
            linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()),
            "linux.netDevices",
            "a network device of the host can't be moved into a microVM",
        ),
        (
            linux.seccomp().as_ref().is_some_and(|seccomp| seccomp.listener_path().is_some()),
            "linux.seccomp.listenerPath",
            "a socket of the host can't be reached from a microVM",
        ),
    ] {
        if present {
            return Err(SpecError::unsupported(field, reason));
        }
    }
    if let Some(label) = linux.mount_label().as_ref().filter(|label| !label.is_empty()) {
        notes.push(format!("linux.mountLabel {label}: the host's, left out"));
    }
    linux.set_mount_label(None);

    let everything = linux.resources().as_ref().is_some_and(allows_every_device);
    let devices = linux.devices().clone().unwrap_or_default();
    linux.set_devices(Some(rewrite_devices(devices, everything, notes)?));
    if let Some(resources) = linux.resources_mut() {
        rewrite_resources(resources, notes)?;
    }
    // runc takes mount(8)'s recursive names, the guest's runtime those of the OCI specification, and means the same.
    let plain = linux.rootfs_propagation().as_deref().and_then(|name| name.strip_prefix('r'));
    if let Some(plain) = plain.filter(|name| PROPAGATIONS.contains(name)).map(str::to_owned) {
        linux.set_rootfs_propagation(Some(plain));
    }
    // The host's cgroup tree does not exist in the guest; pods and slices are told apart by their VMs.
    linux.set_cgroups_path(Some(format!("/skep/{id}").into()));
    Ok(())
}

/// A rule that allows all devices is what callers send for a privileged container.
fn allows_every_device(resources: &LinuxResources) -> bool {
    resources.devices().iter().flatten().any(|rule| {
        rule.allow()
            && rule.typ().is_none_or(|typ| typ == LinuxDeviceType::A)
            && rule.major().is_none()
            && rule.minor().is_none()
            && rule.access().as_deref() == Some("rwm")
    })
}

fn rewrite_devices(
    devices: Vec<LinuxDevice>,
    privileged: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<LinuxDevice>, SpecError> {
    let mut kept = Vec::new();
    for (index, device) in devices.into_iter().enumerate() {
        let character = matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
        if character && GUEST_DEVICES.contains(&(device.major(), device.minor())) {
            kept.push(device);
        } else if privileged {
            // "Every device" is every device of the guest: the caller listed the host's.
            notes.push(format!("linux.devices[{index}] {}: the host's, left out", device.path().display()));
        } else {
            return Err(SpecError::unsupported(
                format!("linux.devices[{index}]"),
                format!(
                    "{} (device {}:{}) is a device of the host: a microVM can't have it",
                    device.path().display(),
                    device.major(),
                    device.minor()
                ),
            ));
        }
    }
    Ok(kept)
}

/// Takes out what means nothing in a guest; refuses what would not be kept.
pub(super) fn rewrite_resources(
    resources: &mut LinuxResources,
    notes: &mut Vec<String>,
) -> Result<(), SpecError> {
    for (present, field, reason) in [
        (
            resources.block_io().as_ref().is_some_and(|limits| *limits != LinuxBlockIo::default()),
            "linux.resources.blockIO",
            "the guest's file systems are shared by the host, not block devices",
        ),
        (
            // Kubernetes forbids every size that its host knows.
            resources.hugepage_limits().iter().flatten().any(|size| size.limit() != 0),
            "linux.resources.hugepageLimits",
            "the guest has no huge pages set aside",
        ),
        (
            resources.network().as_ref().is_some_and(|limits| *limits != LinuxNetwork::default()),
            "linux.resources.network",
            "the guest's kernel has cgroup v2, which has no network classes",
        ),
        (
            resources.rdma().as_ref().is_some_and(|limits| !limits.is_empty()),
            "linux.resources.rdma",
            "the guest has no RDMA device",
        ),
    ] {
        if present {
            return Err(SpecError::unsupported(field, reason));
        }
    }
    resources.set_block_io(None);
    resources.set_hugepage_limits(None);
    resources.set_network(None);
    resources.set_rdma(None);
    if let Some(memory) = resources.memory_mut()
        && memory.swap().is_some()
    {
        notes.push("linux.resources.memory.swap: the guest has no swap, left out".into());
        memory.set_swap(None);
    }
    Ok(())
}

//! QEMU, as a process for each VM.

use super::super::advice::{Packages, Program};
use super::super::facts::QemuFacts;
use super::super::report::Check;
use crate::config::{AccelChoice, Channel};
use crate::hypervisor::qemu::Accel;

/// The devices of every VM, as `-device help` names them, and what they are for.
const DEVICES: [&str; 4] = ["virtio-9p-pci", "virtio-serial-pci", "virtserialport", "virtio-rng-pci"];

pub(super) fn checks(facts: &QemuFacts, packages: Packages) -> Vec<Check> {
    let mut checks = vec![program(facts, packages)];
    if facts.found.is_some() {
        checks.push(devices(facts, packages));
    }
    checks.push(acceleration(facts));
    if facts.channel == Channel::Vsock {
        checks.push(vsock(facts, packages));
    }
    checks
}

fn program(facts: &QemuFacts, packages: Packages) -> Check {
    const MEANING: &str = "runs the VMs";
    let Some(path) = &facts.found else {
        let found = format!("{} not found", facts.binary.display());
        let fix = format!("{}, or set qemu.binary in the configuration", packages.install(Program::Qemu));
        return Check::missing("qemu", MEANING, found).fix(fix);
    };
    match &facts.version {
        Ok(version) => Check::ok("qemu", MEANING, format!("{}: {version}", path.display())),
        Err(e) => Check::missing("qemu", MEANING, format!("{} does not run: {e}", path.display()))
            .fix(packages.install(Program::Qemu)),
    }
}

fn devices(facts: &QemuFacts, packages: Packages) -> Check {
    const ID: &str = "qemu.devices";
    const MEANING: &str = "the channel to the agent, and 9p for root file systems";
    let listed = match &facts.devices {
        Ok(listed) => listed,
        Err(e) => return Check::missing(ID, MEANING, format!("cannot list its devices: {e}")),
    };
    // `name "virtio-9p-pci", bus PCI, …`
    let has = |name: &str| listed.contains(&format!("\"{name}\""));
    let lacking: Vec<&str> = DEVICES.into_iter().filter(|name| !has(name)).collect();
    if lacking.is_empty() {
        return Check::ok(ID, MEANING, DEVICES.join(", "));
    }
    Check::missing(ID, MEANING, format!("this QEMU was built without {}", lacking.join(", ")))
        .fix(packages.install(Program::Qemu))
}

fn acceleration(facts: &QemuFacts) -> Check {
    const ID: &str = "kvm";
    const MEANING: &str =
        "running guest instructions by hardware instead of software, about ten times faster";
    match (&facts.accel, facts.accel_choice) {
        (Ok((Accel::Kvm, reason)), _) => Check::ok(ID, MEANING, format!("usable: {reason}")),
        (Ok((Accel::Tcg, _)), AccelChoice::Tcg) => {
            Check::ok(ID, MEANING, "software emulation, as qemu.accel = \"tcg\" says")
        }
        (Ok((Accel::Tcg, reason)), _) => {
            Check::warning(ID, MEANING, format!("not usable, VMs run by software emulation: {reason}"))
                .fix("enable virtualisation (VT-x or AMD-V) in the firmware, or nested virtualisation where this is a VM itself, and `modprobe kvm_intel` or `modprobe kvm_amd`")
        }
        (Err(reason), _) => Check::missing(ID, MEANING, format!("qemu.accel = \"kvm\", but {reason}"))
            .fix("set qemu.accel = \"auto\" in the configuration"),
    }
}

fn vsock(facts: &QemuFacts, packages: Packages) -> Check {
    const ID: &str = "vhost_device_vsock";
    const MEANING: &str = "agent.channel = \"vsock\"";
    match &facts.vsock_backend {
        Some(path) => Check::ok(ID, MEANING, path.display().to_string()),
        None => {
            Check::missing(ID, MEANING, format!("{} not found", facts.vsock_binary.display())).fix(format!(
                "{}, or set agent.channel = \"console\" in the configuration",
                packages.install(Program::VhostDeviceVsock)
            ))
        }
    }
}

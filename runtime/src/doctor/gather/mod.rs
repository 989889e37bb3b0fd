//! Looking at this host.

mod command;
mod containerd;
#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;
mod state_dir;
#[cfg(target_os = "freebsd")]
mod sysctl;

use std::ffi::OsStr;
use std::path::Path;

use super::Patient;
use super::facts::{ConfigFacts, Facts, HypervisorFacts, MemoryFacts, QemuFacts, SystemFacts};
use crate::config::{Config, HypervisorKind};
use crate::guest::{Guest, GuestOs};
use crate::hypervisor::{find_program_in, qemu, search_path};
use crate::sandbox;
#[cfg(target_os = "freebsd")]
use freebsd as system;
#[cfg(target_os = "linux")]
use linux as system;

pub(super) fn gather(patient: &Patient) -> Facts {
    let daemon = containerd::Daemon::find(patient.containerd.as_deref());
    // A shim has what its containerd has.
    let theirs = daemon.variable("SKEP_CONFIG").map(Into::into);
    let (config, configuration) = config(patient.config.clone().or_else(Config::named).or(theirs).as_deref());
    let path = daemon.variable("PATH").unwrap_or_else(search_path);
    let left = sandbox::list(&config).map(|all| all.iter().filter(|sandbox| !sandbox.owned).count());
    Facts {
        root: rustix::process::geteuid().is_root(),
        config: configuration,
        guest: guest(&config, GuestOs::Linux),
        freebsd_guest: guest(&config, GuestOs::FreeBsd),
        hypervisor: match config.hypervisor {
            HypervisorKind::Qemu => HypervisorFacts::Qemu(qemu(&config, &path)),
            HypervisorKind::Bhyve => HypervisorFacts::Bhyve(system::bhyve()),
        },
        memory: MemoryFacts {
            available_mib: system::available_mib(),
            vm_mib: config.sandbox.memory_mib.mib().into(),
        },
        state_dir: state_dir::look(&config.state_dir),
        shim: daemon.shim(&path),
        containerd: daemon.facts(&path),
        leftovers: left.map_err(|e| e.to_string()),
        system: system_facts(),
    }
}

#[cfg(target_os = "linux")]
fn system_facts() -> SystemFacts {
    SystemFacts::Linux(linux::facts())
}

#[cfg(target_os = "freebsd")]
fn system_facts() -> SystemFacts {
    SystemFacts::FreeBsd(freebsd::facts())
}

fn config(named: Option<&Path>) -> (Config, ConfigFacts) {
    let file = named.unwrap_or(Config::system_path()).to_owned();
    let exists = file.exists();
    let (config, error) = match Config::load(named) {
        Ok(config) => (config, None),
        Err(e) => (Config::default(), Some(e.to_string())),
    };
    (config, ConfigFacts { file, exists, error })
}

fn guest(config: &Config, os: GuestOs) -> Result<String, String> {
    let dir = config.guest.dir_of(os);
    let guest = Guest::load(dir, os).map_err(|e| e.to_string())?;
    guest.verify().map_err(|e| e.to_string())?;
    let manifest = guest.manifest();
    let (os, release, agent) = (&manifest.os, &manifest.kernel_release, &manifest.agent_version);
    Ok(format!("{}: {os} {release}, agent {agent}, as its manifest says", dir.display()))
}

fn qemu(config: &Config, path: &OsStr) -> QemuFacts {
    let crate::config::Qemu { binary, accel, vhost_device_vsock } = config.qemu.clone();
    let found = find_program_in(&binary, path);
    let ask = |arguments: &[&str]| match &found {
        Some(program) => command::output(program, arguments),
        None => Err("not found".into()),
    };
    let version = ask(&["-version"]);
    let devices = if version.is_ok() { ask(&["-device", "help"]) } else { Err("it does not run".into()) };
    QemuFacts {
        version: version.map(|text| text.lines().next().unwrap_or_default().to_owned()),
        devices,
        accel: qemu::decide(accel).map(|decision| (decision.accel, decision.reason)),
        accel_choice: accel,
        channel: config.agent.channel,
        vsock_backend: find_program_in(&vhost_device_vsock, path),
        vsock_binary: vhost_device_vsock,
        binary,
        found,
    }
}

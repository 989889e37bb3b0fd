//! From facts to checks: pure.

mod bhyve;
mod freebsd;
mod linux;
mod qemu;
#[cfg(test)]
mod tests;

use super::advice::{Packages, Program};
use super::facts::{Facts, FilesystemFacts, HypervisorFacts, SystemFacts};
use super::report::{Check, Report};

/// What a VM takes on the host beyond its memory, in MiB.
const OVERHEAD_MIB: u64 = 64;
/// Logs and records of a few sandboxes, in MiB.
const LEAST_FREE_MIB: u64 = 16;
/// The oldest containerd that the end-to-end suite runs against.
const LEAST_CONTAINERD: (u32, u32) = (1, 6);

pub(super) fn judge(facts: &Facts) -> Report {
    let packages = Packages::of(facts);
    let mut checks = vec![user(facts), configuration(facts), guest(facts), freebsd_guest(facts)];
    match &facts.hypervisor {
        HypervisorFacts::Qemu(qemu) => checks.extend(qemu::checks(qemu, packages)),
        HypervisorFacts::Bhyve(bhyve) => checks.extend(bhyve::checks(bhyve)),
    }
    checks.extend([memory(facts), state_dir(facts), leftovers(facts)]);
    checks.extend([containerd(facts, packages), containerd_runtime(facts), shim(facts)]);
    let system = match &facts.system {
        SystemFacts::Linux(linux) => {
            checks.extend(linux::checks(linux));
            "linux"
        }
        SystemFacts::FreeBsd(freebsd) => {
            checks.extend(freebsd::checks(freebsd));
            "freebsd"
        }
    };
    Report::new(system, checks)
}

fn user(facts: &Facts) -> Check {
    const MEANING: &str = "mounts, VMs and taps, which only root may make";
    if facts.root {
        return Check::ok("user", MEANING, "root");
    }
    Check::missing("user", MEANING, "not root: most of what follows cannot be seen")
        .fix("run this as root, as containerd runs")
}

fn configuration(facts: &Facts) -> Check {
    const MEANING: &str = "every sandbox reads it";
    let file = facts.config.file.display();
    match &facts.config.error {
        Some(error) => Check::missing("configuration", MEANING, error)
            .fix(format!("mend {file}; `skep config check` says whether it is valid")),
        None if facts.config.exists => Check::ok("configuration", MEANING, format!("{file} is valid")),
        None => Check::ok("configuration", MEANING, format!("no {file}: the defaults hold")),
    }
}

fn guest(facts: &Facts) -> Check {
    const MEANING: &str = "the kernel and agent that a VM of Linux images boots";
    match &facts.guest {
        Ok(found) => Check::ok("guest", MEANING, found),
        Err(error) => Check::missing("guest", MEANING, error)
            .fix("`cargo xtask guest` builds one; [guest] dir in the configuration names it"),
    }
}

fn freebsd_guest(facts: &Facts) -> Check {
    const ID: &str = "freebsd_guest";
    const MEANING: &str = "the kernel and agent that a VM of FreeBSD images boots; nothing else needs it";
    match &facts.freebsd_guest {
        Ok(found) => Check::ok(ID, MEANING, found),
        Err(error) => Check::warning(ID, MEANING, error).fix(
            "`cargo xtask freebsd guest` assembles one; [guest] freebsd_dir in the configuration names it",
        ),
    }
}

fn memory(facts: &Facts) -> Check {
    const MEANING: &str = "VMs; theirs is taken from the host as they use it";
    let need = facts.memory.vm_mib + OVERHEAD_MIB;
    match &facts.memory.available_mib {
        Ok(available) if *available >= need => {
            Check::ok("memory", MEANING, format!("{available} MiB available, a VM takes up to {need} MiB"))
        }
        Ok(available) => Check::warning(
            "memory",
            MEANING,
            format!("{available} MiB available, less than the {need} MiB that one VM may take"),
        )
        .fix("free some, or lower [sandbox] memory_mib in the configuration"),
        Err(e) => Check::warning("memory", MEANING, format!("cannot tell how much is available: {e}")),
    }
}

fn state_dir(facts: &Facts) -> Check {
    const ID: &str = "state_dir";
    const MEANING: &str = "what sandboxes keep: sockets, journals, logs, mounted roots";
    let dir = &facts.state_dir;
    let path = dir.path.display();
    let fstype = dir.fstype.as_deref().unwrap_or("unknown file system");
    let FilesystemFacts { read_only, nosuid, free_mib } = match &dir.filesystem {
        Ok(filesystem) => *filesystem,
        Err(e) => return Check::missing(ID, MEANING, format!("cannot look at {path}: {e}")),
    };
    let elsewhere = "name a directory elsewhere as state_dir in the configuration";
    if read_only {
        let found = format!("{} ({fstype}) is read-only, so {path} cannot be made", dir.existing.display());
        return Check::missing(ID, MEANING, found).fix(elsewhere);
    }
    if let Some((owner, mode)) = dir.sandboxes
        && (owner != 0 || mode & 0o022 != 0)
    {
        let found =
            format!("{path}/sb belongs to user {owner} and its mode is {mode:o}: others can change it");
        return Check::missing(ID, MEANING, found)
            .fix(format!("chown root {path}/sb && chmod 700 {path}/sb"));
    }
    if free_mib < LEAST_FREE_MIB {
        let found = format!("{path} ({fstype}) has {free_mib} MiB free");
        return Check::warning(ID, MEANING, found).fix(format!("make room, or {elsewhere}"));
    }
    let nosuid = if nosuid { ", nosuid" } else { "" };
    Check::ok(ID, MEANING, format!("{path} ({fstype}{nosuid}, {free_mib} MiB free)"))
}

fn leftovers(facts: &Facts) -> Check {
    const MEANING: &str = "what a crash left takes memory, mounts and names";
    match &facts.leftovers {
        Ok(0) => Check::ok("leftovers", MEANING, "none"),
        Ok(n) => Check::warning("leftovers", MEANING, format!("{n} sandboxes that nobody looks after"))
            .fix("skep gc"),
        Err(e) => Check::warning("leftovers", MEANING, format!("cannot tell: {e}")),
    }
}

fn containerd(facts: &Facts, packages: Packages) -> Check {
    const ID: &str = "containerd";
    const MEANING: &str = "who asks for containers";
    let containerd = &facts.containerd;
    let socket = containerd.socket.display();
    let version = containerd.version.as_deref().unwrap_or("of unknown version");
    match (&containerd.listening, &containerd.program) {
        (Ok(()), _) => {
            let found = format!("{version} answers on {socket}");
            match containerd.version.as_deref().and_then(number) {
                Some(number) if number < LEAST_CONTAINERD => {
                    let (major, minor) = LEAST_CONTAINERD;
                    Check::warning(ID, MEANING, format!("{found}; older than {major}.{minor}, not tested"))
                        .fix(packages.install(Program::Containerd))
                }
                _ => Check::ok(ID, MEANING, found),
            }
        }
        (Err(e), Some(program)) => {
            let found = format!("{} ({version}) does not answer on {socket}: {e}", program.display());
            Check::missing(ID, MEANING, found).fix(format!(
                "{}, or name its socket by --containerd or $CONTAINERD_ADDRESS",
                packages.start_containerd()
            ))
        }
        (Err(e), None) => {
            let found = format!("not found, and nobody answers on {socket}: {e}");
            Check::missing(ID, MEANING, found).fix(packages.install(Program::Containerd))
        }
    }
}

/// Major and minor version in `containerd github.com/containerd/containerd v2.1.0 <commit>`.
fn number(version: &str) -> Option<(u32, u32)> {
    version.split_whitespace().find_map(|word| {
        let mut parts = word.strip_prefix('v').unwrap_or(word).split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

fn containerd_runtime(facts: &Facts) -> Check {
    const ID: &str = "containerd.runtime";
    const MEANING: &str = "Kubernetes' runtime class; ctr and nerdctl need no entry";
    let file = facts.containerd.config.display();
    let fix = format!("merge packaging/containerd/skep.toml into {file} and restart containerd");
    match &facts.containerd.registered {
        Ok(Some(true)) => Check::ok(ID, MEANING, format!("registered in {file}")),
        Ok(Some(false)) => Check::warning(ID, MEANING, format!("not registered in {file}")).fix(fix),
        Ok(None) => Check::warning(ID, MEANING, format!("not registered: there is no {file}")).fix(fix),
        Err(e) => Check::warning(ID, MEANING, format!("cannot read {file}: {e}")).fix(fix),
    }
}

fn shim(facts: &Facts) -> Check {
    const ID: &str = "shim";
    const MEANING: &str = "what containerd starts for --runtime io.containerd.skep.v2";
    let whose = if facts.shim.of_containerd { "containerd's PATH" } else { "PATH" };
    match &facts.shim.found {
        Some(path) => Check::ok(ID, MEANING, format!("{} in {whose}", path.display())),
        None => Check::missing(
            ID,
            MEANING,
            format!("no {} in {whose} ({})", super::SHIM, facts.shim.searched),
        )
        .fix(format!(
            "install -m 755 target/release/{} /usr/local/bin/, or put its directory into containerd's PATH",
            super::SHIM
        )),
    }
}

//! A Linux host, beyond what runs the VMs.

use super::super::facts::{Cgroup, LinuxFacts, Module};
use super::super::report::Check;

pub(super) fn checks(facts: &LinuxFacts) -> Vec<Check> {
    let mut checks = vec![cgroup(facts.cgroup)];
    checks.extend(facts.modules.iter().map(|(name, module)| kernel(name, *module)));
    checks.push(ip_forward(facts.ip_forward));
    checks
}

fn cgroup(cgroup: Cgroup) -> Check {
    const MEANING: &str = "limits on the host; guests have v2 of their own, whatever the host has";
    match cgroup {
        Cgroup::V2 => Check::ok("cgroup", MEANING, "v2"),
        Cgroup::Hybrid => Check::ok("cgroup", MEANING, "v1 with v2 beside it"),
        Cgroup::V1 => Check::ok("cgroup", MEANING, "v1"),
        Cgroup::None => Check::warning("cgroup", MEANING, "none at /sys/fs/cgroup")
            .fix("mount -t cgroup2 none /sys/fs/cgroup"),
    }
}

/// A name for the check of each module that a network needs, and what for.
fn meaning(module: &str) -> (&'static str, &'static str) {
    match module {
        "tun" => ("kernel.tun", "taps, by which VMs have a network"),
        "bridge" => ("kernel.bridge", "skep-cni: the bridge of a network"),
        "br_netfilter" => ("kernel.br_netfilter", "skep-cni: policy on what a bridge forwards"),
        "nf_tables" => ("kernel.nf_tables", "skep-cni: policy, port maps, NAT"),
        "vxlan" => ("kernel.vxlan", "skep-cni: networks over several hosts"),
        _ => ("kernel", "networks"),
    }
}

fn kernel(name: &str, module: Module) -> Check {
    let (id, meaning) = meaning(name);
    match module {
        Module::Present => Check::ok(id, meaning, "in the kernel"),
        Module::Loadable => Check::ok(id, meaning, "a module, not loaded yet").fix(format!(
            "modprobe {name}, and {name} in a file in /etc/modules-load.d, if it is not loaded by itself"
        )),
        Module::Absent => {
            Check::warning(id, meaning, format!("the kernel has no {name}")).fix("use a kernel with it")
        }
        Module::Unknown => {
            Check::warning(id, meaning, "nothing on this machine says whether the kernel has it")
        }
    }
}

fn ip_forward(on: Option<bool>) -> Check {
    const ID: &str = "net.ipv4.ip_forward";
    const MEANING: &str = "what leaves a network for another; skep-cni sets it for networks with a gateway";
    match on {
        Some(true) => Check::ok(ID, MEANING, "1"),
        Some(false) => Check::ok(ID, MEANING, "0, until the first network with a gateway"),
        None => Check::warning(ID, MEANING, "cannot be read"),
    }
}

//! A FreeBSD host, beyond what runs the VMs.

use super::super::ANCHOR;
use super::super::facts::{FreeBsdFacts, PfFacts};
use super::super::report::Check;

/// FreeBSD 14.0, the oldest whose libvmmapi is supported (`__FreeBSD_version`).
const LEAST_OSRELDATE: u64 = 1_400_000;
/// Each sandbox has one; so many are too few for a host in use (pf.conf(5): 512 by default).
const FEW_ANCHORS: u64 = 1024;

pub(super) fn checks(facts: &FreeBsdFacts) -> Vec<Check> {
    let mut checks = vec![release(facts.osreldate)];
    checks.extend(facts.modules.iter().map(|(name, loaded)| module(name, *loaded)));
    checks.extend(facts.sysctls.iter().map(|(name, value)| sysctl(name, *value)));
    checks.extend(pf(&facts.pf));
    checks
}

fn release(osreldate: Option<u64>) -> Check {
    const MEANING: &str = "the interfaces of vmm, pf and if_bridge that Skep was written for";
    match osreldate {
        Some(date) if date >= LEAST_OSRELDATE => {
            Check::ok("freebsd", MEANING, format!("kern.osreldate {date}"))
        }
        Some(date) => {
            Check::missing("freebsd", MEANING, format!("kern.osreldate {date} is older than FreeBSD 14"))
                .fix("upgrade to FreeBSD 14 or 15")
        }
        None => Check::warning("freebsd", MEANING, "kern.osreldate cannot be read"),
    }
}

/// A name for the check of each module, and what it is for.
fn meaning(module: &str) -> (&'static str, &'static str) {
    match module {
        "nullfs" => ("kernel.nullfs", "volumes, and root file systems of the native snapshotter"),
        "if_tuntap" => ("kernel.if_tuntap", "taps, by which VMs have a network"),
        "if_bridge" => ("kernel.if_bridge", "the bridge of a network"),
        "if_vxlan" => ("kernel.if_vxlan", "networks over several hosts"),
        "pf" => ("kernel.pf", "policy, port maps, NAT"),
        _ => ("kernel", "networks"),
    }
}

fn module(name: &str, loaded: bool) -> Check {
    let (id, meaning) = meaning(name);
    if loaded {
        return Check::ok(id, meaning, "loaded");
    }
    // mount(2) loads file systems by itself; interfaces and pf are not loaded by the calls that use them.
    if name == "nullfs" {
        return Check::ok(id, meaning, "not loaded yet: the first mount loads it");
    }
    Check::warning(id, meaning, "not loaded").fix(format!("kldload {name} && sysrc kld_list+={name}"))
}

fn sysctl(name: &'static str, value: Option<u64>) -> Check {
    let (meaning, wanted) = match name {
        "net.link.bridge.pfil_member" => ("pf sees what goes through a bridge, port by port", 1),
        "net.link.bridge.pfil_onlyip" => ("nothing but IP and ARP passes a bridge", 1),
        "kern.features.vimage" => ("network stacks of their own (vnet jails)", 1),
        _ => ("what leaves a network for another", 1),
    };
    let fix = || format!("sysctl {name}={wanted} && echo {name}={wanted} >> /etc/sysctl.conf");
    match value {
        Some(value) if value == wanted => Check::ok(name, meaning, value.to_string()),
        Some(value) => Check::warning(name, meaning, value.to_string()).fix(fix()),
        None if name == "kern.features.vimage" => {
            Check::warning(name, meaning, "not in this kernel").fix("use GENERIC, or add `options VIMAGE`")
        }
        None => Check::warning(name, meaning, "not there, since if_bridge is not loaded"),
    }
}

fn pf(facts: &Result<PfFacts, String>) -> Vec<Check> {
    const ENABLED: &str = "policy: without pf nothing is filtered";
    const REFERENCE: &str = "without it pf never looks at the rules of sandboxes";
    const LIMIT: &str = "one anchor for each sandbox";
    let facts = match facts {
        Ok(facts) => facts,
        Err(e) => {
            return vec![
                Check::warning("pf", ENABLED, format!("pfctl fails: {e}"))
                    .fix("sysrc pf_enable=YES && service pf start"),
            ];
        }
    };
    let enabled = if facts.enabled {
        Check::ok("pf", ENABLED, "enabled")
    } else {
        Check::warning("pf", ENABLED, "disabled").fix("sysrc pf_enable=YES && service pf start")
    };
    let reference = if facts.anchor {
        Check::ok("pf.anchor", REFERENCE, format!("the ruleset has anchor \"{ANCHOR}\""))
    } else {
        let found =
            format!("the ruleset has no anchor \"{ANCHOR}\": skep-cni adds it, a reloaded pf.conf loses it");
        Check::warning("pf.anchor", REFERENCE, found).fix(format!(
            "write nat-anchor \"{ANCHOR}\", rdr-anchor \"{ANCHOR}\" and anchor \"{ANCHOR}\", a line each, into /etc/pf.conf before \
             your own rules, then `pfctl -f /etc/pf.conf`"
        ))
    };
    let limit = match facts.anchors {
        Some(n) if n >= FEW_ANCHORS => Check::ok("pf.anchors", LIMIT, n.to_string()),
        Some(n) => Check::warning("pf.anchors", LIMIT, format!("at most {n}"))
            .fix("add `set limit anchors 4096` to /etc/pf.conf, then `pfctl -f /etc/pf.conf`"),
        None => Check::warning("pf.anchors", LIMIT, "pfctl does not say how many there can be"),
    };
    vec![enabled, reference, limit]
}

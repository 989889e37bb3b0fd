//! bhyve(8), libvmmapi and vmm.ko.

use super::super::facts::{BhyveFacts, Virtualisation};
use super::super::report::Check;

pub(super) fn checks(facts: &BhyveFacts) -> Vec<Check> {
    vec![
        program(facts),
        library(facts),
        processor(facts),
        vmm(facts),
        nested_paging(facts),
        devfs(facts),
        snapshot(facts),
    ]
}

fn program(facts: &BhyveFacts) -> Check {
    const MEANING: &str = "runs the VMs";
    if facts.program {
        return Check::ok("bhyve", MEANING, "/usr/sbin/bhyve");
    }
    Check::missing("bhyve", MEANING, "/usr/sbin/bhyve not found")
        .fix("it is part of FreeBSD on amd64 (`pkg install FreeBSD-bhyve` where the base system is packaged)")
}

fn library(facts: &BhyveFacts) -> Check {
    const MEANING: &str = "makes, loads and destroys VMs";
    match &facts.library {
        Ok(soname) => Check::ok("libvmmapi", MEANING, soname),
        Err(e) => Check::missing("libvmmapi", MEANING, e).fix("use FreeBSD 14 or 15 on amd64"),
    }
}

fn processor(facts: &BhyveFacts) -> Check {
    const ID: &str = "cpu";
    const MEANING: &str = "hardware virtualisation, without which bhyve runs nothing";
    let firmware = "enable virtualisation (VT-x or AMD-V) in the firmware, or nested virtualisation where this is a VM itself";
    match facts.virtualisation {
        Virtualisation::Vmx => Check::ok(ID, MEANING, "Intel VMX"),
        Virtualisation::Svm { nested_paging: true } => Check::ok(ID, MEANING, "AMD SVM with nested paging"),
        Virtualisation::Svm { nested_paging: false } => {
            Check::missing(ID, MEANING, "AMD SVM without nested paging (NPT)")
                .fix("use a CPU with nested paging: AMD's have it since 2007")
        }
        Virtualisation::None => {
            Check::missing(ID, MEANING, "the CPU offers neither VMX nor SVM").fix(firmware)
        }
    }
}

fn vmm(facts: &BhyveFacts) -> Check {
    const MEANING: &str = "the hypervisor in the kernel";
    if facts.vmm {
        return Check::ok("vmm", MEANING, "loaded");
    }
    Check::missing("vmm", MEANING, "vmm.ko is not loaded").fix("kldload vmm && sysrc kld_list+=vmm")
}

fn nested_paging(facts: &BhyveFacts) -> Check {
    const ID: &str = "nested_paging";
    const MEANING: &str = "guest memory (EPT or NPT)";
    match facts.vmm_ready {
        Some(true) => Check::ok(ID, MEANING, "vmm uses it"),
        Some(false) => Check::missing(
            ID,
            MEANING,
            "vmm is loaded but found no usable VMX or SVM with nested paging",
        )
        .fix("enable virtualisation in the firmware; `dmesg | grep -i vmm` says what the kernel missed"),
        None => Check::warning(ID, MEANING, "shows once vmm is loaded"),
    }
}

fn devfs(facts: &BhyveFacts) -> Check {
    const MEANING: &str = "/dev/vmm, where the kernel shows its VMs";
    match &facts.devfs {
        Ok(true) => Check::ok("devfs", MEANING, "/dev is a devfs"),
        Ok(false) => Check::missing("devfs", MEANING, "/dev is no devfs").fix("mount -t devfs devfs /dev"),
        Err(e) => Check::missing("devfs", MEANING, format!("cannot look at /dev: {e}")),
    }
}

fn snapshot(facts: &BhyveFacts) -> Check {
    const ID: &str = "bhyve_snapshot";
    const MEANING: &str = "checkpoints on disk (the durable tiers of the pool); nothing else needs it";
    let fix = "build world with WITH_BHYVE_SNAPSHOT=yes and the kernel with `options BHYVE_SNAPSHOT`";
    match (&facts.bhyve_snapshot, facts.kernel_snapshot) {
        (Ok(true), Some(true)) => Check::ok(ID, MEANING, "in bhyve and in the kernel"),
        (Ok(true), None) => Check::ok(
            ID,
            MEANING,
            "in bhyve; the kernel does not carry its configuration, so it cannot be asked",
        ),
        (Ok(true), Some(false)) => Check::warning(ID, MEANING, "in bhyve, not in the kernel").fix(fix),
        (Ok(false), _) => Check::warning(ID, MEANING, "not in this FreeBSD, as released").fix(fix),
        (Err(e), _) => Check::warning(ID, MEANING, format!("cannot tell: {e}")),
    }
}

//! Whether KVM runs ordinary guests on this host.
//!
//! `/dev/kvm` alone proves nothing: a host without hardware virtualisation may offer it (`kvm_pvm`), and QEMU then
//! aborts on a register it cannot set or crawls. The CPU flags `vmx` and `svm` in /proc/cpuinfo are the sign.

use std::fmt;

use crate::config::AccelChoice;

/// How guest instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the hardware.
    Kvm,
    /// By software.
    Tcg,
}

/// How guest instructions are run, and why so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccelDecision {
    /// How.
    pub accel: Accel,
    /// Why.
    pub reason: String,
}

impl fmt::Display for AccelDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.accel {
            Accel::Kvm => "KVM",
            Accel::Tcg => "software emulation (TCG)",
        };
        write!(f, "{name}: {}", self.reason)
    }
}

/// What there is to judge by.
#[derive(Debug, Clone, Default)]
struct Signs {
    cpu_flag: Option<&'static str>,
    pvm: bool,
    /// Why /dev/kvm cannot be opened.
    device: Option<String>,
}

impl Signs {
    fn of_this_host() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let device = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        Self {
            cpu_flag: cpu_flag(&cpuinfo),
            pvm: std::path::Path::new("/sys/module/kvm_pvm").exists(),
            device: device.err().map(|e| e.to_string()),
        }
    }

    /// Why KVM does not serve, or what says that it does.
    fn kvm(&self) -> Result<String, String> {
        if !cfg!(target_os = "linux") {
            return Err("this system has no KVM".into());
        }
        if self.pvm {
            return Err("/dev/kvm is of the kind kvm_pvm, which does not run ordinary guests".into());
        }
        let Some(flag) = self.cpu_flag else {
            return Err(
                "the CPU offers no hardware virtualisation (neither vmx nor svm in /proc/cpuinfo)".into()
            );
        };
        match &self.device {
            Some(error) => Err(format!("/dev/kvm cannot be opened: {error}")),
            None => Ok(format!("the CPU has {flag} and /dev/kvm opens")),
        }
    }
}

fn cpu_flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'))?.1;
    ["vmx", "svm"].into_iter().find(|name| flags.split_whitespace().any(|flag| flag == *name))
}

/// Chooses for this host. An error says why KVM, asked for by name, does not serve.
pub fn decide(choice: AccelChoice) -> Result<AccelDecision, String> {
    judge(choice, &Signs::of_this_host())
}

fn judge(choice: AccelChoice, signs: &Signs) -> Result<AccelDecision, String> {
    let tcg = |reason| Ok(AccelDecision { accel: Accel::Tcg, reason });
    match (choice, signs.kvm()) {
        (AccelChoice::Tcg, _) => tcg("qemu.accel = \"tcg\"".into()),
        (_, Ok(reason)) => Ok(AccelDecision { accel: Accel::Kvm, reason }),
        (AccelChoice::Auto, Err(reason)) => tcg(reason),
        (AccelChoice::Kvm, Err(reason)) => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_flags_are_whole_words() {
        assert_eq!(cpu_flag("model\t: 1\nflags\t\t: fpu vmx sse\nflags : x"), Some("vmx"));
        assert_eq!(cpu_flag("flags\t\t: fpu svm"), Some("svm"));
        assert_eq!(cpu_flag("flags\t\t: fpu svm_lock avmx\nbugs : svm"), None);
        assert_eq!(cpu_flag(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn kvm_is_used_only_where_it_runs_guests() {
        let good = Signs { cpu_flag: Some("vmx"), pvm: false, device: None };
        assert_eq!(judge(AccelChoice::Auto, &good).unwrap().accel, Accel::Kvm);
        assert_eq!(judge(AccelChoice::Tcg, &good).unwrap().accel, Accel::Tcg);
        let bad = [
            (Signs { cpu_flag: None, ..good.clone() }, "vmx"),
            (Signs { pvm: true, ..good.clone() }, "kvm_pvm"),
            (Signs { device: Some("permission denied".into()), ..good }, "permission denied"),
        ];
        for (signs, why) in bad {
            let auto = judge(AccelChoice::Auto, &signs).unwrap();
            assert_eq!(auto.accel, Accel::Tcg);
            assert!(auto.to_string().contains(why), "{auto}");
            assert!(judge(AccelChoice::Kvm, &signs).unwrap_err().contains(why));
        }
    }
}

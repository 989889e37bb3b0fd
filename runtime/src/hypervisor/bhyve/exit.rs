//! What bhyve's end means: pure.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use crate::hypervisor::ExitCause;

/// Exit statuses of bhyve(8) after the guest ran (usr.sbin/bhyve/amd64/vmexit.c, `vmexit_suspend`).
mod status {
    pub(super) const RESET: i32 = 0;
    pub(super) const POWEROFF: i32 = 1;
    pub(super) const HALT: i32 = 2;
    pub(super) const TRIPLE_FAULT: i32 = 3;
    pub(super) const ERROR: i32 = 4;
    pub(super) const SUSPENDED: i32 = 5;
    /// `EX__BASE` to `EX__MAX` (sysexits.h).
    pub(super) const SYSEXITS: std::ops::RangeInclusive<i32> = 64..=78;
}

/// How a VM ended, by bhyve's status and what it said. `killed`: this host has ended it.
pub(super) fn judge(status: io::Result<ExitStatus>, killed: bool, messages: &str) -> ExitCause {
    let status = match status {
        Ok(status) => status,
        Err(e) => {
            return ExitCause::Vmm { status: format!("cannot be waited for: {e}"), message: messages.into() };
        }
    };
    let vmm = |status: String| ExitCause::Vmm { status, message: messages.to_owned() };
    let signal = status.signal();
    if killed && (signal == Some(libc::SIGKILL) || status.code() == Some(status::ERROR)) {
        return ExitCause::Killed;
    }
    match (status.code(), signal) {
        // It says how it is used, which is no end of a guest.
        (Some(status::POWEROFF), _) if messages.contains("Usage:") => {
            vmm("exit status 1: an option is wrong".into())
        }
        (Some(status::RESET), _) => ExitCause::Reset,
        (Some(status::POWEROFF), _) => ExitCause::PoweredOff,
        (Some(status::HALT), _) => ExitCause::Fatal("it halted its processor for good".into()),
        (Some(status::TRIPLE_FAULT), _) => ExitCause::Fatal("triple fault".into()),
        (Some(status::ERROR), _) => vmm(format!("exit status 4{}", reason(messages))),
        (Some(status::SUSPENDED), _) => vmm("exit status 5: suspended to a checkpoint".into()),
        (Some(code), _) if status::SYSEXITS.contains(&code) => {
            vmm(format!("exit status {code}: an option or a system call failed"))
        }
        (Some(code), _) => vmm(format!("exit status {code}")),
        (None, Some(libc::SIGABRT)) => {
            vmm("signal 6: the guest did what bhyve cannot emulate, or bhyve has a bug".into())
        }
        (None, Some(signal)) => vmm(format!("signal {signal}")),
        (None, None) => vmm(status.to_string()),
    }
}

/// What is behind status 4, as far as bhyve's words tell.
fn reason(messages: &str) -> &'static str {
    let reasons = [
        ("no bootrom was configured", ": its VM was destroyed before it began"),
        ("vm_openf", ": its VM cannot be opened"),
        ("Unable to setup memory", ": the guest's memory is not what was loaded, or there is not enough"),
        ("vCPUs requested but only", ": more vCPUs than this host allows"),
        ("Device emulation initialization error", ": a device cannot be set up"),
        ("VM exit on HLT not supported", ": this processor is not supported"),
    ];
    let known = reasons.iter().find(|(words, _)| messages.contains(words));
    known.map_or(": an error, or its VM was destroyed", |(_, reason)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32, killed: bool, messages: &str) -> String {
        show(judge(Ok(ExitStatus::from_raw(code << 8)), killed, messages))
    }

    fn show(cause: ExitCause) -> String {
        crate::hypervisor::VmExit { cause, console: String::new() }.to_string()
    }

    #[test]
    fn statuses_become_reasons() {
        assert_eq!(exit(0, false, ""), "the guest reset itself");
        assert_eq!(exit(1, false, ""), "the guest powered off");
        assert_eq!(exit(1, true, ""), "the guest powered off");
        assert_eq!(exit(3, false, "x"), "the guest gave up: triple fault");
        assert!(exit(1, false, "Usage: bhyve [-aCDeH").contains("an option is wrong"));
        assert!(exit(4, false, "bhyve: no bootrom was configured").contains("destroyed before it began"));
        assert!(exit(4, false, "?").contains("an error, or its VM was destroyed): ?"));
        assert!(exit(71, false, "").contains("exit status 71"));
        assert_eq!(exit(100, false, "odd"), "the hypervisor failed (exit status 100): odd");
    }

    #[test]
    fn whoever_killed_it_is_told() {
        let signalled = |signal, killed| show(judge(Ok(ExitStatus::from_raw(signal)), killed, ""));
        assert_eq!(signalled(libc::SIGKILL, true), "the VM was killed by the host");
        assert_eq!(signalled(libc::SIGKILL, false), "the hypervisor failed (signal 9)");
        assert!(signalled(libc::SIGABRT, true).contains("cannot emulate"));
        // Its VM was taken away from it.
        assert_eq!(exit(4, true, ""), "the VM was killed by the host");
    }
}

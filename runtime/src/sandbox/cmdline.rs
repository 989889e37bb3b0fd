//! Kernel parameters of a guest: what it is told before its agent can be asked.

use super::ROOT_TAG;
use crate::config::{Channel, Config, Timeouts};
use crate::guest::GuestOs;

/// Where the agent listens in a guest that has a vsock.
pub(super) const VSOCK_PORT: u32 = 1024;

/// Linux. `panic=-1`: a panic resets at once, which ends the VM and tells the host. `no_timer_check`: a VM's timer
/// works, but on a busy host the kernel may find it too late and panic. A `dummy0` that the kernel makes by itself would
/// be a link nobody asked for. `lastbus=0`: the machine has one PCI bus; the kernel would ask each of 256 buses for 32
/// devices by port, which is 16384 exits to the VMM (`pcibios_fixup_peer_bridges`, arch/x86/pci/legacy.c).
const LINUX: &str = "console=ttyS0 quiet loglevel=1 dummy.numdummies=0 no_timer_check pci=lastbus=0 panic=-1";

/// FreeBSD, whose kernel takes the words for its environment, loader(8)'s tunables and hints among them. Entered by PVH
/// it takes Xen's clock for its first delays, which is not there: nothing may wait before its own clocks run, so the
/// time stamp counter is not calibrated against others and the HPET is left alone. A panic resets at once.
const FREEBSD: &str = "init_path=/skep-agent vfs.root.mountfrom.options=ro kern.panic_reboot_wait_time=0 \
                       kern.racct.enable=1 machdep.disable_tsc_calibration=1 debug.acpi.disabled=hpet \
                       console=comconsole hint.uart.0.at=isa hint.uart.0.port=0x3F8 hint.uart.0.flags=0x10";

/// The parameters of a guest of that system.
pub(super) fn of(config: &Config, os: GuestOs) -> String {
    let own = match os {
        GuestOs::Linux => LINUX.to_owned(),
        GuestOs::FreeBsd => format!("vfs.root.mountfrom=p9fs:{ROOT_TAG} {FREEBSD}"),
    };
    let channel = match config.agent.channel {
        Channel::Console => "console".to_owned(),
        Channel::Vsock => format!("vsock:{VSOCK_PORT}"),
    };
    let call = config.timeouts.call_s;
    // What the agent takes for granted need not be said.
    let call = if call == Timeouts::default().call_s {
        String::new()
    } else {
        format!(" skep.call_s={}", call.duration().as_secs())
    };
    format!("{own} skep.channel={channel} skep.log={}{call}", config.agent.log.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_what_the_agent_needs() {
        let config = Config::parse("[agent]\nchannel = 'vsock'\nlog = 'debug'", "test").unwrap();
        assert!(of(&config, GuestOs::Linux).ends_with("panic=-1 skep.channel=vsock:1024 skep.log=debug"));
        let patient = Config::parse("[timeouts]\ncall_s = 120", "test").unwrap();
        assert!(of(&patient, GuestOs::Linux).ends_with(" skep.log=warn skep.call_s=120"));
        let plain = of(&Config::default(), GuestOs::FreeBsd);
        assert!(plain.starts_with("vfs.root.mountfrom=p9fs:guest init_path=/skep-agent "), "{plain}");
        assert!(plain.ends_with(" skep.channel=console skep.log=warn") && !plain.contains("  "), "{plain}");
    }
}

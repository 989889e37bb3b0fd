//! QEMU: a process for each VM, controlled by QMP.
//!
//! The device set is what bhyve has, in the shape in which bhyve has it (legacy virtio PCI), so that a guest which
//! runs here means something there.

mod accel;
mod command;
mod output;
mod qmp;
mod vm;
mod vsock;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Capabilities, Hypervisor, HypervisorError, Place, Vm, VmSpec};
use crate::config::{AccelChoice, Config};
use crate::guest::GuestOs;

pub use accel::{Accel, AccelDecision, decide};
pub use qmp::QmpError;

/// The driver.
#[derive(Debug)]
pub struct Qemu {
    binary: PathBuf,
    accel: AccelChoice,
    vhost_device_vsock: PathBuf,
}

impl Qemu {
    /// The driver as configured.
    pub fn new(config: &Config) -> Self {
        let crate::config::Qemu { binary, accel, vhost_device_vsock } = config.qemu.clone();
        Self { binary, accel, vhost_device_vsock }
    }
}

/// How to get the program.
const INSTALL: &str = if cfg!(target_os = "freebsd") {
    "install it with `pkg install qemu`"
} else {
    "install it with `apt-get install qemu-system-x86`"
};

/// Linux measures the local APIC's timer by waiting twice for 25 ticks of another (arch/x86/kernel/apic/apic.c), which is a fifth
/// of a second of every boot, and under emulation often finds it wrong and does without it after all. A single processor
/// has no need of it: the HPET's is its own.
const ONE_TIMER: &str = " nolapic_timer";

/// Tells the agent that its port is paced: QEMU reads from the host's socket no more than the guest has posted buffers
/// for, and from the guest no more than the socket takes (`hw/char/virtio-console.c`). A FreeBSD guest would lose it after
/// that, in its terminal.
const PACED: &str = " skep.channel=paced-console";

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { pause: true, vsock: true }
    }

    async fn boot(&self, mut spec: VmSpec, place: Place) -> Result<Arc<dyn Vm>, HypervisorError> {
        spec.check()?;
        let binary = super::find_program(&self.binary).ok_or_else(|| HypervisorError::NoProgram {
            program: self.binary.display().to_string(),
            hint: INSTALL,
            key: "qemu.binary",
        })?;
        let accel = accel::decide(self.accel).map_err(|reason| HypervisorError::NoKvm { reason })?;
        tracing::info!(vm = spec.name, "{accel}");
        if accel.accel == Accel::Tcg && spec.os == GuestOs::Linux {
            spec.cmdline.push_str(super::tsc::parameter().await);
            if spec.vcpus.get() == 1 {
                spec.cmdline.push_str(ONE_TIMER);
            }
        }
        if !spec.console_ports.is_empty() && spec.os == GuestOs::Linux {
            spec.cmdline.push_str(PACED);
        }
        let vm = vm::start(&binary, &accel, &self.vhost_device_vsock, &spec, &place).await?;
        Ok(Arc::new(vm))
    }
}

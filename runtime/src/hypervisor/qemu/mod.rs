//! QEMU: a process for each VM, controlled by QMP.
//!
//! The device set is what bhyve has, in the shape in which bhyve has it (legacy virtio PCI), so that a guest which
//! runs here means something there.

mod accel;
mod command;
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
        }
        let vm = vm::start(&binary, &accel, &self.vhost_device_vsock, &spec, &place).await?;
        Ok(Arc::new(vm))
    }
}

//! bhyve, FreeBSD's hypervisor: a VM of the kernel's, and a bhyve(8) process that runs it.
//!
//! libvmmapi makes the VM, our own [loader] fills it, bhyve(8) runs it, and whatever its end is, the VM is
//! destroyed: the kernel keeps one that nobody runs. The command line has what QEMU's has, device by device.

pub mod boot_files;
mod command;
mod exit;
pub mod loader;
mod pipes;
mod vm;
pub mod vmmapi;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::{Capabilities, Hypervisor, HypervisorError, Place, SpecError, Vm, VmSpec};
use crate::guest::GuestOs;
use loader::LoaderError;
use vmmapi::{VmName, VmmApi, VmmApiError};

/// A VM cannot be made or run under bhyve.
#[derive(Debug, thiserror::Error)]
pub enum BhyveError {
    /// libvmmapi or the vmm refused.
    #[error(transparent)]
    Api(#[from] VmmApiError),
    /// The kernel or the initramfs cannot be loaded.
    #[error("cannot load the guest {}: {source}", kernel.display())]
    Loader {
        /// The kernel's file.
        kernel: PathBuf,
        /// Why not.
        source: LoaderError,
    },
    /// bhyve ended before it could be spoken to.
    #[error("bhyve ended while it was starting: {0}")]
    Ended(super::VmExit),
    /// bhyve runs, but does not make its socket.
    #[error("bhyve has not made {} within {} s", path.display(), waited.as_secs())]
    NoSocket {
        /// The socket.
        path: PathBuf,
        /// How long it was given.
        waited: std::time::Duration,
    },
    /// The task that talks to libvmmapi did not finish.
    #[error("{what} of VM {name} has not finished within {} s", waited.as_secs())]
    Stuck {
        /// What.
        what: &'static str,
        /// The VM's name.
        name: String,
        /// How long it was given.
        waited: std::time::Duration,
    },
}

/// The driver.
#[derive(Debug)]
pub struct Bhyve {
    binary: PathBuf,
}

impl Default for Bhyve {
    fn default() -> Self {
        Self { binary: "/usr/sbin/bhyve".into() }
    }
}

#[async_trait]
impl Hypervisor for Bhyve {
    fn name(&self) -> &'static str {
        "bhyve"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { pause: true, vsock: false }
    }

    async fn boot(&self, mut spec: VmSpec, place: Place) -> Result<Arc<dyn Vm>, HypervisorError> {
        spec.check()?;
        if spec.vsock.is_some() {
            return Err(SpecError::Unsupported { hypervisor: "bhyve", what: "vsock" }.into());
        }
        let binary = super::find_program(&self.binary).ok_or_else(|| HypervisorError::NoProgram {
            program: self.binary.display().to_string(),
            hint: "it is part of FreeBSD on amd64",
            key: "hypervisor",
        })?;
        if spec.os == GuestOs::Linux {
            spec.cmdline.push_str(super::tsc::parameter().await);
        }
        Ok(Arc::new(vm::start(&binary, spec, &place).await?))
    }
}

/// Destroys the VM of that name, whoever left it, and says whether there was one. Blocks. For undoing a journal: its
/// bhyve has to be gone already.
pub fn destroy(name: &str) -> Result<bool, BhyveError> {
    let name = VmName::new(name)?;
    // Without the library there is no VM either.
    if !name.exists() {
        remove_checkpoint_socket(&name);
        return Ok(false);
    }
    destroy_with(&VmmApi::load()?, &name)
}

/// Bytes of host memory that the guest of that VM has touched: bhyve(8)'s own resident size has only what bhyve itself
/// has looked at.
pub(crate) fn resident_bytes(name: &str) -> Result<u64, BhyveError> {
    let mut vm = VmmApi::load()?.open(&VmName::new(name)?)?;
    // `VMM_MEM_RESIDENT` (sys/amd64/vmm/vmm.c), which is the VM's, among the first vCPU's.
    let all = vm.statistics()?;
    Ok(all.iter().find(|(name, _)| name == "Resident memory").map_or(0, |(_, bytes)| *bytes))
}

fn destroy_with(api: &VmmApi, name: &VmName) -> Result<bool, BhyveError> {
    let existed = api.destroy(name)?;
    remove_checkpoint_socket(name);
    Ok(existed)
}

/// A bhyve that can make checkpoints leaves its socket behind (`usr.sbin/bhyve/snapshot.c`, `BHYVE_RUN_DIR`).
fn remove_checkpoint_socket(name: &VmName) {
    let path = Path::new("/var/run/bhyve").join(name.as_str());
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), "cannot remove the checkpoint socket: {e}");
        }
        _ => {}
    }
}

#[cfg(all(test, not(target_os = "freebsd")))]
mod tests {
    use super::*;
    use crate::hypervisor::spec::tests::example;
    use crate::journal::Journal;

    #[tokio::test]
    async fn elsewhere_it_says_what_is_missing_and_acquires_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::create(&dir.path().join("journal")).unwrap());
        let place = Place {
            dir: dir.path().to_owned(),
            netns: None,
            taps: Vec::new(),
            cgroup: None,
            journal: Arc::clone(&journal),
        };
        let driver = Bhyve { binary: "/bin/sh".into() };
        let error = driver.boot(example(), place.clone()).await.unwrap_err().to_string();
        assert!(error.contains("libvmmapi.so.7"), "{error}");
        assert!(journal.entries().is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

        let error = Bhyve { binary: "/nonexistent/bhyve".into() }.boot(example(), place).await.unwrap_err();
        assert!(error.to_string().contains("part of FreeBSD"), "{error}");
    }

    #[test]
    fn a_vm_that_is_not_there_is_no_error() {
        assert!(!destroy("skep-no-such-vm").unwrap());
        assert!(matches!(destroy("a/b"), Err(BhyveError::Api(VmmApiError::Name { .. }))));
    }
}

#[cfg(all(test, target_os = "freebsd"))]
mod tests {
    use super::*;
    use crate::hypervisor::spec::tests::example;
    use crate::journal::Journal;

    /// Ends what a failed test would leave.
    struct Theirs(VmName);

    impl Drop for Theirs {
        fn drop(&mut self) {
            let _ = destroy(self.0.as_str());
        }
    }

    /// A failed boot undoes what it did, and a VM that was there before is none of that.
    #[tokio::test]
    async fn somebody_elses_vm_of_the_same_name_survives() {
        // Root alone may make VMs, and only where there is a vmm.
        if !Path::new("/dev/vmmctl").exists() && !Path::new("/dev/vmm").exists() {
            eprintln!("not run: no vmm.ko");
            return;
        }
        let theirs = Theirs(VmName::new(&format!("skep-test-{}", std::process::id())).unwrap());
        let api = VmmApi::load().unwrap();
        drop(api.create(&theirs.0).unwrap());

        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        std::fs::write(&kernel, loader::tests::kernel()).unwrap();
        let journal = Arc::new(Journal::create(&dir.path().join("journal")).unwrap());
        let place = Place {
            dir: dir.path().to_owned(),
            netns: None,
            taps: Vec::new(),
            cgroup: None,
            journal: Arc::clone(&journal),
        };
        let spec = VmSpec {
            name: theirs.0.as_str().into(),
            kernel,
            initramfs: None,
            shares: Vec::new(),
            ..example()
        };
        let error = Bhyve::default().boot(spec, place).await.unwrap_err();
        assert!(
            matches!(&error, HypervisorError::Bhyve(BhyveError::Api(VmmApiError::Exists { .. }))),
            "{error}"
        );
        assert!(theirs.0.exists());
        // Nor does anybody who undoes the journal later.
        assert!(journal.entries().is_empty());

        assert!(destroy(theirs.0.as_str()).unwrap());
        assert!(!theirs.0.exists());
        assert!(!destroy(theirs.0.as_str()).unwrap());
    }
}

//! VMs of the host's kernel, by libvmmapi.
//!
//! The library is loaded at run time: Skep is one binary for every FreeBSD it supports, and where there is no bhyve
//! (Linux too) loading fails with an error that says so. Only making a VM, filling it and unmaking it happen here:
//! bhyve(8) runs it.

mod context;
mod raw;

pub use context::VmContext;

use std::ffi::CString;
use std::fmt;
use std::io;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use super::loader::BootFile;
use raw::Functions;

/// Where the kernel shows its VMs. The directory is there only while it has some.
const DEVICES: &str = "/dev/vmm";
/// Where the kernel makes VMs, from FreeBSD 15 on (`sys/dev/vmm/vmm_dev.c`).
const CONTROL: &str = "/dev/vmmctl";
/// `VM_MAX_NAMELEN` (`sys/dev/vmm/vmm_param.h`).
const MAX_NAME: usize = 229;

/// What libvmmapi or the vmm refused.
#[derive(Debug, thiserror::Error)]
pub enum VmmApiError {
    /// No libvmmapi of a supported version.
    #[error("no supported libvmmapi (FreeBSD 14 or 15 is needed): {tried}")]
    Library {
        /// What the loader said of each.
        tried: String,
    },
    /// A libvmmapi of another kind.
    #[error("{soname} has no {symbol}: this version of FreeBSD is not supported")]
    Symbol {
        /// The library.
        soname: &'static str,
        /// What it lacks.
        symbol: &'static str,
    },
    /// A VM name that the kernel would not take.
    #[error("VM name {name:?} is not 1 to {MAX_NAME} characters of A-Z, a-z, 0-9, \".\", \"_\" or \"-\"")]
    Name {
        /// The name.
        name: String,
    },
    /// The VM's name is taken.
    #[error("VM {name} exists already")]
    Exists {
        /// Its name.
        name: String,
    },
    /// There is no such VM.
    #[error("VM {name} does not exist")]
    Missing {
        /// Its name.
        name: String,
    },
    /// The vmm said no.
    #[error("VM {name}: cannot {action}: {source}{}", hint(source))]
    System {
        /// The VM's name.
        name: String,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// An address that is not the guest's memory.
    #[error("VM {name}: {length} bytes at {address:#x} are outside guest memory")]
    Address {
        /// The VM's name.
        name: String,
        /// First byte.
        address: u64,
        /// How many.
        length: u64,
    },
    /// What belongs into guest memory cannot be read.
    #[error("VM {name}: cannot load bytes {} to {} of its {file:?}: {source}", range.start, range.end)]
    Read {
        /// The VM's name.
        name: String,
        /// Of which file.
        file: BootFile,
        /// Which part.
        range: std::ops::Range<u64>,
        /// Why not.
        source: io::Error,
    },
    /// The VM is still there after it was destroyed.
    #[error("VM {name}: destroyed, but {DEVICES}/{name} is still there")]
    Survives {
        /// The VM's name.
        name: String,
    },
}

/// What an errno of the vmm mostly means.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => " (is vmm.ko loaded? \"kldload vmm\")",
        Some(libc::ENXIO) => {
            " (the processor has no usable VMX or SVM with nested paging, or the firmware disabled it)"
        }
        Some(libc::EACCES | libc::EPERM) => " (only root may use vmm)",
        _ => "",
    }
}

/// Name of a VM, as it appears below `/dev/vmm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmName(String);

impl VmName {
    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, VmmApiError> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty()
            || name.len() > MAX_NAME
            || !name.bytes().all(valid)
            || name.starts_with(['.', '-'])
        {
            return Err(VmmApiError::Name { name: name.to_owned() });
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the kernel has a VM of this name.
    pub fn exists(&self) -> bool {
        Path::new(DEVICES).join(&self.0).exists()
    }

    fn to_c(&self) -> Result<CString, VmmApiError> {
        CString::new(self.0.as_str()).map_err(|_| VmmApiError::Name { name: self.0.clone() })
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The host's libvmmapi.
#[derive(Clone)]
pub struct VmmApi(Arc<Shared>);

struct Shared {
    functions: Functions,
    /// `vm_get_stats` answers from a static buffer.
    statistics: Mutex<()>,
}

impl fmt::Debug for VmmApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VmmApi").field(&self.soname()).finish()
    }
}

impl VmmApi {
    /// Loads the library.
    pub fn load() -> Result<Self, VmmApiError> {
        Ok(Self(Arc::new(Shared { functions: Functions::load()?, statistics: Mutex::new(()) })))
    }

    /// Which library it is.
    pub fn soname(&self) -> &'static str {
        self.0.functions.soname
    }

    /// Whether it is FreeBSD 15's or a later one.
    pub fn is_15_or_later(&self) -> bool {
        self.0.functions.has_openf
    }

    /// Makes a new VM. One of the same name is an error: its memory would not be zero, and it is somebody else's.
    pub fn create(&self, name: &VmName) -> Result<VmContext, VmmApiError> {
        let c_name = name.to_c()?;
        // SAFETY: a NUL-terminated string that lives through the call.
        if unsafe { (self.0.functions.vm_create)(c_name.as_ptr()) } != 0 {
            let source = io::Error::last_os_error();
            if source.kind() == io::ErrorKind::AlreadyExists {
                return Err(VmmApiError::Exists { name: name.0.clone() });
            }
            return Err(system(name, "create it", source));
        }
        self.open(name)
    }

    /// Opens a VM that exists.
    pub fn open(&self, name: &VmName) -> Result<VmContext, VmmApiError> {
        let c_name = name.to_c()?;
        // SAFETY: a NUL-terminated string that lives through the call.
        let ctx = unsafe { (self.0.functions.vm_open)(c_name.as_ptr()) };
        if let Some(ctx) = NonNull::new(ctx) {
            return Ok(VmContext::new(self.clone(), ctx, name.clone()));
        }
        let source = io::Error::last_os_error();
        // Without the control device it is the vmm that is missing, not the VM.
        let vmm = [DEVICES, CONTROL].iter().any(|path| Path::new(path).exists());
        if source.kind() == io::ErrorKind::NotFound && vmm {
            return Err(VmmApiError::Missing { name: name.0.clone() });
        }
        Err(system(name, "open it", source))
    }

    /// Destroys the VM if it exists, and says whether it did. Blocks until nobody runs it any more.
    pub fn destroy(&self, name: &VmName) -> Result<bool, VmmApiError> {
        // Without the vmm there is no VM either.
        if !name.exists() {
            return Ok(false);
        }
        match self.open(name) {
            Ok(vm) => vm.destroy().map(|()| true),
            Err(VmmApiError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn system(name: &VmName, action: &'static str, source: io::Error) -> VmmApiError {
    VmmApiError::System { name: name.0.clone(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for name in ["skep-0123456789abcdef", "a", "A.b_c-d", &"x".repeat(MAX_NAME)] {
            assert_eq!(VmName::new(name).unwrap().as_str(), name);
        }
        for name in ["", ".", "..", "-x", "a/b", "a b", "a\0", "ä", &"x".repeat(MAX_NAME + 1)] {
            assert!(matches!(VmName::new(name), Err(VmmApiError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let name = VmName::new("a").unwrap();
        let error = system(&name, "open it", io::Error::from_raw_os_error(libc::ENOENT));
        assert!(error.to_string().contains("kldload vmm"), "{error}");
        let error = system(&name, "open it", io::Error::from_raw_os_error(libc::EBADF));
        assert!(!error.to_string().contains("kldload"), "{error}");
    }

    #[cfg(not(target_os = "freebsd"))]
    #[test]
    fn elsewhere_the_library_is_missing() {
        let error = VmmApi::load().unwrap_err().to_string();
        assert!(error.contains("libvmmapi.so.7") && error.contains("libvmmapi.so.6"), "{error}");
    }
}

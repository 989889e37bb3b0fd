//! libvmmapi as it is: symbols found at run time, nothing checked.
//!
//! Prototypes and constants are those of FreeBSD's lib/libvmmapi/vmmapi.h and sys/amd64/include/vmm.h (15.1), which
//! 14 shares as far as they are used here; 13 passes vCPUs as numbers and is not supported. Every symbol is exported
//! unversioned, so what is missing shows when it is looked up, and which library it is shows by what it has.

use std::ffi::{c_char, c_int, c_void};

use libloading::Library;

use super::VmmApiError;

/// Sonames by age, newest first: FreeBSD 15, FreeBSD 14.
const SONAMES: [&str; 2] = ["libvmmapi.so.7", "libvmmapi.so.6"];

/// `struct vmctx`: opaque.
#[repr(C)]
pub(super) struct Ctx {
    _opaque: [u8; 0],
}

/// `struct vcpu`: opaque.
#[repr(C)]
pub(super) struct Vcpu {
    _opaque: [u8; 0],
}

/// `enum vm_mmap_style` (vmmapi.h): the only style that libvmmapi accepts.
pub(super) const VM_MMAP_ALL: c_int = 1;
/// `VM_MEM_F_WIRED` (vmmapi.h).
pub(super) const VM_MEM_F_WIRED: c_int = 2;
/// `enum vm_cap_type` (sys/amd64/include/vmm.h).
pub(super) const VM_CAP_UNRESTRICTED_GUEST: c_int = 3;

/// `enum vm_reg_name` (sys/amd64/include/vmm.h): positions in the enumeration.
pub(super) mod register {
    use std::ffi::c_int;

    pub(in super::super) const RBX: c_int = 1;
    pub(in super::super) const RSI: c_int = 4;
    pub(in super::super) const CR0: c_int = 15;
    pub(in super::super) const CR3: c_int = 16;
    pub(in super::super) const CR4: c_int = 17;
    pub(in super::super) const RSP: c_int = 19;
    pub(in super::super) const RIP: c_int = 20;
    pub(in super::super) const RFLAGS: c_int = 21;
    pub(in super::super) const ES: c_int = 22;
    pub(in super::super) const CS: c_int = 23;
    pub(in super::super) const SS: c_int = 24;
    pub(in super::super) const DS: c_int = 25;
    pub(in super::super) const FS: c_int = 26;
    pub(in super::super) const GS: c_int = 27;
    pub(in super::super) const LDTR: c_int = 28;
    pub(in super::super) const TR: c_int = 29;
    pub(in super::super) const IDTR: c_int = 30;
    pub(in super::super) const GDTR: c_int = 31;
    pub(in super::super) const EFER: c_int = 32;
}

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of libvmmapi that are used, and the library that has to stay for them.
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument: $type),*) $(-> $result)?,)*
            /// Whether this is FreeBSD 15's library or a later one.
            pub(super) has_openf: bool,
            /// Which library was found.
            pub(super) soname: &'static str,
            _library: Library,
        }

        impl Functions {
            fn find(library: Library, soname: &'static str) -> Result<Self, VmmApiError> {
                $(
                    // SAFETY: the type is the prototype of that name in vmmapi.h, and the library that holds the
                    // code is kept in the same struct, dropped with it.
                    let $name = unsafe {
                        *library
                            .get::<unsafe extern "C" fn($($argument: $type),*) $(-> $result)?>(
                                concat!(stringify!($name), "\0").as_bytes(),
                            )
                            .map_err(|_| VmmApiError::Symbol { soname, symbol: stringify!($name) })?
                    };
                )*
                // SAFETY: only whether the symbol is there is asked; it is never used by this type.
                let has_openf = unsafe { library.get::<*const c_void>(b"vm_openf\0").is_ok() };
                Ok(Self { $($name,)* has_openf, soname, _library: library })
            }
        }
    };
}

functions! {
    fn vm_create(name: *const c_char) -> c_int;
    fn vm_open(name: *const c_char) -> *mut Ctx;
    fn vm_close(ctx: *mut Ctx);
    fn vm_destroy(ctx: *mut Ctx);
    fn vm_vcpu_open(ctx: *mut Ctx, id: c_int) -> *mut Vcpu;
    fn vm_vcpu_close(vcpu: *mut Vcpu);
    fn vm_set_memflags(ctx: *mut Ctx, flags: c_int);
    fn vm_setup_memory(ctx: *mut Ctx, length: usize, style: c_int) -> c_int;
    fn vm_map_gpa(ctx: *mut Ctx, address: u64, length: usize) -> *mut c_void;
    fn vm_get_lowmem_size(ctx: *mut Ctx) -> usize;
    fn vm_get_highmem_size(ctx: *mut Ctx) -> usize;
    fn vm_set_register(vcpu: *mut Vcpu, register: c_int, value: u64) -> c_int;
    fn vm_set_desc(vcpu: *mut Vcpu, register: c_int, base: u64, limit: u32, access: u32) -> c_int;
    fn vm_set_capability(vcpu: *mut Vcpu, capability: c_int, value: c_int) -> c_int;
    fn vm_get_capability(vcpu: *mut Vcpu, capability: c_int, value: *mut c_int) -> c_int;
    fn vm_get_stats(vcpu: *mut Vcpu, time: *mut libc::timeval, entries: *mut c_int) -> *const u64;
    fn vm_get_stat_desc(ctx: *mut Ctx, index: c_int) -> *const c_char;
}

impl Functions {
    /// Loads the newest libvmmapi there is.
    pub(super) fn load() -> Result<Self, VmmApiError> {
        Self::load_from(&SONAMES)
    }

    fn load_from(sonames: &[&'static str]) -> Result<Self, VmmApiError> {
        let mut tried = Vec::new();
        for soname in sonames {
            // SAFETY: a system library of the base system, whose initialisers do nothing but what they have to.
            match unsafe { Library::new(soname) } {
                Ok(library) => return Self::find(library, soname),
                Err(error) => tried.push(error.to_string()),
            }
        }
        Err(VmmApiError::Library { tried: tried.join("; ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named() {
        let error = Functions::load_from(&["libvmmapi.so.4711"]).err().unwrap();
        assert!(error.to_string().contains("libvmmapi.so.4711"), "{error}");
    }

    #[test]
    fn a_library_without_the_symbols_is_named() {
        let libc = if cfg!(target_os = "freebsd") { "libc.so.7" } else { "libc.so.6" };
        let error = Functions::load_from(&[libc]).err().unwrap();
        assert!(
            matches!(error, VmmApiError::Symbol { soname, symbol: "vm_create" } if soname == libc),
            "{error}"
        );
    }
}

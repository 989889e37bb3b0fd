//! One VM: its memory, its boot processor, its end.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::PoisonError;

use super::super::loader::{BootFile, BootPlan, Content, HIGHMEM_BASE, Registers, Segment};
use super::raw::{self, register};
use super::{VmName, VmmApi, VmmApiError, system};

/// More counters than any vmm has: a bound for what a library tells.
const MAX_STATISTICS: usize = 4096;

/// An open VM. Dropping it closes it and leaves the VM alive; [`VmContext::destroy`] ends it.
pub struct VmContext {
    api: VmmApi,
    ctx: NonNull<raw::Ctx>,
    name: VmName,
    /// Guest memory is mapped into this process.
    mapped: bool,
    /// `ctx` is gone.
    closed: bool,
}

// SAFETY: a `vmctx` is descriptors and sizes, bound to no thread; `&mut self` or ownership guards every change.
unsafe impl Send for VmContext {}

impl fmt::Debug for VmContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VmContext").field(&self.name.0).finish()
    }
}

impl VmContext {
    pub(super) fn new(api: VmmApi, ctx: NonNull<raw::Ctx>, name: VmName) -> Self {
        Self { api, ctx, name, mapped: false, closed: false }
    }

    /// Gives the VM its memory and carries out `plan`. `wired` has to be what bhyve's `-S` will say; `read` fills a
    /// buffer with what is at an offset of a file.
    pub fn load(
        &mut self,
        plan: &BootPlan<'_>,
        wired: bool,
        mut read: impl FnMut(BootFile, u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<(), VmmApiError> {
        self.set_up_memory(plan.memory.total(), wired)?;
        for write in &plan.writes {
            let memory = self.memory(write.address, write.length())?;
            match &write.content {
                Content::Bytes(bytes) => memory.copy_from_slice(bytes),
                Content::File { file, range } => {
                    let read = read(*file, range.start, memory);
                    read.map_err(|source| VmmApiError::Read {
                        name: self.name.0.clone(),
                        file: *file,
                        range: range.clone(),
                        source,
                    })?;
                }
            }
        }
        self.set_registers(&plan.registers)?;
        self.unmap();
        Ok(())
    }

    fn set_up_memory(&mut self, bytes: u64, wired: bool) -> Result<(), VmmApiError> {
        let functions = &self.api.0.functions;
        let length = usize::try_from(bytes).map_err(|_| VmmApiError::Address {
            name: self.name.0.clone(),
            address: 0,
            length: bytes,
        })?;
        // SAFETY: `ctx` is open, and no pointer into a mapping of it exists yet.
        let result = unsafe {
            (functions.vm_set_memflags)(self.ctx.as_ptr(), if wired { raw::VM_MEM_F_WIRED } else { 0 });
            (functions.vm_setup_memory)(self.ctx.as_ptr(), length, raw::VM_MMAP_ALL)
        };
        if result != 0 {
            return Err(system(&self.name, "set up its memory", io::Error::last_os_error()));
        }
        self.mapped = true;
        Ok(())
    }

    /// A range of guest memory.
    fn memory(&mut self, address: u64, length: u64) -> Result<&mut [u8], VmmApiError> {
        let outside = || VmmApiError::Address { name: self.name.0.clone(), address, length };
        let bytes = usize::try_from(length).ok().filter(|_| self.mapped).ok_or_else(outside)?;
        // SAFETY: `ctx` is open with its memory set up; the call only computes an address.
        let start = unsafe { (self.api.0.functions.vm_map_gpa)(self.ctx.as_ptr(), address, bytes) };
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(outside)?;
        // SAFETY: vm_map_gpa returned a pointer, so all of the range is guest memory, which is mapped writable here and
        // begins as zeros. It stays mapped as long as `self` is borrowed, nothing runs the guest yet, and whoever has a
        // part of it has borrowed `self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), bytes) })
    }

    fn set_registers(&mut self, registers: &Registers) -> Result<(), VmmApiError> {
        let vcpu = BootProcessor::open(self)?;
        if registers.unrestricted {
            vcpu.allow_unrestricted()?;
        }
        for (number, value) in [
            (register::CR0, registers.cr0),
            (register::CR3, registers.cr3),
            (register::CR4, registers.cr4),
            (register::EFER, registers.efer),
            (register::RFLAGS, registers.rflags),
            (register::RIP, registers.rip),
            (register::RSP, registers.rsp),
            (register::RBX, registers.rbx),
            (register::RSI, registers.rsi),
        ] {
            vcpu.set(number, value)?;
        }
        for (number, (base, limit)) in [(register::GDTR, registers.gdt), (register::IDTR, registers.idt)] {
            vcpu.describe(number, base, limit, 0)?;
        }
        for (segment, descriptor) in &registers.segments {
            let number = match segment {
                Segment::Cs => register::CS,
                Segment::Ds => register::DS,
                Segment::Es => register::ES,
                Segment::Fs => register::FS,
                Segment::Gs => register::GS,
                Segment::Ss => register::SS,
                Segment::Tr => register::TR,
                Segment::Ldtr => register::LDTR,
            };
            vcpu.describe(number, descriptor.base, descriptor.limit, descriptor.access)?;
            vcpu.set(number, descriptor.selector.into())?;
        }
        Ok(())
    }

    /// The boot processor's counters: VM exits by reason and the like.
    pub fn statistics(&mut self) -> Result<Vec<(String, u64)>, VmmApiError> {
        let api = self.api.clone();
        let _guard = api.0.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        let functions = &api.0.functions;
        let vcpu = BootProcessor::open(self)?;
        let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let mut entries = 0;
        // SAFETY: both out-parameters live through the call, the vCPU is open.
        let values = unsafe { (functions.vm_get_stats)(vcpu.vcpu.as_ptr(), &raw mut time, &raw mut entries) };
        let Some(values) = NonNull::new(values.cast_mut()) else {
            return Err(system(&vcpu.vm.name, "read its statistics", io::Error::last_os_error()));
        };
        let count = usize::try_from(entries).unwrap_or(0).min(MAX_STATISTICS);
        // SAFETY: the buffer has `entries` numbers and stays as it is while the lock is held.
        let values = unsafe { std::slice::from_raw_parts(values.as_ptr(), count) };
        let mut statistics = Vec::with_capacity(count);
        for (index, value) in (0..).zip(values) {
            // SAFETY: `ctx` is open; the answer is a string or null.
            let name = unsafe { (functions.vm_get_stat_desc)(vcpu.vm.ctx.as_ptr(), index) };
            if !name.is_null() {
                // SAFETY: a NUL-terminated string in the library's static buffer, valid until the next call.
                let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
                statistics.push((name, *value));
            }
        }
        Ok(statistics)
    }

    /// Destroys the VM, whoever else has it open. Blocks until its processes have let go.
    pub fn destroy(mut self) -> Result<(), VmmApiError> {
        self.unmap();
        let name = self.name.clone();
        self.closed = true;
        // SAFETY: `ctx` is open; the call closes it whatever happens, and as `closed` is set nobody does so again.
        unsafe { (self.api.0.functions.vm_destroy)(self.ctx.as_ptr()) };
        // vm_destroy says nothing of a failure.
        if name.exists() { Err(VmmApiError::Survives { name: name.0 }) } else { Ok(()) }
    }

    /// Takes guest memory out of this process: `vm_close` leaves it mapped, and with it the pages would stay after the
    /// VM. The guard pages around it are libvmmapi's secret and stay; they cost address space only.
    fn unmap(&mut self) {
        if !std::mem::take(&mut self.mapped) {
            return;
        }
        let functions = &self.api.0.functions;
        // SAFETY: `ctx` is open; the calls only read sizes.
        let sizes = unsafe {
            [
                (0, (functions.vm_get_lowmem_size)(self.ctx.as_ptr())),
                (HIGHMEM_BASE, (functions.vm_get_highmem_size)(self.ctx.as_ptr())),
            ]
        };
        for (address, length) in sizes {
            if length == 0 {
                continue;
            }
            // SAFETY: `ctx` is open; the call only computes an address.
            let start = unsafe { (functions.vm_map_gpa)(self.ctx.as_ptr(), address, length) };
            if !start.is_null() {
                // SAFETY: exactly what vm_setup_memory mapped; `mapped` is false now, so no pointer is made any more.
                unsafe { libc::munmap(start, length) };
            }
        }
    }
}

impl Drop for VmContext {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        self.unmap();
        // SAFETY: `ctx` is open and never used again.
        unsafe { (self.api.0.functions.vm_close)(self.ctx.as_ptr()) };
    }
}

/// The vCPU that boots.
struct BootProcessor<'a> {
    vm: &'a VmContext,
    vcpu: NonNull<raw::Vcpu>,
}

impl<'a> BootProcessor<'a> {
    fn open(vm: &'a VmContext) -> Result<Self, VmmApiError> {
        // SAFETY: `ctx` is open and outlives the vCPU by the lifetime.
        let vcpu = unsafe { (vm.api.0.functions.vm_vcpu_open)(vm.ctx.as_ptr(), 0) };
        match NonNull::new(vcpu) {
            Some(vcpu) => Ok(Self { vm, vcpu }),
            None => Err(system(&vm.name, "open its first vCPU", io::Error::last_os_error())),
        }
    }

    fn check(&self, result: std::ffi::c_int, action: &'static str) -> Result<(), VmmApiError> {
        if result == 0 { Ok(()) } else { Err(system(&self.vm.name, action, io::Error::last_os_error())) }
    }

    fn allow_unrestricted(&self) -> Result<(), VmmApiError> {
        let functions = &self.vm.api.0.functions;
        let mut value = 0;
        // SAFETY: the vCPU is open, and the out-parameter lives through the call.
        let result = unsafe {
            (functions.vm_get_capability)(self.vcpu.as_ptr(), raw::VM_CAP_UNRESTRICTED_GUEST, &raw mut value)
        };
        self.check(result, "run a 32-bit entry (the processor lacks \"unrestricted guest\")")?;
        // SAFETY: the vCPU is open.
        let result =
            unsafe { (functions.vm_set_capability)(self.vcpu.as_ptr(), raw::VM_CAP_UNRESTRICTED_GUEST, 1) };
        self.check(result, "allow a 32-bit entry")
    }

    fn set(&self, number: i32, value: u64) -> Result<(), VmmApiError> {
        // SAFETY: the vCPU is open.
        let result = unsafe { (self.vm.api.0.functions.vm_set_register)(self.vcpu.as_ptr(), number, value) };
        self.check(result, "set a register")
    }

    fn describe(&self, number: i32, base: u64, limit: u32, access: u32) -> Result<(), VmmApiError> {
        // SAFETY: the vCPU is open.
        let result =
            unsafe { (self.vm.api.0.functions.vm_set_desc)(self.vcpu.as_ptr(), number, base, limit, access) };
        self.check(result, "set a segment")
    }
}

impl Drop for BootProcessor<'_> {
    fn drop(&mut self) {
        // SAFETY: the vCPU is open and never used again.
        unsafe { (self.vm.api.0.functions.vm_vcpu_close)(self.vcpu.as_ptr()) };
    }
}

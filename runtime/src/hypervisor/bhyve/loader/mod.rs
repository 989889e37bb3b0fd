//! Turns a kernel file into guest memory writes and boot registers.
//!
//! bhyve(8) without a boot ROM starts whatever an earlier process left in the VM, so that process
//! is the boot loader. Everything here is pure: headers in, a [`BootPlan`] out. What the files hold
//! beside a kernel's headers is not looked at: the plan says which parts of them go where, so that
//! they are read once, into guest memory. The kernel is taken for hostile: a bad one gives an
//! error, never a panic, and nothing is allocated beyond the file's own size.
//!
//! Two entries exist: PVH (`pvh`) for ELF kernels that carry the Xen entry note (Linux with
//! `CONFIG_PVH`, FreeBSD), and the 64-bit Linux boot protocol (`bzimage`) for a bzImage. The guest
//! memory is expected to be zero before the plan is carried out, as a fresh VM's is: `.bss` is not
//! written.

mod bzimage;
mod elf;
mod layout;
mod plan;
mod pvh;
mod registers;

pub use layout::{GuestMemory, HIGHMEM_BASE, LOWMEM_LIMIT, MemoryRange};
pub use plan::{BootFile, BootPlan, Content, GuestWrite};
pub use registers::{Descriptor, Registers, Segment};

use layout::LayoutError;
use object::read::ReadRef;

/// Longest kernel command line that is passed on, in bytes without the final NUL: what Linux
/// accepts on x86 (`COMMAND_LINE_SIZE`, arch/x86/include/asm/setup.h).
pub const MAX_COMMAND_LINE: usize = 2047;

/// What a guest is booted from.
#[derive(Debug, Clone, Copy)]
pub struct BootImage<'a, K> {
    /// The kernel file, an ELF executable with a PVH entry or a Linux bzImage: its bytes, or a cache of what was read
    /// of it.
    pub kernel: K,
    /// Length in bytes of the initramfs, which is handed to the kernel as it is; 0 for none. FreeBSD guests take none.
    pub initramfs: u64,
    /// Kernel command line, without the final NUL.
    pub command_line: &'a str,
    /// Guest memory in bytes: what bhyve's `-m` says.
    pub memory: u64,
}

/// Why a guest can't be booted from what was given.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// Neither an ELF file nor a bzImage.
    #[error("kernel is neither an ELF file nor a bzImage")]
    UnknownFormat,
    /// The ELF file is damaged or not one that can be loaded.
    #[error("kernel ELF file: {0}")]
    Elf(#[from] elf::ElfError),
    /// The bzImage is damaged or too old.
    #[error("kernel bzImage: {0}")]
    BzImage(#[from] bzimage::BzImageError),
    /// What is to be loaded does not fit the guest's memory.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The command line is longer than the kernel takes.
    #[error("command line of {length} bytes exceeds the limit of {limit}")]
    CommandLineTooLong {
        /// Bytes given.
        length: usize,
        /// Bytes the kernel takes.
        limit: usize,
    },
    /// A NUL would cut the command line short without a word.
    #[error("command line contains a NUL byte")]
    CommandLineNul,
}

/// Plans the boot of `image`: what to write where, and the boot processor's registers.
pub fn plan<'a, K: ReadRef<'a>>(image: &BootImage<'a, K>) -> Result<BootPlan<'a>, LoaderError> {
    let memory = GuestMemory::new(image.memory)?;
    if image.command_line.len() > MAX_COMMAND_LINE {
        return Err(LoaderError::CommandLineTooLong {
            length: image.command_line.len(),
            limit: MAX_COMMAND_LINE,
        });
    }
    if image.command_line.contains('\0') {
        return Err(LoaderError::CommandLineNul);
    }
    if image.kernel.read_bytes_at(0, elf::MAGIC.len() as u64) == Ok(&elf::MAGIC) {
        let kernel = elf::Kernel::parse(image.kernel)?;
        Ok(pvh::plan(&kernel, image, memory)?)
    } else if bzimage::Header::is_one(image.kernel) {
        let header = bzimage::Header::parse(image.kernel)?;
        bzimage::plan(&header, image, memory)
    } else {
        Err(LoaderError::UnknownFormat)
    }
}

#[cfg(test)]
pub(super) mod tests;

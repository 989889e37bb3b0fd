//! Linux' 64-bit boot protocol for a bzImage (Documentation/arch/x86/boot.rst).

use super::layout::{HIGHMEM_BASE, LayoutError, Occupancy, PAGE, table};
use super::registers::GDT64;
use super::{BootFile, BootImage, BootPlan, GuestMemory, LoaderError, Registers};
use object::read::ReadRef;
use std::ops::Range;

/// Offsets in the setup header and in `boot_params` ("zero page"), which share it.
mod offset {
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const JUMP_LENGTH: usize = 0x201;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const RELOCATABLE: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
    pub(super) const HEADER_END: usize = 0x264;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

const SECTOR: usize = 512;
const MAGIC: &[u8; 4] = b"HdrS";
/// The first protocol version with a 64-bit entry (Linux 3.8).
const MIN_VERSION: u16 = 0x020c;
/// `XLF_KERNEL_64`: the 64-bit entry exists, at 0x200.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// `LOADED_HIGH`: the protected-mode part goes to 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_ENTRY: usize = 20;
const BOOT_PARAMS_SIZE: usize = 4096;

/// Why a bzImage can't be loaded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BzImageError {
    /// The file ends early.
    #[error("{length} bytes long, but {part} ends at {end}")]
    Truncated {
        /// Length of the file.
        length: u64,
        /// What is not there.
        part: &'static str,
        /// Where it would end.
        end: u64,
    },
    /// The boot protocol is too old.
    #[error("boot protocol {0:#06x} is older than {MIN_VERSION:#06x}")]
    Version(u16),
    /// A 32-bit kernel, or one without the 64-bit entry.
    #[error("no 64-bit entry")]
    Not64Bit,
    /// A kernel that has to be loaded below 1 MiB.
    #[error("a zImage, not a bzImage")]
    LoadedLow,
    /// The alignment is none.
    #[error("kernel alignment {0:#x} is not a power of two")]
    Alignment(u32),
}

/// What the setup header says, checked.
#[derive(Debug)]
pub(super) struct Header<'a> {
    /// The setup header itself, as it is copied into `boot_params`.
    setup: &'a [u8],
    /// The protected-mode part of the file: what is loaded.
    body: Range<u64>,
    /// Where the body wants to be.
    address: u64,
    /// Memory the kernel uses from there on before it looks at the memory map.
    init_size: u64,
    /// Last address an initramfs may have.
    initrd_addr_max: u64,
    /// Bytes of command line without the NUL.
    cmdline_size: usize,
}

impl<'a> Header<'a> {
    /// Whether `file` looks like a Linux kernel with a setup header.
    pub(super) fn is_one(file: impl ReadRef<'a>) -> bool {
        file.read_bytes_at(offset::MAGIC as u64, MAGIC.len() as u64) == Ok(MAGIC)
    }

    pub(super) fn parse(file: impl ReadRef<'a>) -> Result<Self, BzImageError> {
        let file_length = file.len().unwrap_or_default();
        let truncated = |part, end| BzImageError::Truncated { length: file_length, part, end: end as u64 };
        // One slice of known length: every offset below lies in it.
        let fixed: &[u8; offset::HEADER_END] = file
            .read_bytes_at(0, offset::HEADER_END as u64)
            .ok()
            .and_then(|bytes| bytes.first_chunk())
            .ok_or(truncated("the setup header", offset::HEADER_END))?;
        let u16_at = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let version = u16_at(offset::VERSION);
        if version < MIN_VERSION {
            return Err(BzImageError::Version(version));
        }
        if u16_at(offset::XLOADFLAGS) & XLF_KERNEL_64 == 0 {
            return Err(BzImageError::Not64Bit);
        }
        if fixed[offset::LOADFLAGS] & LOADED_HIGH == 0 {
            return Err(BzImageError::LoadedLow);
        }
        // The header ends where the jump at its start leads to; `boot_params` has room up to the
        // e820 table's start.
        let end = (offset::MAGIC + usize::from(fixed[offset::JUMP_LENGTH]))
            .clamp(offset::HEADER_END, offset::E820_TABLE);
        let setup = file
            .read_bytes_at(offset::SETUP_SECTS as u64, (end - offset::SETUP_SECTS) as u64)
            .map_err(|()| truncated("the setup header", end))?;
        let sectors = match fixed[offset::SETUP_SECTS] {
            0 => 4,
            n => usize::from(n),
        };
        let body_at = (sectors + 1) * SECTOR;
        let body = body_at as u64..file_length;
        if body.end.saturating_sub(body.start) <= ENTRY_64 {
            return Err(truncated("the setup code", body_at));
        }
        let preferred =
            u64::from(u32_at(offset::PREF_ADDRESS)) | u64::from(u32_at(offset::PREF_ADDRESS + 4)) << 32;
        let alignment = u32_at(offset::KERNEL_ALIGNMENT);
        if fixed[offset::RELOCATABLE] != 0 && !alignment.is_power_of_two() {
            return Err(BzImageError::Alignment(alignment));
        }
        Ok(Self {
            setup,
            body,
            address: preferred,
            init_size: u64::from(u32_at(offset::INIT_SIZE)),
            initrd_addr_max: u64::from(u32_at(offset::INITRD_ADDR_MAX)),
            cmdline_size: u32_at(offset::CMDLINE_SIZE) as usize,
        })
    }
}

pub(super) fn plan<'a, K>(
    header: &Header<'_>,
    image: &BootImage<'a, K>,
    memory: GuestMemory,
) -> Result<BootPlan<'a>, LoaderError> {
    if image.command_line.len() > header.cmdline_size {
        return Err(LoaderError::CommandLineTooLong {
            length: image.command_line.len(),
            limit: header.cmdline_size,
        });
    }
    // Entered at its preferred address, the kernel needs no relocation and `init_size` from there.
    let entry = header.address.checked_add(ENTRY_64).ok_or(LayoutError::Outside {
        what: "kernel",
        start: header.address,
        end: u64::MAX,
        low: 0,
        high: memory.low(),
    })?;
    let mut plan = BootPlan::new(memory, Registers::long_mode(entry, table::START_INFO));
    let mut occupancy = Occupancy::new(memory);
    let length = header.init_size.max(header.body.end - header.body.start);
    occupancy.take("kernel", header.address, length)?;
    plan.write_file(header.address, BootFile::Kernel, header.body.clone());

    let mut params = vec![0; BOOT_PARAMS_SIZE];
    params[offset::SETUP_SECTS..offset::SETUP_SECTS + header.setup.len()].copy_from_slice(header.setup);
    params[offset::TYPE_OF_LOADER] = LOADER_UNDEFINED;
    let mut put = |at: usize, value: u64| {
        // Every address here is below 4 GiB: low memory ends at 3 GiB.
        params[at..at + 4].copy_from_slice(&value.to_le_bytes()[..4]);
    };
    put(offset::CMD_LINE_PTR, table::COMMAND_LINE);
    put(offset::RAMDISK_IMAGE, 0);
    put(offset::RAMDISK_SIZE, 0);
    let length = image.initramfs;
    if length > 0 {
        let address =
            occupancy.take_highest("initramfs", length, header.initrd_addr_max.saturating_add(1))?;
        put(offset::RAMDISK_IMAGE, address);
        put(offset::RAMDISK_SIZE, length);
        plan.write_file(address, BootFile::Initramfs, 0..length);
    }
    let mut entries = 0;
    for (range, slot) in memory.ram().zip(params[offset::E820_TABLE..].chunks_exact_mut(E820_ENTRY)) {
        slot[..8].copy_from_slice(&range.start.to_le_bytes());
        slot[8..16].copy_from_slice(&(range.end - range.start).to_le_bytes());
        slot[16..].copy_from_slice(&E820_RAM.to_le_bytes());
        entries += 1;
    }
    params[offset::E820_ENTRIES] = entries;
    plan.write(table::START_INFO, params);
    plan.write_command_line(table::COMMAND_LINE, image.command_line);
    plan.write(table::GDT, GDT64.iter().flat_map(|entry| entry.to_le_bytes()).collect::<Vec<_>>());
    plan.write(table::PAGE_TABLES, identity_map());
    Ok(plan)
}

/// Page tables that map the first 4 GiB onto themselves with 2 MiB pages, which every guest CPU
/// has: root, one table of 1 GiB entries, four of 2 MiB entries.
fn identity_map() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    const LARGE_PAGE: u64 = 2 << 20;
    const GIB: u64 = 1 << 30;
    const TABLE_ENTRIES: usize = 512;
    let directories = table::PAGE_TABLES + 2 * PAGE;
    let mut bytes = Vec::new();
    let mut fill = |entries: &mut dyn Iterator<Item = u64>| {
        let empty = std::iter::repeat(0);
        for entry in entries.chain(empty).take(TABLE_ENTRIES) {
            bytes.extend(entry.to_le_bytes());
        }
    };
    let gibs = HIGHMEM_BASE / GIB;
    fill(&mut std::iter::once((table::PAGE_TABLES + PAGE) | PRESENT_WRITABLE));
    fill(&mut (0..gibs).map(|gib| (directories + gib * PAGE) | PRESENT_WRITABLE));
    for gib in 0..gibs {
        fill(
            &mut (0..GIB / LARGE_PAGE).map(|page| (gib * GIB + page * LARGE_PAGE) | PRESENT_WRITABLE | LARGE),
        );
    }
    bytes
}

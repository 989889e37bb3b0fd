//! The PVH entry: `hvm_start_info` and what it points to.
//!
//! Layouts are those of Xen's xen/include/public/arch-x86/hvm/start_info.h, version 1.
//!
//! A FreeBSD kernel entered this way takes Xen's clock for its first delays and dies where there is no Xen
//! (`xen_delay`, `sys/dev/xen/timer/xen_timer.c`): without a word, if it was the screen's driver. So it has to be a kernel
//! without screen and keyboard, with `machdep.disable_tsc_calibration=1` built in and `debug.acpi.disabled=hpet` on its
//! command line. GENERIC is not one. The serial console needs its hints built in, too.

use super::elf::Kernel;
use super::layout::{LayoutError, Occupancy, table};
use super::{BootFile, BootImage, BootPlan, GuestMemory, Registers};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const START_INFO_SIZE: usize = 56;
const MODULE_ENTRY_SIZE: usize = 32;
const MEMORY_ENTRY_SIZE: usize = 24;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const MEMORY_RAM: u32 = 1;

/// Memory map entries: conventional, low, high.
const MAX_MEMORY_ENTRIES: usize = 3;
/// The module list follows the longest memory map.
const MODULE_LIST: u64 = table::PVH_LISTS + (MAX_MEMORY_ENTRIES * MEMORY_ENTRY_SIZE) as u64;

/// Where the initramfs has to end: Linux takes its address as 32 bits.
const INITRAMFS_LIMIT: u64 = 1 << 32;

pub(super) fn plan<'a, K>(
    kernel: &Kernel,
    image: &BootImage<'a, K>,
    memory: GuestMemory,
) -> Result<BootPlan<'a>, LayoutError> {
    let registers = Registers::protected_mode(kernel.entry, table::START_INFO);
    let mut plan = BootPlan::new(memory, registers);
    let mut occupancy = Occupancy::new(memory);
    for segment in &kernel.segments {
        occupancy.take("kernel segment", segment.address, segment.memory)?;
        plan.write_file(segment.address, BootFile::Kernel, segment.file.clone());
    }

    let mut module = None;
    let length = image.initramfs;
    if length > 0 {
        let address = occupancy.take_highest("initramfs", length, INITRAMFS_LIMIT)?;
        plan.write_file(address, BootFile::Initramfs, 0..length);
        plan.write(MODULE_LIST, module_entry(address, length));
        module = Some(address);
    }

    let map: Vec<u8> =
        memory.ram().flat_map(|range| memory_entry(range.start, range.end - range.start)).collect();
    let entries = (map.len() / MEMORY_ENTRY_SIZE) as u64;
    plan.write(table::PVH_LISTS, map);
    plan.write_command_line(table::COMMAND_LINE, image.command_line);
    plan.write(table::START_INFO, start_info(module.is_some(), entries));
    Ok(plan)
}

fn start_info(module: bool, memory_entries: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(START_INFO_SIZE);
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes()); // flags
    bytes.extend(u32::from(module).to_le_bytes());
    // A list without modules has to be absent: FreeBSD halts otherwise.
    bytes.extend(if module { MODULE_LIST } else { 0 }.to_le_bytes());
    bytes.extend(table::COMMAND_LINE.to_le_bytes());
    // bhyve builds the ACPI tables after the loader ran, so their place isn't known: guests scan.
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(table::PVH_LISTS.to_le_bytes());
    // A 32-bit count and 32 reserved bits: one little-endian 64-bit number.
    bytes.extend(memory_entries.to_le_bytes());
    bytes
}

fn module_entry(address: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MODULE_ENTRY_SIZE);
    bytes.extend(address.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend([0; 16]); // no command line of its own, reserved
    bytes
}

fn memory_entry(address: u64, length: u64) -> [u8; MEMORY_ENTRY_SIZE] {
    let mut bytes = [0; MEMORY_ENTRY_SIZE];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..16].copy_from_slice(&length.to_le_bytes());
    bytes[16..20].copy_from_slice(&MEMORY_RAM.to_le_bytes());
    bytes
}

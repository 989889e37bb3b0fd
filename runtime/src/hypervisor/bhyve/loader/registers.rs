//! The boot processor's state at its first instruction.

use super::layout::table;

/// A segment register that has a hidden descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the architecture's own names")]
pub enum Segment {
    Cs,
    Ds,
    Es,
    Fs,
    Gs,
    Ss,
    Tr,
    Ldtr,
}

/// What a segment register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Visible part.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, last one included.
    pub limit: u32,
    /// Access rights in the form VMX and libvmmapi take them (type, S, DPL, P, AVL, L, D, G).
    pub access: u32,
}

/// Registers of the boot processor; those that are not named are zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    /// First instruction.
    pub rip: u64,
    /// Start info of the PVH entry.
    pub rbx: u64,
    /// Boot parameters of the Linux entry.
    pub rsi: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Flags: bit 1 is always set.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Page table root.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended features.
    pub efer: u64,
    /// Base and limit of the global descriptor table.
    pub gdt: (u64, u32),
    /// Base and limit of the interrupt descriptor table.
    pub idt: (u64, u32),
    /// Segments, all of them.
    pub segments: [(Segment, Descriptor); 8],
    /// The entry is 32-bit protected mode without paging: VMX needs the capability "unrestricted
    /// guest" for it.
    pub unrestricted: bool,
}

const CR0_PE: u64 = 1 << 0;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_FIXED: u64 = 1 << 1;

const CODE32: u32 = 0xc09b;
const CODE64: u32 = 0xa09b;
const DATA: u32 = 0xc093;
const BUSY_TSS: u32 = 0x008b;
const UNUSABLE: u32 = 0x1_0000;

/// Selectors that Linux' boot protocol prescribes (`__BOOT_CS`, `__BOOT_DS`); PVH leaves them open.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

/// The table behind those selectors, for kernels that reload them before they have their own.
pub(super) const GDT64: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Its last byte.
const GDT64_LIMIT: u32 = 31;

fn segments(code: u32, code_selector: u16, data_selector: u16) -> [(Segment, Descriptor); 8] {
    let flat = |selector, access| Descriptor { selector, base: 0, limit: u32::MAX, access };
    let data = flat(data_selector, DATA);
    [
        (Segment::Cs, flat(code_selector, code)),
        (Segment::Ds, data),
        (Segment::Es, data),
        (Segment::Fs, data),
        (Segment::Gs, data),
        (Segment::Ss, data),
        // VM entry refuses a task register that is not a busy TSS; 0x67 is the smallest one.
        (Segment::Tr, Descriptor { selector: 0, base: 0, limit: 0x67, access: BUSY_TSS }),
        (Segment::Ldtr, Descriptor { selector: 0, base: 0, limit: 0, access: UNUSABLE }),
    ]
}

impl Registers {
    /// 32-bit protected mode, flat, paging off: the PVH entry (Xen's docs/misc/pvh.pandoc).
    pub(super) fn protected_mode(entry: u32, start_info: u64) -> Self {
        Self {
            rip: u64::from(entry),
            rbx: start_info,
            rsi: 0,
            rsp: 0,
            rflags: RFLAGS_FIXED,
            cr0: CR0_PE | CR0_NE,
            cr3: 0,
            cr4: 0,
            efer: 0,
            gdt: (0, 0),
            idt: (0, 0),
            segments: segments(CODE32, CODE_SELECTOR, DATA_SELECTOR),
            unrestricted: true,
        }
    }

    /// Long mode with the first 4 GiB identity-mapped: Linux' 64-bit entry
    /// (Documentation/arch/x86/boot.rst).
    pub(super) fn long_mode(entry: u64, boot_params: u64) -> Self {
        Self {
            rip: entry,
            rbx: 0,
            rsi: boot_params,
            rsp: 0,
            rflags: RFLAGS_FIXED,
            cr0: CR0_PE | CR0_NE | CR0_PG,
            cr3: table::PAGE_TABLES,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            gdt: (table::GDT, GDT64_LIMIT),
            idt: (0, 0),
            segments: segments(CODE64, CODE_SELECTOR, DATA_SELECTOR),
            unrestricted: false,
        }
    }
}

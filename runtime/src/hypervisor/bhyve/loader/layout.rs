//! Where things go in guest physical memory.

use std::ops::Range;

/// End of the memory below the PCI hole (lib/libvmmapi/vmmapi.c, `VM_LOWMEM_LIMIT`).
pub const LOWMEM_LIMIT: u64 = 3 << 30;
/// Start of the memory above the PCI hole (lib/libvmmapi/vmmapi.c, `VM_HIGHMEM_BASE`).
pub const HIGHMEM_BASE: u64 = 4 << 30;
/// Smallest guest that is worth a try: below that no kernel fits beside its own tables.
const MIN_MEMORY: u64 = 16 << 20;
/// Largest guest: what bhyve's own address arithmetic and any host can still mean.
const MAX_MEMORY: u64 = 16 << 40;
/// End of conventional memory as every PC firmware leaves it: the EBDA begins here.
const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Everything from the EBDA to 1 MiB is bhyve's: it writes the MP table at 0xF0000, SMBIOS at
/// 0xF1000 and ACPI at 0xF2400 (usr.sbin/bhyve/amd64/mptbl.c, smbiostbl.c, acpi.h).
pub(super) const HIGH_AREA: u64 = 0x10_0000;
/// Page size; whatever the loader chooses itself is aligned to it.
pub(super) const PAGE: u64 = 4096;

/// Where the loader keeps its own tables, all in conventional memory.
pub(super) mod table {
    /// Global descriptor table (64-bit entry only).
    pub(in super::super) const GDT: u64 = 0x5000;
    /// `hvm_start_info`, or Linux' `boot_params`.
    pub(in super::super) const START_INFO: u64 = 0x6000;
    /// Memory map and module list of the PVH entry.
    pub(in super::super) const PVH_LISTS: u64 = 0x7000;
    /// Command line: up to 4 KiB.
    pub(in super::super) const COMMAND_LINE: u64 = 0x8000;
    /// Identity-mapping page tables (64-bit entry only): 6 pages.
    pub(in super::super) const PAGE_TABLES: u64 = 0x9000;
}

/// Why something has no place in guest memory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// The guest's memory size makes no sense.
    #[error("guest memory of {memory} bytes is not between {MIN_MEMORY} and {MAX_MEMORY}")]
    MemorySize {
        /// Bytes asked for.
        memory: u64,
    },
    /// The guest's memory size is not a multiple of a page.
    #[error("guest memory of {memory} bytes is not a multiple of {PAGE}")]
    MemoryUnaligned {
        /// Bytes asked for.
        memory: u64,
    },
    /// The kernel asks for memory that is not there, or that is bhyve's.
    #[error("{what} at {start:#x}..{end:#x} is outside {low:#x}..{high:#x}")]
    Outside {
        /// What was to be placed.
        what: &'static str,
        /// First byte.
        start: u64,
        /// End, exclusive.
        end: u64,
        /// First byte that may be used.
        low: u64,
        /// End of what may be used, exclusive.
        high: u64,
    },
    /// Two parts of the kernel claim the same memory.
    #[error("{what} at {start:#x} overlaps the one before it")]
    Overlap {
        /// What was to be placed.
        what: &'static str,
        /// First byte of the second one.
        start: u64,
    },
    /// No gap below the limit is large enough.
    #[error("no room for {what} of {length} bytes below {limit:#x}")]
    NoRoom {
        /// What was to be placed.
        what: &'static str,
        /// Its length in bytes.
        length: u64,
        /// Where it has to end at the latest.
        limit: u64,
    },
}

/// A range of guest physical memory, end exclusive.
pub type MemoryRange = Range<u64>;

/// The guest's memory as libvmmapi lays it out: up to 3 GiB at 0, the rest at 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestMemory {
    low: u64,
    high: u64,
}

impl GuestMemory {
    /// Splits `memory` bytes around the PCI hole.
    pub fn new(memory: u64) -> Result<Self, LayoutError> {
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&memory) {
            return Err(LayoutError::MemorySize { memory });
        }
        if !memory.is_multiple_of(PAGE) {
            return Err(LayoutError::MemoryUnaligned { memory });
        }
        let low = memory.min(LOWMEM_LIMIT);
        Ok(Self { low, high: memory - low })
    }

    /// Bytes at address 0.
    pub fn low(&self) -> u64 {
        self.low
    }

    /// Bytes at [`HIGHMEM_BASE`].
    pub fn high(&self) -> u64 {
        self.high
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.low + self.high
    }

    /// The ranges to announce to the guest as RAM, in ascending order.
    pub fn ram(&self) -> impl Iterator<Item = MemoryRange> {
        [0..CONVENTIONAL_END, HIGH_AREA..self.low, HIGHMEM_BASE..HIGHMEM_BASE + self.high]
            .into_iter()
            .filter(|range| !range.is_empty())
    }
}

/// What is taken above 1 MiB and below the PCI hole: the kernel's parts, then what is added.
#[derive(Debug)]
pub(super) struct Occupancy {
    low: u64,
    taken: Vec<MemoryRange>,
}

impl Occupancy {
    pub(super) fn new(memory: GuestMemory) -> Self {
        Self { low: memory.low(), taken: Vec::new() }
    }

    /// Takes `length` bytes at `start`: only between 1 MiB and the end of low memory, and only if
    /// nobody has them.
    pub(super) fn take(&mut self, what: &'static str, start: u64, length: u64) -> Result<(), LayoutError> {
        let end = start.saturating_add(length);
        if start < HIGH_AREA || end > self.low || start.checked_add(length).is_none() {
            return Err(LayoutError::Outside { what, start, end, low: HIGH_AREA, high: self.low });
        }
        if length == 0 {
            return Ok(());
        }
        let at = self.taken.partition_point(|range| range.start < start);
        let clear_below = at.checked_sub(1).is_none_or(|i| self.taken[i].end <= start);
        let clear_above = self.taken.get(at).is_none_or(|next| end <= next.start);
        if !clear_below || !clear_above {
            return Err(LayoutError::Overlap { what, start });
        }
        self.taken.insert(at, start..end);
        Ok(())
    }

    /// Takes `length` bytes as high as possible below `limit`, page aligned, but above everything
    /// taken so far: a kernel may use what lies between its parts, and what follows it is needed
    /// for its first allocations only as far as it fits.
    pub(super) fn take_highest(
        &mut self,
        what: &'static str,
        length: u64,
        limit: u64,
    ) -> Result<u64, LayoutError> {
        let limit = limit.min(self.low);
        let floor = self.taken.last().map_or(HIGH_AREA, |range| range.end);
        let start = limit
            .checked_sub(length)
            .map(|start| start & !(PAGE - 1))
            .filter(|start| *start >= floor)
            .ok_or(LayoutError::NoRoom { what, length, limit })?;
        self.take(what, start, length)?;
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_split_around_the_hole() {
        let memory = GuestMemory::new(256 << 20).unwrap();
        assert_eq!((memory.low(), memory.high()), (256 << 20, 0));
        assert_eq!(memory.ram().collect::<Vec<_>>(), [0..0x9_fc00, 0x10_0000..256 << 20]);

        let memory = GuestMemory::new(3 << 30).unwrap();
        assert_eq!((memory.low(), memory.high()), (3 << 30, 0));

        let memory = GuestMemory::new((3 << 30) + PAGE).unwrap();
        assert_eq!((memory.low(), memory.high()), (3 << 30, PAGE));
        assert_eq!(memory.ram().last(), Some(4 << 30..(4 << 30) + PAGE));
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for memory in [0, 1, MIN_MEMORY - 1, MAX_MEMORY + 1, u64::MAX] {
            assert_eq!(GuestMemory::new(memory), Err(LayoutError::MemorySize { memory }));
        }
        let memory = (64 << 20) + 1;
        assert_eq!(GuestMemory::new(memory), Err(LayoutError::MemoryUnaligned { memory }));
    }

    #[test]
    fn taken_memory_is_not_given_twice() {
        let mut map = Occupancy::new(GuestMemory::new(64 << 20).unwrap());
        map.take("a", 0x20_0000, 0x1000).unwrap();
        map.take("b", 0x20_1000, 0x1000).unwrap();
        map.take("c", 0x1f_f000, 0x1000).unwrap();
        map.take("empty", 0x20_0000, 0).unwrap();
        for (start, length) in [(0x20_0fff, 1), (0x1f_f000, 0x4000), (0x20_1800, 0x1000)] {
            assert_eq!(map.take("d", start, length), Err(LayoutError::Overlap { what: "d", start }));
        }
    }

    #[test]
    fn memory_of_others_is_refused() {
        let mut map = Occupancy::new(GuestMemory::new(64 << 20).unwrap());
        for (start, length) in [
            (0, 1),
            (0xf_0000, 0x1_0000),
            (0xf_ffff, 2),
            ((64 << 20) - 1, 2),
            (u64::MAX, 1),
            (u64::MAX, 0),
            (0x10_0000, u64::MAX),
        ] {
            assert!(
                matches!(map.take("k", start, length), Err(LayoutError::Outside { .. })),
                "{start:#x} {length:#x}"
            );
        }
    }

    #[test]
    fn the_highest_place_is_aligned_and_above_the_kernel() {
        let mut map = Occupancy::new(GuestMemory::new(64 << 20).unwrap());
        map.take("kernel", 0x100_0000, 0x80_0000).unwrap();
        assert_eq!(map.take_highest("initramfs", 5, u64::MAX).unwrap(), (64 << 20) - PAGE);
        let mut map = Occupancy::new(GuestMemory::new(64 << 20).unwrap());
        map.take("kernel", 0x100_0000, 0x80_0000).unwrap();
        assert_eq!(map.take_highest("initramfs", 1 << 20, 32 << 20).unwrap(), 31 << 20);
        for (length, limit) in [(41 << 20, u64::MAX), (u64::MAX, u64::MAX), (1, 0), (9 << 20, 32 << 20)] {
            assert!(matches!(map.take_highest("initramfs", length, limit), Err(LayoutError::NoRoom { .. })));
        }
    }
}

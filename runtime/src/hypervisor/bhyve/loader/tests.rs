#![allow(clippy::cast_possible_truncation, reason = "small numbers of the tests' own")]

use super::layout::{PAGE, table};
use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// A well-formed ELF kernel built from its parts.
struct ElfImage {
    machine: u16,
    /// Physical address, bytes, length in memory.
    segments: Vec<(u64, Vec<u8>, u64)>,
    note: Option<Vec<u8>>,
}

impl Default for ElfImage {
    fn default() -> Self {
        Self {
            machine: 62,
            segments: vec![(0x100_0000, vec![0xf4; 0x300], 0x4000), (0x110_0000, vec![1; 7], 7)],
            note: Some(note(b"Xen\0", 18, &0x100_0010_u64.to_le_bytes())),
        }
    }
}

fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((name.len() as u32).to_le_bytes());
    bytes.extend((desc.len() as u32).to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    for part in [name, desc] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

impl ElfImage {
    fn bytes(&self) -> Vec<u8> {
        let mut programs: Vec<(u32, u64, Vec<u8>, u64)> =
            self.segments.iter().map(|(at, bytes, memory)| (1, *at, bytes.clone(), *memory)).collect();
        if let Some(note) = &self.note {
            programs.push((4, 0, note.clone(), note.len() as u64));
        }
        let mut file = Vec::new();
        file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend(2_u16.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        for value in [0x100_0000_u64, 64, 0] {
            file.extend(value.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        for value in [64, 56, programs.len() as u16, 0, 0, 0] {
            file.extend(value.to_le_bytes());
        }
        let mut offset = 64 + 56 * programs.len() as u64;
        for (kind, address, bytes, memory) in &programs {
            file.extend(kind.to_le_bytes());
            file.extend(7_u32.to_le_bytes());
            let length = bytes.len() as u64;
            for value in [offset, *address, *address, length, *memory, 4] {
                file.extend(value.to_le_bytes());
            }
            offset += length;
        }
        for (_, _, bytes, _) in &programs {
            file.extend(bytes);
        }
        file
    }
}

/// A file that can be loaded, for tests of what comes after that.
#[cfg(target_os = "freebsd")]
pub(in super::super) fn kernel() -> Vec<u8> {
    ElfImage::default().bytes()
}

fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 5 * 512 + 0x1000];
    file[0x1f1] = 4;
    file[0x201] = 0x6a;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    file[0x211] = 1;
    file[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    file[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    file[0x234] = 1;
    file[0x236] = 1;
    file[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    file[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&0x80_0000_u32.to_le_bytes());
    file[5 * 512..].fill(0x90);
    file
}

fn image<'a>(kernel: &'a [u8], initramfs: &[u8], memory: u64) -> BootImage<'a, &'a [u8]> {
    BootImage { kernel, initramfs: initramfs.len() as u64, command_line: "console=ttyS0 quiet", memory }
}

/// Guest memory after the plan was carried out, for looking into it: the plan, the kernel, the initramfs.
struct Guest<'a>(&'a BootPlan<'a>, &'a [u8], &'a [u8]);

impl Guest<'_> {
    fn content(&self, write: &GuestWrite<'_>) -> Vec<u8> {
        match &write.content {
            Content::Bytes(bytes) => bytes.to_vec(),
            Content::File { file, range } => {
                let file = if *file == BootFile::Kernel { self.1 } else { self.2 };
                file[range.start as usize..range.end as usize].to_vec()
            }
        }
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for write in &self.0.writes {
            let content = self.content(write);
            for (at, byte) in (write.address..).zip(content) {
                if let Some(to) = at.checked_sub(address).and_then(|at| bytes.get_mut(at as usize)) {
                    *to = byte;
                }
            }
        }
        bytes
    }

    fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address, 4).try_into().unwrap())
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().unwrap())
    }

    fn string(&self, address: u64) -> String {
        let bytes = self.bytes(address, MAX_COMMAND_LINE + 1);
        let end = bytes.iter().position(|byte| *byte == 0).expect("NUL");
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    }
}

/// What holds for every plan, whatever it was made from.
fn check_invariants(plan: &BootPlan<'_>, kernel: &[u8], initramfs: &[u8]) {
    for write in &plan.writes {
        if let Content::File { file, range } = &write.content {
            let length = if *file == BootFile::Kernel { kernel.len() } else { initramfs.len() } as u64;
            assert!(range.start < range.end && range.end <= length, "{range:?} of {length} bytes");
        }
    }
    let mut ranges: Vec<_> = plan.writes.iter().map(|write| write.address..write.end()).collect();
    ranges.sort_by_key(|range| range.start);
    let memory = plan.memory;
    for range in &ranges {
        let conventional = range.end <= 0x9_fc00;
        let low = range.start >= MIB && range.end <= memory.low();
        assert!(conventional || low, "{range:x?} is not RAM of {memory:x?}");
        assert!(range.start >= 0x1000, "{range:x?} in the real mode's tables");
    }
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:x?} overlap");
    }
}

#[test]
fn pvh_start_info_describes_the_guest() {
    let kernel = ElfImage::default().bytes();
    let initramfs = vec![7; 5000];
    let plan = plan(&image(&kernel, &initramfs, 256 * MIB)).unwrap();
    check_invariants(&plan, &kernel, &initramfs);
    assert_eq!(plan.registers.rip, 0x100_0010);
    assert!(plan.registers.unrestricted);
    assert_eq!((plan.registers.cr0 & 1, plan.registers.cr0 >> 31), (1, 0));
    let guest = Guest(&plan, &kernel, &initramfs);
    let info = plan.registers.rbx;
    assert_eq!((guest.u32(info), guest.u32(info + 4)), (0x336e_c578, 1));
    assert_eq!(guest.u32(info + 12), 1, "one module");
    let module = guest.u64(info + 16);
    let place = guest.u64(module);
    assert_eq!(place % PAGE, 0);
    assert_eq!(guest.u64(module + 8), 5000);
    assert_eq!(guest.bytes(place, 5000), initramfs);
    assert!(place + 5000 > 256 * MIB - 2 * PAGE, "as high as possible");
    assert_eq!(guest.string(guest.u64(info + 24)), "console=ttyS0 quiet");
    let map = guest.u64(info + 40);
    assert_eq!(guest.u32(info + 48), 2);
    let entries: Vec<_> = (0..2)
        .map(|i| (guest.u64(map + i * 24), guest.u64(map + i * 24 + 8), guest.u32(map + i * 24 + 16)))
        .collect();
    assert_eq!(entries, [(0, 0x9_fc00, 1), (MIB, 255 * MIB, 1)]);
    assert_eq!(guest.bytes(0x100_0000, 0x300), vec![0xf4; 0x300]);
    assert_eq!(guest.bytes(0x110_0000, 8), [1, 1, 1, 1, 1, 1, 1, 0]);
}

#[test]
fn memory_above_the_hole_is_announced() {
    let kernel = ElfImage::default().bytes();
    let initramfs = vec![7; 5000];
    let plan = plan(&image(&kernel, &initramfs, 5 << 30)).unwrap();
    check_invariants(&plan, &kernel, &initramfs);
    let guest = Guest(&plan, &kernel, &initramfs);
    let info = plan.registers.rbx;
    assert_eq!(guest.u32(info + 48), 3);
    let last = guest.u64(info + 40) + 48;
    assert_eq!((guest.u64(last), guest.u64(last + 8)), (4 << 30, 2 << 30));
    assert!(guest.u64(guest.u64(info + 16)) < 3 << 30);
}

#[test]
fn without_an_initramfs_there_is_no_module_list() {
    let kernel =
        ElfImage { note: Some(note(b"Xen\0", 18, &0x100_0000_u32.to_le_bytes())), ..Default::default() };
    let kernel = kernel.bytes();
    let plan = plan(&image(&kernel, &[], 64 * MIB)).unwrap();
    let guest = Guest(&plan, &kernel, &[]);
    assert_eq!(guest.u32(plan.registers.rbx + 12), 0);
    assert_eq!(guest.u64(plan.registers.rbx + 16), 0);
}

/// A file of which only what is looked at is read gives the plan that its bytes give.
#[test]
fn of_a_file_only_headers_are_read() {
    struct Counted<'a>(std::io::Cursor<&'a [u8]>, &'a std::cell::Cell<usize>);
    impl std::io::Read for Counted<'_> {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            let count = self.0.read(to)?;
            self.1.set(self.1.get() + count);
            Ok(count)
        }
    }
    impl std::io::Seek for Counted<'_> {
        fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
            self.0.seek(to)
        }
    }
    let mut elf = ElfImage::default();
    elf.segments.push((0x200_0000, vec![1; 1 << 20], 1 << 20));
    let mut bz = bzimage();
    bz.resize(1 << 20, 0x90);
    for kernel in [elf.bytes(), bz] {
        let read = std::cell::Cell::new(0);
        let cache = object::read::ReadCache::new(Counted(std::io::Cursor::new(&kernel), &read));
        let whole = image(&kernel, &[7; 5000], 64 * MIB);
        let cached = BootImage {
            kernel: &cache,
            initramfs: whole.initramfs,
            command_line: whole.command_line,
            memory: whole.memory,
        };
        assert_eq!(plan(&cached).unwrap(), plan(&whole).unwrap());
        assert!(read.get() < 2048, "{} bytes were read", read.get());
    }
}

#[test]
fn broken_elf_kernels_are_named() {
    let broken = |change: fn(&mut ElfImage)| {
        let mut elf = ElfImage::default();
        change(&mut elf);
        let kernel = elf.bytes();
        plan(&image(&kernel, &[], 64 * MIB)).unwrap_err().to_string()
    };
    assert_eq!(broken(|e| e.machine = 3), "kernel ELF file: machine 3 is not x86-64");
    assert!(broken(|e| e.note = None).contains("no PVH entry note"));
    assert!(broken(|e| e.note = Some(note(b"Xen\0", 18, &[0; 5]))).contains("note of 5 bytes"));
    assert!(broken(|e| e.note = Some(note(b"GNU\0", 18, &[0; 4]))).contains("no PVH entry note"));
    assert!(
        broken(|e| e.note = Some(note(b"Xen\0", 18, &0x300_u32.to_le_bytes())))
            .contains("entry 0x300 is outside")
    );
    assert!(broken(|e| e.segments[0].2 = 5).contains("768 bytes in the file, 5 in memory"));
    assert!(broken(|e| e.segments[1].0 = 0x100_3fff).contains("overlaps"));
    assert!(broken(|e| e.segments[0].2 = 63 * MIB).contains("outside"));
    assert!(broken(|e| e.segments[1].0 = 0xf_0000).contains("outside"));
    assert!(broken(|e| e.segments[1].0 = u64::MAX).contains("outside"));
    assert!(broken(|e| e.segments = vec![(0x20_0000, vec![1], 1); 65]).contains("more than 64"));
    assert!(broken(|e| e.segments.clear()).contains("no segment"));
}

#[test]
fn kernels_that_end_early_are_refused() {
    for whole in [ElfImage::default().bytes(), bzimage()] {
        plan(&image(&whole, &[], 64 * MIB)).unwrap();
        // A bzImage's tail is compressed data: only its own decompressor misses bytes there.
        for length in 0..whole.len().min(0xa00) {
            if let Ok(plan) = plan(&image(&whole[..length], &[], 64 * MIB)) {
                panic!("{length} bytes gave {:x?}", plan.registers);
            }
        }
    }
}

#[test]
fn command_lines_are_bounded() {
    let kernel = ElfImage::default().bytes();
    let long = "a".repeat(MAX_COMMAND_LINE);
    let mut boot = image(&kernel, &[], 64 * MIB);
    boot.command_line = &long;
    let planned = plan(&boot).unwrap();
    assert_eq!(Guest(&planned, &kernel, &[]).string(table::COMMAND_LINE), long);
    let longer = "a".repeat(MAX_COMMAND_LINE + 1);
    boot.command_line = &longer;
    assert!(matches!(plan(&boot), Err(LoaderError::CommandLineTooLong { length: 2048, .. })));
    boot.command_line = "a\0b";
    assert!(matches!(plan(&boot), Err(LoaderError::CommandLineNul)));
}

#[test]
fn what_is_no_kernel_is_refused() {
    for kernel in [&b""[..], b"#!/bin/sh", &[0; 4096]] {
        assert!(matches!(plan(&image(kernel, &[], 64 * MIB)), Err(LoaderError::UnknownFormat)));
    }
}

#[test]
fn an_initramfs_that_does_not_fit_is_refused() {
    let kernel = ElfImage::default().bytes();
    let initramfs = vec![0; 48 << 20];
    let error = plan(&image(&kernel, &initramfs, 64 * MIB)).unwrap_err();
    assert!(error.to_string().contains("no room for initramfs of 50331648 bytes"), "{error}");
    plan(&image(&kernel, &initramfs, 128 * MIB)).unwrap();
}

#[test]
fn bzimage_boot_parameters_describe_the_guest() {
    let kernel = bzimage();
    let initramfs = vec![7; 5000];
    let plan = plan(&image(&kernel, &initramfs, 5 << 30)).unwrap();
    check_invariants(&plan, &kernel, &initramfs);
    let guest = Guest(&plan, &kernel, &initramfs);
    let registers = &plan.registers;
    assert_eq!(registers.rip, 0x100_0200);
    assert_eq!(guest.bytes(registers.rip, 4), [0x90; 4]);
    let params = registers.rsi;
    assert_eq!(guest.bytes(params + 0x202, 4), b"HdrS");
    assert_eq!(guest.bytes(params + 0x210, 1), [0xff]);
    let place = u64::from(guest.u32(params + 0x218));
    assert_eq!(guest.u32(params + 0x21c), 5000);
    assert_eq!(guest.bytes(place, 5000), initramfs);
    assert!(place + 5000 <= 0x8000_0000, "below what the kernel can reach");
    assert_eq!(guest.string(u64::from(guest.u32(params + 0x228))), "console=ttyS0 quiet");
    assert_eq!(guest.bytes(params + 0x1e8, 1), [3]);
    let entry = |i: u64| {
        let at = params + 0x2d0 + i * 20;
        (guest.u64(at), guest.u64(at + 8), guest.u32(at + 16))
    };
    assert_eq!(
        [entry(0), entry(1), entry(2)],
        [(0, 0x9_fc00, 1), (MIB, (3 << 30) - MIB, 1), (4 << 30, 2 << 30, 1)]
    );
}

#[test]
fn page_tables_map_the_first_four_gib_onto_themselves() {
    let kernel = bzimage();
    let plan = plan(&image(&kernel, &[], 64 * MIB)).unwrap();
    let guest = Guest(&plan, &kernel, &[]);
    let walk = |address: u64| {
        let mut next = plan.registers.cr3;
        for shift in [39, 30] {
            let entry = guest.u64(next + (address >> shift) % 512 * 8);
            assert_eq!(entry & 0b1000_0011, 0b11, "{address:#x}");
            next = entry & !0xfff;
        }
        let entry = guest.u64(next + (address >> 21) % 512 * 8);
        assert_eq!(entry & 0b1000_0011, 0b1000_0011, "{address:#x}");
        (entry & !0x1f_ffff) + address % (2 << 20)
    };
    for address in [0, 0x100_0200, 0x7fff_ffff, (3 << 30) - 1, (4 << 30) - 1] {
        assert_eq!(walk(address), address);
    }
    assert_eq!(guest.u64(plan.registers.cr3 + 8), 0, "nothing else is mapped");
}

#[test]
fn the_descriptor_table_matches_the_selectors() {
    let kernel = bzimage();
    let plan = plan(&image(&kernel, &[], 64 * MIB)).unwrap();
    let guest = Guest(&plan, &kernel, &[]);
    let (base, limit) = plan.registers.gdt;
    assert_eq!(limit, 31);
    for (segment, descriptor) in &plan.registers.segments {
        if descriptor.selector == 0 {
            continue;
        }
        let raw = guest.u64(base + u64::from(descriptor.selector));
        let access = (raw >> 40 & 0xff | (raw >> 52 & 0xf) << 12) as u32;
        assert_eq!(access, descriptor.access, "{segment:?}");
    }
}

#[test]
fn broken_bzimages_are_named() {
    let broken = |at: usize, bytes: &[u8]| {
        let mut kernel = bzimage();
        kernel[at..at + bytes.len()].copy_from_slice(bytes);
        plan(&image(&kernel, &[], 64 * MIB)).unwrap_err().to_string()
    };
    assert!(broken(0x206, &[0x0b, 0x02]).contains("0x020b is older than 0x020c"));
    assert!(broken(0x236, &[0]).contains("no 64-bit entry"));
    assert!(broken(0x211, &[0]).contains("zImage"));
    assert!(broken(0x230, &[3]).contains("power of two"));
    assert!(broken(0x1f1, &[200]).contains("setup code ends at"));
    assert!(broken(0x258, &[0xff; 8]).contains("outside"));
    assert!(broken(0x260, &[0xff; 4]).contains("outside"));
    assert!(broken(0x258, &[0; 8]).contains("outside"));
    assert!(broken(0x238, &[3, 0]).contains("exceeds the limit of 3"));
}

/// The kernel this project makes, where one is at hand.
#[test]
fn a_real_kernel_is_planned() {
    let Some(dir) = std::env::var_os("SKEP_GUEST_DIR") else { return };
    let dir = std::path::Path::new(&dir);
    let kernel = std::fs::read(dir.join("vmlinux")).expect("vmlinux");
    let initramfs = std::fs::read(dir.join("initramfs.cpio")).expect("initramfs.cpio");
    let plan = plan(&image(&kernel, &initramfs, 256 * MIB)).unwrap();
    check_invariants(&plan, &kernel, &initramfs);
    let code = Guest(&plan, &kernel, &initramfs).bytes(plan.registers.rip, 16);
    assert!(code.iter().any(|byte| *byte != 0), "{code:x?}");
}

fn mutated(original: Vec<u8>, header: usize) -> impl Strategy<Value = Vec<u8>> {
    let change = (0..header, prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f)]);
    (prop::collection::vec(change, 0..12), 0..=original.len()).prop_map(move |(changes, cut)| {
        let mut bytes = original.clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        // Mostly whole files: the rest of the parser is then reached.
        if cut % 4 == 0 {
            bytes.truncate(cut);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn hostile_elf_files_do_no_harm(
        kernel in mutated(ElfImage::default().bytes(), 64 + 3 * 56 + 0x300),
        memory in any::<u64>(),
        initramfs in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        for memory in [memory, (memory % (8 << 30)) & !(PAGE - 1), 256 * MIB] {
            if let Ok(plan) = plan(&image(&kernel, &initramfs, memory)) {
                check_invariants(&plan, &kernel, &initramfs);
            }
        }
    }

    #[test]
    fn hostile_bzimages_do_no_harm(
        kernel in mutated(bzimage(), 0x2d0),
        memory in any::<u64>(),
        initramfs in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        for memory in [memory, (memory % (8 << 30)) & !(PAGE - 1), 256 * MIB] {
            if let Ok(plan) = plan(&image(&kernel, &initramfs, memory)) {
                check_invariants(&plan, &kernel, &initramfs);
            }
        }
    }

    #[test]
    fn any_bytes_do_no_harm(kernel in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = plan(&image(&kernel, &[], 64 * MIB));
    }
}

//! A kernel of any bytes: four bytes of memory size, then the file.
#![no_main]

#[allow(dead_code, unused_imports, reason = "the crate around it uses more")]
#[path = "../../src/hypervisor/bhyve/loader/mod.rs"]
mod loader;

use libfuzzer_sys::fuzz_target;

const INITRAMFS: u64 = 5000;

fuzz_target!(|input: &[u8]| {
    let Some((memory, kernel)) = input.split_first_chunk() else { return };
    let image = loader::BootImage {
        kernel,
        initramfs: INITRAMFS,
        command_line: "console=ttyS0",
        memory: u64::from(u32::from_le_bytes(*memory)) << 20,
    };
    let Ok(plan) = loader::plan(&image) else { return };
    let mut ranges: Vec<_> = plan.writes.iter().map(|write| write.address..write.end()).collect();
    ranges.sort_by_key(|range| range.start);
    for write in &plan.writes {
        let loader::Content::File { file, range } = &write.content else { continue };
        let length = if *file == loader::BootFile::Kernel { kernel.len() as u64 } else { INITRAMFS };
        assert!(range.start < range.end && range.end <= length, "{range:?} of {length} bytes");
    }
    for range in &ranges {
        let conventional = range.start >= 0x1000 && range.end <= 0x9_fc00;
        let low = range.start >= 0x10_0000 && range.end <= plan.memory.low();
        assert!(conventional || low, "{range:x?} is not the guest's to have");
    }
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:x?} overlap");
    }
    assert!(ranges.iter().any(|range| range.contains(&plan.registers.rip)), "nothing at {:#x}", plan.registers.rip);
});

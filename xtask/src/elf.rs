//! Packing a `vmlinux`: only what a PVH loader reads, without the holes.
//!
//! The kernel's linker aligns every segment of the file, and parts of the text, to 2 MiB and fills the gaps: text
//! with int3, the rest with zeros. That is for mapping huge pages; in the file it is waste. A loader copies
//! `PT_LOAD`s to their physical addresses and clears the rest of `p_memsz`, so that a gap can end a segment instead
//! of being stored. Long runs of int3 become zeros by it: no function is there, and nothing jumps there.

use anyhow::{Context as _, Result, bail, ensure};
use object::elf::{self, FileHeader64, ProgramHeader64};
use object::endian::{LittleEndian as LE, U16, U32, U64};
use object::pod::bytes_of;
use object::read::elf::{FileHeader as _, ProgramHeader as _};

/// Runs of filling at least this long are not stored.
const HOLE: usize = 16 << 10;
/// What the linker fills gaps in the text with.
const INT3: u8 = 0xcc;
/// Alignment of each segment in the file.
const ALIGN: usize = 16;
/// Xen's note whose value is the 32-bit entry point for PVH.
const PHYS32_ENTRY: u32 = 18;

struct Segment<'a> {
    kind: u32,
    flags: u32,
    virtual_address: u64,
    physical_address: u64,
    data: &'a [u8],
    memory: u64,
}

/// A smaller ELF file that loads to the same memory; fails if `image` has no PVH entry.
pub(crate) fn pack(image: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<LE>::parse(image).context("not a 64-bit ELF file")?;
    ensure!(header.e_machine(LE) == elf::EM_X86_64, "not for x86-64: machine {}", header.e_machine(LE));
    let mut segments = Vec::new();
    let mut has_entry = false;
    for segment in header.program_headers(LE, image).context("no program headers")? {
        let data = segment.data(LE, image).ok().context("a segment reaches beyond the file")?;
        let whole = Segment {
            kind: segment.p_type(LE),
            flags: segment.p_flags(LE),
            virtual_address: segment.p_vaddr(LE),
            physical_address: segment.p_paddr(LE),
            data,
            memory: segment.p_memsz(LE),
        };
        match whole.kind {
            elf::PT_LOAD => split(&whole, &mut segments),
            elf::PT_NOTE => {
                let notes = segment.notes(LE, image).context("unreadable notes")?;
                has_entry |= notes.is_some_and(has_pvh_entry);
                segments.push(whole);
            }
            _ => {}
        }
    }
    if !has_entry {
        bail!("no PVH entry: the kernel was built without CONFIG_PVH");
    }
    write(header, &segments)
}

fn has_pvh_entry(mut notes: object::read::elf::NoteIterator<'_, FileHeader64<LE>>) -> bool {
    std::iter::from_fn(|| notes.next().ok().flatten())
        .any(|note| note.name() == b"Xen" && note.n_type(LE) == PHYS32_ENTRY)
}

/// Cuts a `PT_LOAD` at its holes: each piece's memory reaches to where the next piece begins.
fn split<'a>(whole: &Segment<'a>, pieces: &mut Vec<Segment<'a>>) {
    let filling: &[u8] = if whole.flags & elf::PF_X == 0 { &[0] } else { &[0, INT3] };
    let mut cuts = pieces_of(whole.data, filling);
    if cuts.is_empty() {
        cuts.push((0, 0));
    }
    for (index, &(start, end)) in cuts.iter().enumerate() {
        // The first piece takes what comes before it along: memory has to begin where it did.
        let start = if index == 0 { 0 } else { start };
        let until = cuts.get(index + 1).map_or(whole.memory, |next| next.0 as u64);
        pieces.push(Segment {
            kind: whole.kind,
            flags: whole.flags,
            virtual_address: whole.virtual_address + start as u64,
            physical_address: whole.physical_address + start as u64,
            data: &whole.data[start..end],
            memory: until - start as u64,
        });
    }
}

/// The ranges between runs of at least [`HOLE`] bytes of filling.
fn pieces_of(data: &[u8], filling: &[u8]) -> Vec<(usize, usize)> {
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    let block = 64;
    for (index, chunk) in data.chunks(block).enumerate() {
        if filling.iter().any(|fill| chunk.iter().all(|byte| byte == fill)) {
            continue;
        }
        let (start, end) = (index * block, index * block + chunk.len());
        match pieces.last_mut() {
            Some(last) if start - last.1 < HOLE => last.1 = end,
            _ => pieces.push((start, end)),
        }
    }
    pieces
}

fn write(header: &FileHeader64<LE>, segments: &[Segment<'_>]) -> Result<Vec<u8>> {
    let header_size = size_of::<FileHeader64<LE>>();
    let table = segments.len() * size_of::<ProgramHeader64<LE>>();
    let mut packed = *header;
    packed.e_phoff = U64::new(LE, header_size as u64);
    packed.e_phnum = U16::new(LE, u16::try_from(segments.len()).context("too many segments")?);
    // No sections: a loader reads none.
    packed.e_shoff = U64::new(LE, 0);
    packed.e_shnum = U16::new(LE, 0);
    packed.e_shstrndx = U16::new(LE, 0);

    let mut body: Vec<u8> = Vec::new();
    let mut headers = Vec::with_capacity(table);
    for segment in segments {
        let offset = (header_size + table + body.len()).next_multiple_of(ALIGN);
        body.resize(offset - header_size - table, 0);
        body.extend_from_slice(segment.data);
        headers.extend_from_slice(bytes_of(&ProgramHeader64 {
            p_type: U32::new(LE, segment.kind),
            p_flags: U32::new(LE, segment.flags),
            p_offset: U64::new(LE, offset as u64),
            p_vaddr: U64::new(LE, segment.virtual_address),
            p_paddr: U64::new(LE, segment.physical_address),
            p_filesz: U64::new(LE, segment.data.len() as u64),
            p_memsz: U64::new(LE, segment.memory),
            // 1 says what is true: file offsets are not congruent to addresses.
            p_align: U64::new(LE, if segment.kind == elf::PT_LOAD { 1 } else { 4 }),
        }));
    }
    Ok([bytes_of(&packed), &headers, &body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a loader leaves in memory: (address, bytes) without trailing difference between files.
    fn load(image: &[u8], size: usize) -> Vec<u8> {
        // What was not loaded must not be relied on to be zero.
        let mut memory = vec![0xaa; size];
        let header = FileHeader64::<LE>::parse(image).unwrap();
        for segment in header.program_headers(LE, image).unwrap() {
            if segment.p_type(LE) == elf::PT_LOAD {
                let data = segment.data(LE, image).unwrap();
                let start = usize::try_from(segment.p_paddr(LE)).unwrap();
                let end = start + usize::try_from(segment.p_memsz(LE)).unwrap();
                memory[start..end].fill(0);
                memory[start..start + data.len()].copy_from_slice(data);
            }
        }
        memory
    }

    fn sample(with_note: bool) -> Vec<u8> {
        let mut text = vec![0_u8; 200_000];
        text[..70_000].fill(1);
        text[150_000..190_000].fill(2);
        let mut note = Vec::new();
        for word in [4_u32, 4, if with_note { PHYS32_ENTRY } else { 1 }] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(0x10_0000_u32.to_le_bytes());
        let segment = |kind, address: u64, data, memory| Segment {
            kind,
            flags: 5,
            virtual_address: address + 0x1_0000_0000,
            physical_address: address,
            data,
            memory,
        };
        let zeros = vec![0_u8; 40_000];
        let segments = [
            segment(elf::PT_LOAD, 1000, text.as_slice(), 250_000),
            segment(elf::PT_LOAD, 300_000, &zeros, 50_000),
            segment(elf::PT_NOTE, 2000, &note, note.len() as u64),
        ];
        let header = FileHeader64::<LE> {
            e_ident: elf::Ident {
                magic: elf::ELFMAG,
                class: elf::ELFCLASS64,
                data: elf::ELFDATA2LSB,
                version: elf::EV_CURRENT,
                os_abi: 0,
                abi_version: 0,
                padding: [0; 7],
            },
            e_type: U16::new(LE, elf::ET_EXEC),
            e_machine: U16::new(LE, elf::EM_X86_64),
            e_version: U32::new(LE, 1),
            e_entry: U64::new(LE, 0x1000),
            e_phoff: U64::new(LE, 0),
            e_shoff: U64::new(LE, 0),
            e_flags: U32::new(LE, 0),
            e_ehsize: U16::new(LE, 64),
            e_phentsize: U16::new(LE, 56),
            e_phnum: U16::new(LE, 0),
            e_shentsize: U16::new(LE, 64),
            e_shnum: U16::new(LE, 0),
            e_shstrndx: U16::new(LE, 0),
        };
        write(&header, &segments).unwrap()
    }

    #[test]
    fn the_packed_file_loads_to_the_same_memory() {
        let image = sample(true);
        let packed = pack(&image).unwrap();
        assert!(packed.len() < 115_000, "{} of {}", packed.len(), image.len());
        assert_eq!(load(&packed, 400_000), load(&image, 400_000));
    }

    #[test]
    fn packing_twice_changes_nothing() {
        let packed = pack(&sample(true)).unwrap();
        assert_eq!(pack(&packed).unwrap(), packed);
    }

    #[test]
    fn a_kernel_without_pvh_is_refused() {
        let error = pack(&sample(false)).unwrap_err();
        assert!(error.to_string().contains("CONFIG_PVH"), "{error}");
        assert!(pack(b"MZ").is_err());
    }
}

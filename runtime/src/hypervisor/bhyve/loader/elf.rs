//! ELF kernels: what is to be loaded, and the PVH entry.

use object::LittleEndian;
use object::elf::{EM_X86_64, FileHeader64, PT_LOAD, PT_NOTE};
use object::read::ReadRef;
use object::read::elf::{FileHeader, ProgramHeader};
use std::ops::Range;

pub(super) const MAGIC: [u8; 4] = object::elf::ELFMAG;

/// Name and type of the note that holds the 32-bit physical entry (Xen's
/// xen/include/public/elfnote.h, `XEN_ELFNOTE_PHYS32_ENTRY`).
const XEN: &[u8] = b"Xen";
const PHYS32_ENTRY: u32 = 18;

/// A kernel has a handful of segments; a file that claims more is not one.
const MAX_SEGMENTS: usize = 64;
/// Notes that are looked at before the search is given up.
const MAX_NOTES: usize = 1024;
/// Bytes of notes that are read at once: those of a kernel are some hundred.
const MAX_NOTES_LENGTH: u64 = 1 << 20;

/// Why an ELF file can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The file's structure is broken.
    #[error("{0}")]
    Malformed(#[from] object::Error),
    /// A kernel for another machine.
    #[error("machine {0} is not x86-64")]
    Machine(u16),
    /// More loadable segments than any kernel has.
    #[error("more than {MAX_SEGMENTS} segments to load")]
    Segments,
    /// Nothing to load.
    #[error("no segment to load")]
    Empty,
    /// A segment's bytes are not in the file.
    #[error("segment at {address:#x}: its {length} bytes reach past the end of the file")]
    Truncated {
        /// Physical address of the segment.
        address: u64,
        /// Bytes the header claims.
        length: u64,
    },
    /// A segment with more bytes in the file than in memory.
    #[error("segment at {address:#x}: {file} bytes in the file, {memory} in memory")]
    Shrinks {
        /// Physical address of the segment.
        address: u64,
        /// Bytes in the file.
        file: u64,
        /// Bytes in memory.
        memory: u64,
    },
    /// More notes than any kernel has.
    #[error("{0} bytes of notes are more than {MAX_NOTES_LENGTH}")]
    Notes(u64),
    /// The kernel can't be entered without firmware.
    #[error("no PVH entry note (Linux needs CONFIG_PVH)")]
    NoEntry,
    /// The note is there, but not as it should be.
    #[error("PVH entry note of {0} bytes")]
    EntryLength(usize),
    /// The entry lies in nothing that is loaded.
    #[error("PVH entry {0:#x} is outside every loaded segment")]
    EntryOutside(u32),
}

/// A part of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LoadSegment {
    /// Physical address.
    pub(super) address: u64,
    /// What of the file goes there: all of it is there.
    pub(super) file: Range<u64>,
    /// Length in memory, at least that of `file`; the rest is zero.
    pub(super) memory: u64,
}

/// A kernel that can be entered by PVH.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) segments: Vec<LoadSegment>,
    pub(super) entry: u32,
}

impl Kernel {
    pub(super) fn parse<'a>(file: impl ReadRef<'a>) -> Result<Self, ElfError> {
        let file_length = file.len().unwrap_or_default();
        let header = FileHeader64::<LittleEndian>::parse(file)?;
        let endian = header.endian()?;
        let machine = header.e_machine(endian);
        if machine != EM_X86_64 {
            return Err(ElfError::Machine(machine));
        }
        let mut segments = Vec::new();
        let mut entry = None;
        let mut notes_left = MAX_NOTES;
        for program in header.program_headers(endian, file)? {
            match program.p_type(endian) {
                PT_LOAD => {
                    if segments.len() == MAX_SEGMENTS {
                        return Err(ElfError::Segments);
                    }
                    segments.extend(load_segment(program, file_length)?);
                }
                PT_NOTE if entry.is_none() => {
                    entry = pvh_entry(program, file, &mut notes_left)?;
                }
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(ElfError::Empty);
        }
        let entry = entry.ok_or(ElfError::NoEntry)?;
        let inside = |segment: &LoadSegment| {
            u64::from(entry)
                .checked_sub(segment.address)
                .is_some_and(|offset| offset < segment.file.end - segment.file.start)
        };
        if !segments.iter().any(inside) {
            return Err(ElfError::EntryOutside(entry));
        }
        Ok(Self { segments, entry })
    }
}

type Program = object::elf::ProgramHeader64<LittleEndian>;

fn load_segment(program: &Program, file_length: u64) -> Result<Option<LoadSegment>, ElfError> {
    let address = program.p_paddr(LittleEndian);
    let length = program.p_filesz(LittleEndian);
    let memory = program.p_memsz(LittleEndian);
    if memory < length {
        return Err(ElfError::Shrinks { address, file: length, memory });
    }
    if memory == 0 {
        return Ok(None);
    }
    let start = program.p_offset(LittleEndian);
    let end = start.checked_add(length).filter(|end| *end <= file_length);
    let end = end.ok_or(ElfError::Truncated { address, length })?;
    Ok(Some(LoadSegment { address, file: start..end, memory }))
}

fn pvh_entry<'a>(
    program: &Program,
    file: impl ReadRef<'a>,
    notes_left: &mut usize,
) -> Result<Option<u32>, ElfError> {
    let length = program.p_filesz(LittleEndian);
    if length > MAX_NOTES_LENGTH {
        return Err(ElfError::Notes(length));
    }
    let Some(mut notes) = program.notes(LittleEndian, file)? else {
        return Ok(None);
    };
    while let Some(note) = notes.next()? {
        let Some(left) = notes_left.checked_sub(1) else {
            return Ok(None);
        };
        *notes_left = left;
        if note.name() == XEN && note.n_type(LittleEndian) == PHYS32_ENTRY {
            return match note.desc() {
                // Linux stores the address as a long, FreeBSD as a 32-bit one.
                [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => Ok(Some(u32::from_le_bytes([*a, *b, *c, *d]))),
                other => Err(ElfError::EntryLength(other.len())),
            };
        }
    }
    Ok(None)
}

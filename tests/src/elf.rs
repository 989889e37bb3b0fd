//! The little of ELF that the fixtures need: whether a binary is static, and a binary of another machine.

use anyhow::{Context, Result, bail, ensure};

/// Program header type of the interpreter's path (elf(5)): a binary without it is static.
const PT_INTERP: u32 = 3;
/// `e_machine` of 64-bit x86 and of 64-bit ARM (elf.h).
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
const EHDR_SIZE: u16 = 64;
const PHDR_SIZE: u16 = 56;

/// Whether `binary` is a 64-bit little-endian ELF file that needs no interpreter.
pub fn is_static(binary: &[u8]) -> Result<bool> {
    ensure!(binary.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let table = usize::try_from(u64::from_le_bytes(field(binary, 32)?))?;
    let size = usize::from(u16::from_le_bytes(field(binary, 54)?));
    let count = usize::from(u16::from_le_bytes(field(binary, 56)?));
    for index in 0..count {
        let Some(at) = index.checked_mul(size).and_then(|offset| offset.checked_add(table)) else {
            bail!("program header {index} lies outside of the file");
        };
        if u32::from_le_bytes(field(binary, at)?) == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The machine of an executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

/// A static executable whose one segment, readable and executable, begins with headers and goes on with `code`, which
/// is also its entry.
pub fn executable(machine: Machine, code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    let headers = u64::from(EHDR_SIZE + PHDR_SIZE);
    let size = headers + code.len() as u64;
    let machine = match machine {
        Machine::X86_64 => EM_X86_64,
        Machine::Aarch64 => EM_AARCH64,
    };
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes()); // e_type: ET_EXEC
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes()); // e_version
    file.extend((BASE + headers).to_le_bytes()); // e_entry
    file.extend(u64::from(EHDR_SIZE).to_le_bytes()); // e_phoff
    file.extend(0u64.to_le_bytes()); // e_shoff
    file.extend(0u32.to_le_bytes()); // e_flags
    for half in [EHDR_SIZE, PHDR_SIZE, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes()); // p_type: PT_LOAD
    file.extend(5u32.to_le_bytes()); // p_flags: read, execute
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(u64::to_le_bytes(word));
    }
    file.extend(code);
    file
}

fn field<const N: usize>(binary: &[u8], at: usize) -> Result<[u8; N]> {
    at.checked_add(N)
        .and_then(|end| binary.get(at..end))
        .and_then(|bytes| bytes.try_into().ok())
        .with_context(|| format!("ELF file ends before offset {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_means_no_interpreter() {
        assert!(is_static(&executable(Machine::Aarch64, &[])).unwrap());
        let mut dynamic = executable(Machine::Aarch64, &[]);
        dynamic[usize::from(EHDR_SIZE)] = 3;
        assert!(!is_static(&dynamic).unwrap());
        assert!(is_static(b"#!/bin/sh").is_err());
        assert!(is_static(&executable(Machine::Aarch64, &[])[..80]).unwrap());
        assert!(is_static(&executable(Machine::Aarch64, &[])[..60]).is_err());
    }
}

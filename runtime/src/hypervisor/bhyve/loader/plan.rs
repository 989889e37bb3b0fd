//! The result of loading: bytes to place and registers to set.

use super::{GuestMemory, Registers};
use std::borrow::Cow;

/// Bytes to be put into guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestWrite<'a> {
    /// Guest physical address of the first byte.
    pub address: u64,
    /// The bytes: borrowed where they come from the kernel or the initramfs as they are.
    pub bytes: Cow<'a, [u8]>,
}

impl GuestWrite<'_> {
    /// First address after the bytes.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.bytes.len() as u64)
    }
}

/// Everything that makes a fresh VM ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPlan<'a> {
    /// Guest memory the plan was made for.
    pub memory: GuestMemory,
    /// Writes, in no particular order: they do not overlap.
    pub writes: Vec<GuestWrite<'a>>,
    /// State of the boot processor.
    pub registers: Registers,
}

impl<'a> BootPlan<'a> {
    pub(super) fn new(memory: GuestMemory, registers: Registers) -> Self {
        Self { memory, writes: Vec::new(), registers }
    }

    pub(super) fn write(&mut self, address: u64, bytes: impl Into<Cow<'a, [u8]>>) {
        let bytes = bytes.into();
        if !bytes.is_empty() {
            self.writes.push(GuestWrite { address, bytes });
        }
    }

    /// Writes the command line with its final NUL, which fresh memory already is.
    pub(super) fn write_command_line(&mut self, address: u64, line: &'a str) {
        self.write(address, line.as_bytes());
    }
}

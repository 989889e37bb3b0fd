//! The result of loading: what goes where in memory, and registers to set.

use super::{GuestMemory, Registers};
use std::borrow::Cow;
use std::ops::Range;

/// A file that a guest is booted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootFile {
    /// The kernel.
    Kernel,
    /// The initramfs.
    Initramfs,
}

/// What is put into guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content<'a> {
    /// Bytes of the loader's own making.
    Bytes(Cow<'a, [u8]>),
    /// Part of a file, which is to be read straight into guest memory.
    File {
        /// Which.
        file: BootFile,
        /// Which part, in bytes: it was inside of the file when the plan was made.
        range: Range<u64>,
    },
}

/// Something to be put into guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestWrite<'a> {
    /// Guest physical address of the first byte.
    pub address: u64,
    /// What goes there.
    pub content: Content<'a>,
}

impl GuestWrite<'_> {
    /// How many bytes it is.
    pub fn length(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File { range, .. } => range.end.saturating_sub(range.start),
        }
    }

    /// First address after it.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.length())
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
            self.writes.push(GuestWrite { address, content: Content::Bytes(bytes) });
        }
    }

    pub(super) fn write_file(&mut self, address: u64, file: BootFile, range: Range<u64>) {
        if !range.is_empty() {
            self.writes.push(GuestWrite { address, content: Content::File { file, range } });
        }
    }

    /// Writes the command line with its final NUL, which fresh memory already is.
    pub(super) fn write_command_line(&mut self, address: u64, line: &'a str) {
        self.write(address, line.as_bytes());
    }
}

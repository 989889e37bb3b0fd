//! Every host resource that a sandbox holds, on disk, so that whoever comes can undo it.
//!
//! A record is written before its resource is acquired and struck off after its release. A kill at any instruction
//! therefore leaves at most records of resources that do not exist, and undoing those is no error.
//!
//! The file is a header line and then one line of JSON for each record or strike, each appended by one write(2). What
//! survives a kill of the writer is what the kernel has, so nothing is synced for resources that die with the kernel
//! (processes, mounts); what outlives a power cut (files, directories) is synced before it is acquired.
//!
//! Whoever has a journal open holds its lock (flock(2)), which the kernel takes back when the last copy of the
//! descriptor is closed. A child between fork and exec has such a copy: see [`Journal::spawn`].

mod entry;
mod file;
mod program;
mod replay;
mod spawn;

pub use entry::{CniAttachment, Entry, EntryId, LOGGER, VMM};
pub(crate) use file::lock;
pub use file::{Journal, JournalError};
pub use program::ProgramError;
pub(crate) use program::{Program, after};

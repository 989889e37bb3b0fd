//! What a VM costs its host.

use serde::Serialize;

use crate::hypervisor;
use crate::journal::Entry;
use crate::os::{self, ProcessError};

/// What the process that runs a VM has used of this host: guest, devices and all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Processor time of all its threads, microseconds.
    pub processor_us: u64,
    /// Resident memory, bytes. The guest's memory counts from the first use of each page, and never less again.
    pub resident_bytes: u64,
}

impl Cost {
    /// Of a VMM by its process id. `journal`: what its sandbox holds, where the VM is if a kernel keeps it apart from the
    /// process.
    pub fn of(pid: u32, journal: &[Entry]) -> Result<Self, ProcessError> {
        let vm = journal.iter().find_map(|entry| match entry {
            Entry::Vm { name } => Some(name),
            _ => None,
        });
        let guest = vm.map_or(0, |name| {
            hypervisor::guest_resident_bytes(name).unwrap_or_else(|e| {
                // It may have just ended.
                tracing::debug!(vm = name, "{e}");
                0
            })
        });
        let resident_bytes = os::resident_bytes(pid)?.saturating_add(guest);
        Ok(Self { processor_us: os::processor_us(pid)?, resident_bytes })
    }

    /// What is left when others have their shares: of a clock that runs in a guest, and of pages that it counts twice
    /// (shared ones), the sum may be more than all.
    #[must_use]
    pub fn beyond(self, shares: impl IntoIterator<Item = Cost>) -> Self {
        shares.into_iter().fold(self, |rest, share| Self {
            processor_us: rest.processor_us.saturating_sub(share.processor_us),
            resident_bytes: rest.resident_bytes.saturating_sub(share.resident_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_is_never_less_than_nothing() {
        let cost = |processor_us, resident_bytes| Cost { processor_us, resident_bytes };
        assert_eq!(cost(10, 100).beyond([cost(3, 30), cost(4, 50)]), cost(3, 20));
        assert_eq!(cost(10, 100).beyond([cost(11, 20)]), cost(0, 80));
        assert_eq!(cost(10, 100).beyond([]), cost(10, 100));
    }

    #[test]
    fn a_process_costs_something() {
        assert!(Cost::of(std::process::id(), &[]).unwrap().resident_bytes > 100_000);
        assert!(Cost::of(u32::MAX, &[]).is_err());
    }
}

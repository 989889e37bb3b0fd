//! What a sandbox's interfaces carried, counted by the host at the other end of the VM's devices: a guest has no say in
//! it.

/// Frames of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Those that arrived.
    pub packets: u64,
    /// What they amount to, Ethernet's header included.
    pub bytes: u64,
    /// Those that could not be read or written.
    pub errors: u64,
    /// Those that there was no room for.
    pub dropped: u64,
}

/// What one interface carried since the sandbox has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// The interface, as the guest calls it.
    pub interface: String,
    /// What the sandbox received.
    pub received: Count,
    /// What it sent.
    pub sent: Count,
}

/// The host's end of a device of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct HostEnd {
    /// What the host took from the VM.
    pub(super) taken: Count,
    /// What it gave to the VM.
    pub(super) given: Count,
}

impl HostEnd {
    /// The same from the other side.
    pub(super) fn seen_from_inside(self, interface: String) -> Traffic {
        Traffic { interface, received: self.given, sent: self.taken }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_takes_the_sandbox_has_sent() {
        let count = |packets| Count { packets, ..Count::default() };
        let end = HostEnd { taken: count(1), given: count(2) };
        let traffic = end.seen_from_inside("eth0".into());
        assert_eq!((traffic.sent.packets, traffic.received.packets), (1, 2));
    }
}

//! What a side can take.

/// How much a side takes before it acknowledges. Each says so of itself when a session begins; a host also
/// holds what a guest says against [`Limits::TO_ANY_GUEST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest frame, header included, bytes.
    pub frame: u32,
    /// DATA frames outstanding.
    pub frames: u32,
    /// Bytes of DATA frames outstanding, headers included.
    pub bytes: u32,
}

/// Length of what [`Limits::encode`] writes.
const ENCODED: usize = 16;

impl Limits {
    /// A Linux guest. Its driver posts up to 64 buffers of a page each. A host's burst takes at most one buffer
    /// per write and one per page: 24 frames and 12 pages, and the rest is for acknowledgements and probes,
    /// which are not acknowledged themselves.
    pub const LINUX_GUEST: Self = Self { frame: 4096, frames: 24, bytes: 48 * 1024 };

    /// A FreeBSD guest. Its driver posts 64 buffers of 128 bytes each.
    pub const FREEBSD_GUEST: Self = Self { frame: 1024, frames: 12, bytes: 4096 };

    /// What a host sends at most over a port that is not paced, whatever the guest asks for.
    pub const TO_ANY_GUEST: Self = Self::LINUX_GUEST;

    /// A host. The Linux driver takes writes of at most 32 KiB.
    pub const HOST: Self = Self { frame: 32 * 1024, frames: 16, bytes: 128 * 1024 };

    /// A Linux guest whose port is paced: the VMM hands over no more than the driver has posted buffers for, and what is
    /// on its way waits with the VMM. So the window is only a bound, and as wide as a few turns of both sides' tasks.
    pub const PACED_GUEST: Self = Self { frame: 32 * 1024, frames: 32, bytes: 256 * 1024 };

    /// A host whose guest's port is paced.
    pub const PACED_HOST: Self = Self { frame: 32 * 1024, frames: 64, bytes: 512 * 1024 };

    /// The smallest that works.
    const LEAST: Self = Self { frame: 256, frames: 1, bytes: 256 };

    /// The guest that this is compiled for.
    pub const fn this_guest() -> Self {
        if cfg!(target_os = "freebsd") { Self::FREEBSD_GUEST } else { Self::LINUX_GUEST }
    }

    /// The guest that this is compiled for, on a paced port. FreeBSD's driver hands what arrives to a terminal, which
    /// drops what it has no room for: pacing up to the driver is of no use there.
    pub const fn this_paced_guest() -> Self {
        if cfg!(target_os = "freebsd") { Self::FREEBSD_GUEST } else { Self::PACED_GUEST }
    }

    /// The peer's limits, held between what works and `most`.
    pub(crate) fn within(self, most: Self) -> Self {
        Self {
            frame: self.frame.clamp(Self::LEAST.frame, most.frame),
            frames: self.frames.clamp(Self::LEAST.frames, most.frames),
            bytes: self.bytes.clamp(Self::LEAST.bytes, most.bytes),
        }
    }

    /// The payload of ANNOUNCE, HELLO and WELCOME: version of the calls, then the limits, little-endian.
    pub(crate) fn encode(self, version: u32) -> [u8; ENCODED] {
        let mut bytes = [0; ENCODED];
        for (to, word) in bytes.chunks_exact_mut(4).zip([version, self.frame, self.frames, self.bytes]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Version and limits from such a payload.
    pub(crate) fn decode(payload: &[u8]) -> Option<(u32, Self)> {
        let bytes: &[u8; ENCODED] = payload.try_into().ok()?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Some((word(0), Self { frame: word(4), frames: word(8), bytes: word(12) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_guest_gets_neither_more_nor_nothing() {
        let asked = Limits { frame: u32::MAX, frames: u32::MAX, bytes: u32::MAX };
        assert_eq!(asked.within(Limits::TO_ANY_GUEST), Limits::TO_ANY_GUEST);
        let asked = Limits { frame: 0, frames: 0, bytes: 0 };
        assert_eq!(asked.within(Limits::TO_ANY_GUEST), Limits::LEAST);
        assert_eq!(Limits::FREEBSD_GUEST.within(Limits::TO_ANY_GUEST), Limits::FREEBSD_GUEST);
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let bytes = Limits::HOST.encode(9);
        assert_eq!(Limits::decode(&bytes), Some((9, Limits::HOST)));
        assert_eq!(Limits::decode(&bytes[1..]), None);
    }
}

//! One frame on the wire.
//!
//! | offset | size | |
//! |---|---|---|
//! | 0 | 4 | magic `f5 53 6b a7` |
//! | 4 | 1 | version of the link layer, 1 |
//! | 5 | 1 | [`Kind`] |
//! | 6 | 2 | length of the payload |
//! | 8 | 4 | session, 0 in ANNOUNCE |
//! | 12 | 4 | seq |
//! | 16 | 4 | ack |
//! | 20 | 4 | CRC-32 of bytes 0..20 |
//! | 24 | 4 | check of the payload |
//! | 28 | | payload |
//!
//! Little-endian. The header has a CRC of its own so that a length can be relied on before the payload is here.
//!
//! The check of DATA is made of rapidhash (version 3, without a seed) of the masked payload and of the mask's key. A port
//! loses bytes and does not change them, so what is to be found is a payload that is not the one of its header: for that a
//! hash is as good as a CRC, and it takes two multiplications for 32 bytes, where the carry-less ones of a CRC are emulated bit
//! by bit in a guest without hardware virtualisation (9 ms for each MiB instead of 0.3). The check of the
//! other frames, which two versions of this protocol must understand to tell each other apart, is the CRC-32 of the
//! payload, begun with the value at 20.
//!
//! The payload of DATA is masked with bytes drawn from session and seq. Who chooses the payload (a container's
//! output, a user's stdin) does not know the session, and so can't have it contain a frame that the peer would
//! find after a loss.

use rapidhash::v3::rapidhash_v3;

/// Length of a header.
pub const HEADER: usize = 28;

/// First bytes of a frame.
pub const MAGIC: [u8; 4] = [0xf5, 0x53, 0x6b, 0xa7];

const VERSION: u8 = 1;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Guest: here I am, without a session. Payload: its [`super::Limits`] and version.
    Announce = 1,
    /// Host: session begins. Payload as in ANNOUNCE.
    Hello = 2,
    /// Guest: the session is taken up. Payload as in ANNOUNCE.
    Welcome = 3,
    /// Bytes; `seq` numbers these frames.
    Data = 4,
    /// Only acknowledges.
    Ack = 5,
    /// The frame `ack` was lost.
    Nak = 6,
    /// Asks for a PONG with the same `seq`.
    Ping = 7,
    /// Answers a PING.
    Pong = 8,
    /// The session ends.
    Close = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Announce,
            2 => Self::Hello,
            3 => Self::Welcome,
            4 => Self::Data,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Ping,
            8 => Self::Pong,
            9 => Self::Close,
            _ => return None,
        })
    }
}

/// A frame's header without lengths and checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub kind: Kind,
    /// Which session it belongs to.
    pub session: u32,
    /// Number of a DATA frame, or of a probe.
    pub seq: u32,
    /// The DATA frame that its sender expects next.
    pub ack: u32,
}

/// A header as read, with what is needed to check the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) head: Head,
    pub(crate) length: usize,
    head_crc: u32,
    check: u32,
}

/// Appends a frame whose payload is `parts` one after the other, at most 65535 bytes.
pub fn encode(out: &mut Vec<u8>, head: Head, parts: [&[u8]; 2]) {
    let length = parts[0].len() + parts[1].len();
    debug_assert!(u16::try_from(length).is_ok(), "payload of {length} bytes");
    let start = out.len();
    out.reserve(HEADER + length);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, head.kind as u8]);
    out.extend_from_slice(&(u16::try_from(length).unwrap_or(u16::MAX)).to_le_bytes());
    for word in [head.session, head.seq, head.ack] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let head_crc = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&head_crc.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(parts[0]);
    out.extend_from_slice(parts[1]);
    let payload = start + HEADER;
    mask(head, &mut out[payload..]);
    let check = check(head, head_crc, &out[payload..]);
    out[payload - 4..payload].copy_from_slice(&check.to_le_bytes());
}

/// Reads a header; `None` if these bytes are none.
pub(crate) fn decode(bytes: &[u8; HEADER]) -> Option<Checked> {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let head_crc = word(20);
    if bytes[..4] != MAGIC || bytes[4] != VERSION || crc32fast::hash(&bytes[..20]) != head_crc {
        return None;
    }
    let kind = Kind::from_byte(bytes[5])?;
    let length = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
    let head = Head { kind, session: word(8), seq: word(12), ack: word(16) };
    Some(Checked { head, length, head_crc, check: word(24) })
}

impl Checked {
    /// Whether the payload, still masked, is the one that was sent.
    pub(crate) fn fits(&self, payload: &[u8]) -> bool {
        check(self.head, self.head_crc, payload) == self.check
    }
}

/// What stands at 24 for a payload as it is on the wire.
fn check(head: Head, head_crc: u32, payload: &[u8]) -> u32 {
    if head.kind == Kind::Data {
        let bound = (rapidhash_v3(payload) ^ key(head)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        return u32::try_from(bound >> 32).unwrap_or(0);
    }
    let mut hasher = crc32fast::Hasher::new_with_initial(head_crc);
    hasher.update(payload);
    hasher.finalize()
}

/// The mask of a DATA frame's payload, repeated. The finalizer of `SplitMix64`: every bit of session and seq reaches every
/// bit of it.
fn key(head: Head) -> u64 {
    let mut key = (u64::from(head.session) << 32 | u64::from(head.seq)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

/// Masks a DATA payload, and unmasks it again. Other payloads are left alone.
pub(crate) fn mask(head: Head, payload: &mut [u8]) {
    if head.kind != Kind::Data {
        return;
    }
    let key = key(head);
    let (blocks, rest) = payload.as_chunks_mut::<64>();
    for block in blocks {
        // Written out: the guest's agent is optimised for size, and an emulator takes each turn of a loop for a block.
        if let ([a, b, c, d, e, f, g, h], []) = block.as_chunks_mut::<8>() {
            toggle(a, key);
            toggle(b, key);
            toggle(c, key);
            toggle(d, key);
            toggle(e, key);
            toggle(f, key);
            toggle(g, key);
            toggle(h, key);
        }
    }
    let (words, rest) = rest.as_chunks_mut::<8>();
    for word in words {
        toggle(word, key);
    }
    for (byte, key) in rest.iter_mut().zip(key.to_le_bytes()) {
        *byte ^= key;
    }
}

fn toggle(word: &mut [u8; 8], key: u64) {
    *word = (u64::from_le_bytes(*word) ^ key).to_le_bytes();
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_head() -> impl Strategy<Value = Head> {
        let kind = (1u8..10).prop_map(|byte| Kind::from_byte(byte).unwrap());
        (kind, any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(kind, session, seq, ack)| Head {
            kind,
            session,
            seq,
            ack,
        })
    }

    fn read(bytes: &[u8]) -> Option<(Head, Vec<u8>)> {
        let checked = decode(bytes.first_chunk()?)?;
        let mut payload = bytes.get(HEADER..HEADER + checked.length)?.to_vec();
        checked.fits(&payload).then(|| {
            mask(checked.head, &mut payload);
            (checked.head, payload)
        })
    }

    proptest! {
        #[test]
        fn reads_back_what_it_wrote(head in any_head(), a: Vec<u8>, b: Vec<u8>) {
            let mut bytes = Vec::new();
            encode(&mut bytes, head, [&a, &b]);
            prop_assert_eq!(bytes.len(), HEADER + a.len() + b.len());
            prop_assert_eq!(read(&bytes), Some((head, [a, b].concat())));
        }

        #[test]
        fn any_damage_shows(head in any_head(), payload: Vec<u8>, at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = Vec::new();
            encode(&mut bytes, head, [&payload, &[]]);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert_eq!(read(&bytes), None);
        }
    }

    #[test]
    fn a_payload_is_not_on_the_wire_as_it_is() {
        // A frame within a payload is no frame on the wire.
        let mut inner = Vec::new();
        encode(&mut inner, Head { kind: Kind::Hello, session: 7, seq: 0, ack: 0 }, [&[0; 16], &[]]);
        let mut outer = Vec::new();
        encode(&mut outer, Head { kind: Kind::Data, session: 99, seq: 3, ack: 0 }, [&inner, &[]]);
        assert_eq!(outer.windows(MAGIC.len()).filter(|w| **w == MAGIC).count(), 1);
    }
}

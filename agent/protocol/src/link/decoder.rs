//! Finds frames in what arrives.

use memchr::memmem;

use super::frame::{Checked, HEADER, Head, MAGIC, decode, mask};

/// Bytes of payload that may be checked in vain per byte received: a hostile peer can nest headers so that each
/// of them claims the same bytes.
const VAIN_PER_BYTE: usize = 8;

/// How much of that may be saved up.
const VAIN_MAX: usize = 1 << 20;

/// Finds the frames in a stream of bytes that may lack some, and skips what is none. Holds at most the capacity
/// it is made with.
#[derive(Debug)]
pub struct Decoder {
    buffer: Box<[u8]>,
    /// The bytes not looked at yet are `buffer[start..end]`.
    start: usize,
    end: usize,
    max_payload: usize,
    vain: usize,
    garbage: bool,
    /// No frame begins in the payload of the partial frame before here.
    searched: usize,
}

impl Decoder {
    /// For frames of at most `max_frame` bytes, header included.
    pub fn new(max_frame: usize) -> Self {
        let buffer = vec![0; max_frame.max(HEADER) * 2].into_boxed_slice();
        Self {
            buffer,
            start: 0,
            end: 0,
            max_payload: max_frame.saturating_sub(HEADER),
            vain: VAIN_MAX,
            garbage: false,
            searched: 0,
        }
    }

    /// Room for bytes that arrive; never empty once [`Decoder::next_frame`] has returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.searched = self.searched.saturating_sub(self.start);
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes of [`Decoder::space`] were filled.
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
        self.vain = (self.vain + count.saturating_mul(VAIN_PER_BYTE)).min(VAIN_MAX);
    }

    /// The next frame, its payload unmasked.
    pub fn next_frame(&mut self) -> Option<(Head, &[u8])> {
        let (checked, at) = self.find()?;
        let payload = &mut self.buffer[at..at + checked.length];
        mask(checked.head, payload);
        Some((checked.head, payload))
    }

    fn find(&mut self) -> Option<(Checked, usize)> {
        loop {
            self.skip_to_magic();
            let bytes = &self.buffer[self.start..self.end];
            let header = bytes.first_chunk::<HEADER>()?;
            match decode(header) {
                Some(checked) if checked.length <= self.max_payload => {
                    let Some(payload) = bytes.get(HEADER..HEADER + checked.length) else {
                        // A payload is masked: it contains no header, unless it was cut off before.
                        let at = self.header_within()?;
                        self.skip(at - self.start);
                        continue;
                    };
                    if checked.fits(payload) {
                        let at = self.start + HEADER;
                        self.start = at + checked.length;
                        return Some((checked, at));
                    }
                    match self.vain.checked_sub(checked.length) {
                        Some(left) => {
                            self.vain = left;
                            self.skip(1);
                        }
                        None => self.skip(self.end - self.start),
                    }
                }
                _ => self.skip(1),
            }
        }
    }

    /// Where a header begins behind that of the frame that is not complete. Looks at each byte once.
    fn header_within(&mut self) -> Option<usize> {
        let from = self.searched.max(self.start + 1);
        let bytes = &self.buffer[from..self.end];
        // Nearly every byte of a long frame comes by here while the rest of it is awaited.
        let found = memmem::find_iter(bytes, &MAGIC)
            .find(|&at| bytes[at..].first_chunk().is_some_and(|header| decode(header).is_some()));
        self.searched = (self.end + 1).saturating_sub(HEADER).max(from);
        found.map(|at| from + at)
    }

    fn skip(&mut self, count: usize) {
        self.start += count;
        self.garbage |= count > 0;
    }

    /// Skips to the first place where a frame may begin.
    fn skip_to_magic(&mut self) {
        let bytes = &self.buffer[self.start..self.end];
        if bytes.starts_with(&MAGIC) {
            return;
        }
        let at = memmem::find(bytes, &MAGIC).unwrap_or_else(|| {
            // The beginning of one, whose rest is to come.
            let tail = bytes.len().saturating_sub(MAGIC.len() - 1);
            (tail..bytes.len()).find(|&at| MAGIC.starts_with(&bytes[at..])).unwrap_or(bytes.len())
        });
        self.skip(at);
    }

    /// Whether the first part of a frame is here and the rest is not.
    pub fn is_partial(&self) -> bool {
        self.start < self.end
    }

    /// Gives up on the frame that never got complete; frames may be found behind its first byte.
    pub fn give_up(&mut self) {
        if self.is_partial() {
            self.skip(1);
        }
    }

    /// Whether bytes were skipped since the last time this was asked.
    pub fn take_garbage(&mut self) -> bool {
        std::mem::take(&mut self.garbage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::frame::{Kind, encode, tests::any_head};
    use proptest::prelude::*;

    const MAX: usize = 2048;

    fn feed(decoder: &mut Decoder, mut bytes: &[u8], piece: usize, mut seen: impl FnMut(Head, &[u8])) {
        while !bytes.is_empty() {
            let space = decoder.space();
            let count = bytes.len().min(piece).min(space.len());
            assert!(count > 0, "a decoder that found nothing has room");
            space[..count].copy_from_slice(&bytes[..count]);
            decoder.filled(count);
            bytes = &bytes[count..];
            while let Some((head, payload)) = decoder.next_frame() {
                seen(head, payload);
            }
        }
    }

    fn frames() -> impl Strategy<Value = Vec<(Head, Vec<u8>)>> {
        proptest::collection::vec((any_head(), proptest::collection::vec(any::<u8>(), 0..200)), 0..12)
    }

    proptest! {
        /// However the bytes are cut, every frame is found, and nothing else.
        #[test]
        fn finds_all_frames(frames in frames(), piece in 1usize..300) {
            let mut bytes = Vec::new();
            for (head, payload) in &frames {
                encode(&mut bytes, *head, [payload, &[]]);
            }
            let mut decoder = Decoder::new(MAX);
            let mut found = Vec::new();
            feed(&mut decoder, &bytes, piece, |head, payload| found.push((head, payload.to_vec())));
            prop_assert_eq!(found, frames);
            prop_assert!(!decoder.take_garbage() && !decoder.is_partial());
        }

        /// Garbage without the magic's first byte before a frame does not hide it.
        #[test]
        fn finds_a_frame_behind_garbage(
            garbage in proptest::collection::vec(0u8..0xf5, 0..500), head in any_head(), piece in 1usize..300,
        ) {
            let mut bytes = garbage.clone();
            encode(&mut bytes, head, [b"payload", &[]]);
            let mut decoder = Decoder::new(MAX);
            let mut found = Vec::new();
            feed(&mut decoder, &bytes, piece, |head, _| found.push(head));
            prop_assert_eq!(found, vec![head]);
            prop_assert_eq!(decoder.take_garbage(), !garbage.is_empty());
        }

        /// A frame cut short costs itself only, once the next ones have filled its length.
        #[test]
        fn a_cut_frame_does_not_hide_the_next(cut in 1usize..100, head in any_head(), piece in 1usize..300) {
            let mut bytes = Vec::new();
            encode(&mut bytes, head, [&[7; 100], &[]]);
            bytes.truncate(bytes.len() - cut);
            let next = Head { seq: head.seq.wrapping_add(1), ..head };
            for _ in 0..4 {
                encode(&mut bytes, next, [&[8; 30], &[]]);
            }
            let mut decoder = Decoder::new(MAX);
            let mut found = Vec::new();
            feed(&mut decoder, &bytes, piece, |head, _| found.push(head));
            prop_assert_eq!(found, vec![next; 4]);
            prop_assert!(decoder.take_garbage());
        }

        /// Any bytes at all are taken without a panic and leave room.
        #[test]
        fn survives_anything(bytes in proptest::collection::vec(prop_oneof![Just(0xf5u8), any::<u8>()], 0..3000)) {
            feed(&mut Decoder::new(64), &bytes, 50, |_, _| {});
        }
    }

    #[test]
    fn a_frame_longer_than_allowed_is_garbage() {
        let head = Head { kind: Kind::Data, session: 1, seq: 0, ack: 0 };
        let mut bytes = Vec::new();
        encode(&mut bytes, head, [&[1; MAX - HEADER + 1], &[]]);
        encode(&mut bytes, head, [&[1; MAX - HEADER], &[]]);
        let mut found = Vec::new();
        feed(&mut Decoder::new(MAX), &bytes, 999, |_, payload| found.push(payload.len()));
        assert_eq!(found, [MAX - HEADER]);
    }

    /// As a host leaves it that was killed within a frame, and the next one's hello behind it.
    #[test]
    fn a_frame_behind_a_cut_one_is_found_at_once() {
        let hello = Head { kind: Kind::Hello, session: 2, seq: 0, ack: 0 };
        for kept in [1, HEADER - 1, HEADER, HEADER + 1, 300, 1027] {
            let mut bytes = Vec::new();
            encode(&mut bytes, Head { kind: Kind::Data, session: 1, seq: 0, ack: 0 }, [&[1; 1000], &[]]);
            bytes.truncate(kept);
            encode(&mut bytes, hello, [&[0; 16], &[]]);
            for piece in [1, 7, 999] {
                let mut found = Vec::new();
                feed(&mut Decoder::new(MAX), &bytes, piece, |head, _| found.push(head));
                assert_eq!(found, [hello], "{kept} bytes, in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_frame_that_never_gets_complete_can_be_given_up() {
        let mut bytes = Vec::new();
        encode(&mut bytes, Head { kind: Kind::Data, session: 1, seq: 0, ack: 0 }, [&[1; 1000], &[]]);
        bytes.truncate(300);
        let mut decoder = Decoder::new(MAX);
        feed(&mut decoder, &bytes, 999, |_, _| panic!("nothing is complete"));
        assert!(decoder.is_partial());
        decoder.give_up();
        assert!(decoder.next_frame().is_none() && !decoder.is_partial() && decoder.take_garbage());
    }

    #[test]
    fn nested_headers_cost_a_bounded_effort() {
        // Headers that all claim the same long payload, none of which fits.
        let mut nested = Vec::new();
        for seq in 0..4000 {
            let mut one = Vec::new();
            encode(&mut one, Head { kind: Kind::Data, session: 1, seq, ack: 0 }, [&vec![1; 20_000], &[]]);
            nested.extend_from_slice(&one[..HEADER]);
        }
        let mut decoder = Decoder::new(32 * 1024);
        let before = decoder.vain;
        feed(&mut decoder, &nested, 4096, |_, _| panic!("no frame"));
        // What was checked in vain is paid for by what was received.
        assert!(decoder.vain <= before && nested.len() * VAIN_PER_BYTE + before < 4000 * 20_000 / 10);
        assert!(decoder.take_garbage());
    }
}

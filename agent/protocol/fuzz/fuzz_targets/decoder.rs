//! Any bytes, in pieces of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep_protocol::link::Decoder;
use skep_protocol::link::frame::{Head, Kind, encode};

const MAX_FRAME: usize = 4096;

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

fuzz_target!(|input: (u16, Vec<u8>)| {
    let (piece, bytes) = input;
    let piece = usize::from(piece).max(1);
    let mut decoder = Decoder::new(MAX_FRAME);
    feed(&mut decoder, &bytes, piece, |_, payload| assert!(payload.len() < MAX_FRAME));
    // Whatever came before, enough sound frames behind it are found.
    let head = Head { kind: Kind::Ack, session: 0x1234_5678, seq: 42, ack: 43 };
    let mut sound = Vec::new();
    while sound.len() < 2 * MAX_FRAME {
        encode(&mut sound, head, [b"payload", &[]]);
    }
    let mut found = false;
    feed(&mut decoder, &sound, piece, |seen, payload| found |= seen == head && payload == b"payload");
    assert!(found);
});

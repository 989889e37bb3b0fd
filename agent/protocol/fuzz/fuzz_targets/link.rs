//! Any bytes and any frames, at any time, to either side of the link.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use skep_protocol::link::frame::{Head, Kind, encode};
use skep_protocol::link::{Config, Link};

const SESSION: u32 = 7;

#[derive(Debug, Arbitrary)]
enum Step {
    Bytes(Vec<u8>),
    /// Kind, session, seq and ack of a sound frame.
    Frame(u8, u8, u32, u32, Vec<u8>),
    /// Version and limits of a HELLO, ANNOUNCE or WELCOME.
    Begin(u8, u32, u32, u32, u32),
    Write(u16),
    Read(u16),
    Wait(u16),
    Close,
    Pause(bool),
}

fn kind(byte: u8) -> Kind {
    use Kind::{Ack, Announce, Close, Data, Hello, Nak, Ping, Pong, Welcome};
    let kinds = [Announce, Hello, Welcome, Data, Ack, Nak, Ping, Pong, Close];
    kinds[usize::from(byte) % kinds.len()]
}

fn feed(link: &mut Link, mut bytes: &[u8], now: Duration) {
    while !bytes.is_empty() {
        let space = link.space();
        let count = bytes.len().min(space.len());
        if count == 0 {
            // The reader has too much to read: what arrives waits, here for good.
            return;
        }
        space[..count].copy_from_slice(&bytes[..count]);
        bytes = &bytes[count..];
        link.received(count, now);
    }
}

fuzz_target!(|input: (bool, Vec<Step>)| {
    let (is_host, steps) = input;
    let mut now = Duration::ZERO;
    let mut link =
        if is_host { Link::host(Config::HOST, SESSION, now) } else { Link::guest(Config::GUEST, now) };
    let mut into = vec![0; 1 << 16];
    for step in steps {
        match step {
            Step::Bytes(bytes) => feed(&mut link, &bytes, now),
            Step::Frame(byte, session, seq, ack, payload) => {
                let session = SESSION + u32::from(session % 3);
                let mut wire = Vec::new();
                let payload = &payload[..payload.len().min(60_000)];
                encode(&mut wire, Head { kind: kind(byte), session, seq: seq % 200, ack: ack % 200 }, [payload, &[]]);
                feed(&mut link, &wire, now);
            }
            Step::Begin(byte, version, a, b, c) => {
                let mut payload = Vec::new();
                for word in [1 + version % 2, a, b, c] {
                    payload.extend_from_slice(&word.to_le_bytes());
                }
                let mut wire = Vec::new();
                let session = SESSION + u32::from(byte / 128);
                encode(&mut wire, Head { kind: kind(byte % 3), session, seq: 0, ack: 0 }, [&payload, &[]]);
                feed(&mut link, &wire, now);
            }
            Step::Write(count) => assert!(link.write(&into[..usize::from(count)]) <= usize::from(count)),
            Step::Read(count) => drop(link.read(&mut into[..usize::from(count)])),
            Step::Wait(ms) => now += Duration::from_millis(u64::from(ms)),
            Step::Close => link.close(SESSION),
            Step::Pause(paused) => link.set_paused(paused),
        }
        if link.deadline().is_some_and(|at| at <= now) {
            link.on_timeout(now);
        }
        let mut events = 0;
        while link.poll_event().is_some() {
            events += 1;
        }
        assert!(events < 3000, "{events}");
        let mut wire = Vec::new();
        let mut batches = 0;
        while link.poll_transmit(now, &mut wire) {
            batches += 1;
        }
        // At most a window, and what is not numbered.
        assert!(wire.len() <= 128 * 1024 + 500 && batches < 5, "{} {batches}", wire.len());
        if is_host {
            assert!(wire.len() <= 48 * 1024 + 500, "{}", wire.len());
        }
    }
});

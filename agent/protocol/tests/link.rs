//! Two links over a wire that loses, damages, cuts and delays what it carries, in simulated time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::unchecked_time_subtraction,
    reason = "small known numbers"
)]

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use skep_protocol::link::{Config, End, Event, Limits, Link};

const SESSION: u32 = 0x5e55_1011;
/// Long enough for every retransmission; a link that needs more is stuck.
const LONG: Duration = Duration::from_secs(3600);

/// xorshift, so that a case is repeated by its seed.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// True in so many of 1000 cases for a piece of a page, and the less often the shorter it is.
    fn hit(&mut self, permille: u64, piece: &[u8]) -> bool {
        self.roll(1000 * 4096) < permille * piece.len().min(4096) as u64
    }
}

/// What a wire does to each page of what is written, in so many of 1000 cases.
#[derive(Debug, Clone, Copy)]
struct Faults {
    lose: u64,
    damage: u64,
    garbage: u64,
    longest_piece: u64,
}

const NONE: Faults = Faults { lose: 0, damage: 0, garbage: 0, longest_piece: 1 << 20 };

/// One direction. Keeps the order, as every port does.
struct Wire {
    faults: Faults,
    delay_ms: u64,
    pieces: VecDeque<(Duration, Vec<u8>)>,
    last: Duration,
    sent: u64,
}

impl Wire {
    fn new(faults: Faults, delay_ms: u64) -> Self {
        Self { faults, delay_ms, pieces: VecDeque::new(), last: Duration::ZERO, sent: 0 }
    }

    fn send(&mut self, mut bytes: &[u8], now: Duration, dice: &mut Dice) {
        self.sent += bytes.len() as u64;
        while !bytes.is_empty() {
            let length = (1 + dice.roll(self.faults.longest_piece)).min(bytes.len() as u64) as usize;
            let (piece, rest) = bytes.split_at(length);
            bytes = rest;
            let mut piece = piece.to_vec();
            if dice.hit(self.faults.lose, &piece) {
                continue;
            }
            if dice.hit(self.faults.damage, &piece) {
                let at = dice.roll(piece.len() as u64) as usize;
                piece[at] ^= 1 + dice.roll(255) as u8;
            }
            if dice.hit(self.faults.garbage, &piece) {
                piece.extend((0..dice.roll(200)).map(|_| dice.roll(256) as u8));
            }
            self.last = self.last.max(now + Duration::from_micros(dice.roll(1000 * self.delay_ms + 1)));
            self.pieces.push_back((self.last, piece));
        }
    }

    fn next(&self) -> Option<Duration> {
        self.pieces.front().map(|(at, _)| *at)
    }

    /// Whether anything arrived.
    fn deliver(&mut self, to: &mut Link, now: Duration) -> bool {
        let mut arrived = false;
        while self.next().is_some_and(|at| at <= now) {
            let (at, mut piece) = self.pieces.pop_front().unwrap();
            let space = to.space();
            let count = space.len().min(piece.len());
            space[..count].copy_from_slice(&piece[..count]);
            to.received(count, now);
            if count < piece.len() {
                self.pieces.push_front((at, piece.split_off(count)));
            }
            if count == 0 {
                break;
            }
            arrived = true;
        }
        arrived
    }
}

/// A side with what it has to say and what it has heard.
struct Side {
    link: Link,
    to_say: Vec<u8>,
    said: usize,
    heard: Vec<u8>,
    events: Vec<Event>,
}

impl Side {
    fn new(link: Link, to_say: Vec<u8>) -> Self {
        Self { link, to_say, said: 0, heard: Vec::new(), events: Vec::new() }
    }

    fn step(&mut self, now: Duration, wire: &mut Wire, dice: &mut Dice) {
        if self.link.deadline().is_some_and(|at| at <= now) {
            self.link.on_timeout(now);
        }
        while let Some(event) = self.link.poll_event() {
            if matches!(event, Event::Began { .. }) {
                self.said = 0;
                self.heard.clear();
            }
            self.events.push(event);
        }
        self.said += self.link.write(&self.to_say[self.said..]);
        let mut into = [0; 5000];
        loop {
            match self.link.read(&mut into) {
                0 => break,
                count => self.heard.extend_from_slice(&into[..count]),
            }
        }
        let mut bytes = Vec::new();
        self.link.poll_transmit(now, &mut bytes);
        wire.send(&bytes, now, dice);
    }
}

struct World {
    now: Duration,
    dice: Dice,
    host: Side,
    guest: Side,
    down: Wire,
    up: Wire,
}

impl World {
    fn new(seed: u64, down: Wire, up: Wire, host_says: Vec<u8>, guest_says: Vec<u8>) -> Self {
        let host = Side::new(Link::host(Config::HOST, SESSION, Duration::ZERO), host_says);
        let guest = Side::new(Link::guest(Config::GUEST, Duration::ZERO), guest_says);
        Self { now: Duration::ZERO, dice: Dice(seed | 1), host, guest, down, up }
    }

    /// Lets things happen until `done`; panics if they stop happening before.
    fn run(&mut self, done: impl Fn(&Self) -> bool) {
        loop {
            self.host.step(self.now, &mut self.down, &mut self.dice);
            self.guest.step(self.now, &mut self.up, &mut self.dice);
            let down = self.down.deliver(&mut self.guest.link, self.now);
            let up = self.up.deliver(&mut self.host.link, self.now);
            if done(self) {
                return;
            }
            // At least a moment: what has arrived is answered in the next step.
            self.now += Duration::from_micros(1);
            if down || up {
                continue;
            }
            let times =
                [self.down.next(), self.up.next(), self.host.link.deadline(), self.guest.link.deadline()];
            let next = times.into_iter().flatten().min().expect("nothing will ever happen again");
            self.now = next.max(self.now);
            assert!(self.now < LONG, "no end: {:?} {:?}", self.host.events, self.guest.events);
        }
    }

    fn all_heard(&self) -> bool {
        self.host.heard.len() >= self.guest.to_say.len() && self.guest.heard.len() >= self.host.to_say.len()
    }
}

fn faults() -> impl Strategy<Value = Faults> {
    (0u64..40, 0u64..30, 0u64..30, prop_oneof![1u64..100, 100u64..5000, Just(1 << 20)])
        .prop_map(|(lose, damage, garbage, longest_piece)| Faults { lose, damage, garbage, longest_piece })
}

/// Bytes with much of the wire's own in them.
fn speech(seed: u64, length: usize) -> Vec<u8> {
    let mut dice = Dice(seed | 1);
    let mut speech = Vec::with_capacity(length + 4);
    while speech.len() < length {
        match dice.roll(4) {
            0 => speech.extend_from_slice(&[0xf5, 0x53, 0x6b, 0xa7]),
            _ => speech.push(dice.roll(256) as u8),
        }
    }
    speech.truncate(length);
    speech
}

/// A host's and its guest's.
fn configs(paced: bool) -> (Config, Config) {
    if paced { (Config::PACED_HOST, Config::PACED_GUEST) } else { (Config::HOST, Config::GUEST) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the wire does, both sides hear exactly what the other said.
    #[test]
    fn delivers_exactly_what_was_said(
        seed: u64, down in faults(), up in faults(), delays in (0u64..20, 0u64..20),
        host_says in 0usize..60_000, guest_says in 0usize..60_000, paced: bool,
    ) {
        let mut world = World::new(
            seed, Wire::new(down, delays.0), Wire::new(up, delays.1),
            speech(seed, host_says), speech(!seed, guest_says),
        );
        let (host, guest) = configs(paced);
        // Losses on end are not the end here.
        let patient = Config { patience: 0, ..host };
        world.host.link = Link::host(patient, SESSION, Duration::ZERO);
        world.guest.link = Link::guest(guest, Duration::ZERO);
        world.run(World::all_heard);
        prop_assert!(world.host.heard == world.guest.to_say);
        prop_assert!(world.guest.heard == world.host.to_say);
        prop_assert_eq!(&world.host.events, &[Event::Began { session: SESSION }]);
        prop_assert_eq!(&world.guest.events, &[Event::Began { session: SESSION }]);
    }

    /// A wire that only delays and cuts has nothing sent twice.
    #[test]
    fn sends_nothing_twice_without_loss(
        seed: u64, longest_piece in 1u64..9000, delay in 0u64..700, paced: bool,
    ) {
        let faults = Faults { longest_piece, ..NONE };
        let mut world = World::new(
            seed, Wire::new(faults, delay), Wire::new(faults, delay), speech(seed, 100_000), speech(!seed, 200_000),
        );
        let (host, guest) = configs(paced);
        world.host.link = Link::host(host, SESSION, Duration::ZERO);
        world.guest.link = Link::guest(guest, Duration::ZERO);
        world.run(World::all_heard);
        prop_assert!(world.host.heard == world.guest.to_say && world.guest.heard == world.host.to_say);
        prop_assert_eq!((world.host.link.retransmitted(), world.guest.link.retransmitted()), (0, 0));
    }

    /// Any bytes from the peer, in pieces, with any timing: no panic, and memory stays bounded.
    #[test]
    fn survives_anything(
        bytes in proptest::collection::vec(prop_oneof![Just(0xf5u8), any::<u8>()], 0..5000),
        pieces in proptest::collection::vec((1usize..400, 0u64..500), 1..30),
        is_host: bool,
    ) {
        let mut link = if is_host {
            Link::host(Config::HOST, SESSION, Duration::ZERO)
        } else {
            Link::guest(Config::GUEST, Duration::ZERO)
        };
        let (mut now, mut rest, mut wire) = (Duration::ZERO, &bytes[..], Vec::new());
        for (length, pause) in pieces {
            now += Duration::from_millis(pause);
            let space = link.space();
            let count = rest.len().min(length).min(space.len());
            space[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            link.received(count, now);
            link.on_timeout(now);
            while link.poll_event().is_some() {}
            wire.clear();
            link.poll_transmit(now, &mut wire);
            prop_assert!(wire.len() < 1000);
        }
    }
}

#[test]
fn a_guest_that_is_stopped_gets_no_more_than_its_buffers_hold() {
    let mut world = World::new(7, Wire::new(NONE, 1), Wire::new(NONE, 1), speech(7, 1 << 20), Vec::new());
    world.run(|world| world.guest.heard.len() > 100_000);
    // From now on only the host runs, for ten minutes, with plenty to say.
    let sent = world.down.sent;
    let mut pieces = 0;
    let stopped = world.now;
    while world.now < stopped + Duration::from_secs(100) {
        world.up.deliver(&mut world.host.link, world.now);
        let before = world.down.sent;
        world.host.step(world.now, &mut world.down, &mut world.dice);
        pieces += u64::from(world.down.sent > before);
        world.now += Duration::from_millis(10);
    }
    // The window may have had room, and probes go out; a quarter of the guest's 64 pages stays free.
    let sent = world.down.sent - sent;
    assert!(sent <= 48 * 1024 + 20 * 28, "{sent}");
    assert!(pieces + 12 <= 48, "{pieces}");
    // It goes on as if nothing had been.
    world.run(World::all_heard);
    assert!(world.guest.heard == world.host.to_say);
    assert_eq!(world.host.link.retransmitted(), 0);
}

#[test]
fn a_stopped_guest_is_dead_after_minutes_unless_the_host_knows() {
    for known in [false, true] {
        let mut world = World::new(7, Wire::new(NONE, 1), Wire::new(NONE, 1), speech(7, 100), Vec::new());
        world.run(|world| !world.guest.events.is_empty());
        world.host.link.set_paused(known);
        world.host.to_say.push(1);
        let stopped = world.now;
        while world.now < stopped + Duration::from_secs(900) {
            world.up.deliver(&mut world.host.link, world.now);
            world.host.step(world.now, &mut world.down, &mut world.dice);
            if world.host.events.len() > 1 {
                break;
            }
            world.now += Duration::from_millis(100);
        }
        if known {
            assert_eq!(world.host.events, [Event::Began { session: SESSION }]);
            world.host.link.set_paused(false);
            world.run(World::all_heard);
            assert!(world.guest.heard == world.host.to_say);
        } else {
            let end = End::Silent(Config::HOST.patience);
            assert_eq!(world.host.events[1..], [Event::Ended { session: SESSION, end }]);
            let silence = world.now - stopped;
            assert!((200..500).contains(&silence.as_secs()), "{silence:?}");
        }
    }
}

#[test]
fn an_idle_host_never_minds_silence() {
    let mut world = World::new(7, Wire::new(NONE, 1), Wire::new(NONE, 1), speech(7, 100), speech(8, 100));
    world.run(|world| world.all_heard() && world.host.link.is_idle() && world.guest.link.is_idle());
    while let Some(at) = world.host.link.deadline() {
        world.now = world.now.max(at);
        world.host.step(world.now, &mut world.down, &mut world.dice);
        assert!(world.now < Duration::from_secs(10), "an idle link comes to rest");
    }
    assert_eq!(world.host.events.len(), 1);
}

#[test]
fn a_guest_that_boots_late_is_found() {
    let mut world = World::new(7, Wire::new(NONE, 1), Wire::new(NONE, 1), speech(7, 10), Vec::new());
    // For two seconds the port drops all that the host says.
    while world.now < Duration::from_secs(2) {
        world.host.step(world.now, &mut world.down, &mut world.dice);
        world.down.pieces.clear();
        world.now += Duration::from_millis(1);
    }
    world.guest.link = Link::guest(Config::GUEST, world.now);
    let booted = world.now;
    world.run(World::all_heard);
    // Answered by the announcement, not by the host's own next hello.
    assert!(world.now - booted < Duration::from_millis(30), "{:?}", world.now - booted);
}

#[test]
fn a_new_session_ends_the_one_before() {
    let mut world = World::new(7, Wire::new(NONE, 1), Wire::new(NONE, 1), speech(7, 500), speech(8, 500));
    world.run(|world| world.guest.heard.len() > 100);
    // The host's process is replaced; what was under way is lost with it.
    let next = SESSION + 1;
    world.host = Side::new(Link::host(Config::HOST, next, world.now), speech(9, 3000));
    world.run(|world| world.guest.events.len() == 3 && world.all_heard());
    assert!(world.guest.heard == world.host.to_say && world.host.heard == world.guest.to_say);
    let ended = Event::Ended { session: SESSION, end: End::Superseded };
    assert_eq!(
        world.guest.events,
        [Event::Began { session: SESSION }, ended, Event::Began { session: next }]
    );
    assert_eq!(world.host.events, [Event::Began { session: next }]);
}

#[test]
fn a_close_ends_the_session_on_both_sides() {
    let mut world = World::new(7, Wire::new(NONE, 1), Wire::new(NONE, 1), speech(7, 50), Vec::new());
    world.run(World::all_heard);
    world.host.link.close(SESSION + 1);
    assert_eq!(world.host.link.session(), Some(SESSION), "another session's close is none of this one's");
    world.host.link.close(SESSION);
    world.host.step(world.now, &mut world.down, &mut world.dice);
    world.now += Duration::from_millis(5);
    world.down.deliver(&mut world.guest.link, world.now);
    world.guest.step(world.now, &mut world.up, &mut world.dice);
    assert_eq!(world.host.events[1], Event::Ended { session: SESSION, end: End::Closed });
    assert_eq!(world.guest.events[1], Event::Ended { session: SESSION, end: End::PeerClosed });
    // The guest waits, quietly, for the next.
    assert_eq!((world.guest.link.deadline(), world.guest.link.write(b"x")), (None, 0));
    world.host = Side::new(Link::host(Config::HOST, 5, world.now), Vec::new());
    world.run(|world| world.host.events == [Event::Began { session: 5 }]);
}

#[test]
fn a_guest_that_forgot_its_session_ends_it() {
    let mut world = World::new(7, Wire::new(NONE, 1), Wire::new(NONE, 1), speech(7, 50), Vec::new());
    world.run(World::all_heard);
    world.guest = Side::new(Link::guest(Config::GUEST, world.now), Vec::new());
    world.run(|world| world.host.events.len() > 1);
    assert_eq!(world.host.events[1], Event::Ended { session: SESSION, end: End::Superseded });
}

#[test]
fn another_version_is_told_to_the_host() {
    // To a guest that still announces itself, and to one that is in a session or was.
    let mut world = World::new(7, Wire::new(NONE, 1), Wire::new(NONE, 1), Vec::new(), Vec::new());
    let other = Config { version: 77, ..Config::GUEST };
    world.guest.link = Link::guest(other, Duration::ZERO);
    for (round, close) in [(0, false), (1, true), (2, false)] {
        world.host = Side::new(Link::host(Config::HOST, 10 + round, world.now), Vec::new());
        world.run(|world| !world.host.events.is_empty());
        assert_eq!(world.host.events, [Event::Version { peer: 77 }]);
        world.host =
            Side::new(Link::host(Config { version: 77, ..Config::HOST }, 20 + round, world.now), Vec::new());
        world.run(|world| world.host.events.len() == 1 && world.guest.link.session() == Some(20 + round));
        if close {
            world.guest.link.close(20 + round);
        }
    }
}

#[test]
fn a_freebsd_guest_gets_bursts_of_4_kib() {
    let mut world = World::new(7, Wire::new(NONE, 30), Wire::new(NONE, 30), speech(7, 50_000), Vec::new());
    world.guest.link = Link::guest(Config { limits: Limits::FREEBSD_GUEST, ..Config::GUEST }, Duration::ZERO);
    world.run(|world| {
        let under_way: usize = world.down.pieces.iter().map(|(_, piece)| piece.len()).sum();
        assert!(under_way <= 4096 + 200, "{under_way}");
        world.all_heard()
    });
    assert!(world.guest.heard == world.host.to_say);
}

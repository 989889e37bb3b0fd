//! The link: both halves of a session, its beginning and its end.

use std::collections::VecDeque;
use std::time::Duration;

use super::config::{Config, End, Event};
use super::decoder::Decoder;
use super::frame::{Head, Kind, encode};
use super::handshake::Repeat;
use super::limits::Limits;
use super::receiver::Receiver;
use super::sender::Sender;

/// The first part of a frame waits so long for the rest before it is given up.
const PARTIAL: Duration = Duration::from_secs(1);

/// [`Link::poll_transmit`] stops at so many bytes.
const BATCH: usize = 64 * 1024;

/// Received bytes that wait for the reader; more are not asked for.
const UNREAD: usize = 256 * 1024;

#[derive(Debug)]
enum State {
    /// Guest without a session.
    Announcing(Repeat),
    /// Host without an answer.
    Greeting { session: u32, repeat: Repeat },
    /// In a session.
    Open(Box<Open>),
    /// Guest after a session that the host ended: hosts open sessions.
    Waiting,
    /// Host after its session.
    Over,
}

#[derive(Debug)]
struct Open {
    session: u32,
    sender: Sender,
    receiver: Receiver,
    /// Number of the PING to be answered.
    pong: Option<u32>,
    /// The host is to be told that its session is taken up.
    welcome: bool,
}

/// One side of the link layer.
///
/// Feed it what arrives ([`Link::space`], [`Link::received`]), write out what [`Link::poll_transmit`] gives, call
/// [`Link::on_timeout`] at [`Link::deadline`], and take its events; [`Link::write`] and [`Link::read`] are the
/// reliable byte stream of the present session. Times are since any moment that stays the same.
#[derive(Debug)]
pub struct Link {
    decoder: Decoder,
    core: Core,
}

/// All but the decoder, from which the frames are borrowed while they are handled.
#[derive(Debug)]
struct Core {
    config: Config,
    is_host: bool,
    state: State,
    /// At most one per frame of a batch, and the user takes them after each.
    events: VecDeque<Event>,
    /// Sessions whose end the peer is to be told of: the last one only.
    close: Option<u32>,
    /// A session of a host that speaks another version.
    refuse: Option<u32>,
    paused: bool,
    last_received: Duration,
}

impl Link {
    /// A guest's side; it begins to announce itself.
    pub fn guest(config: Config, now: Duration) -> Self {
        Self::new(config, false, State::Announcing(Repeat::announcing(now)), now)
    }

    /// A host's side, for one session, whose number nobody can guess.
    pub fn host(config: Config, session: u32, now: Duration) -> Self {
        Self::new(config, true, State::Greeting { session, repeat: Repeat::greeting(now) }, now)
    }

    fn new(config: Config, is_host: bool, state: State, now: Duration) -> Self {
        let core = Core {
            config,
            is_host,
            state,
            events: VecDeque::new(),
            close: None,
            refuse: None,
            paused: false,
            last_received: now,
        };
        Self { decoder: Decoder::new(config.limits.frame as usize), core }
    }

    /// Room for bytes that arrive; empty while the reader has too much to read.
    pub fn space(&mut self) -> &mut [u8] {
        if self.core.buffered() >= UNREAD { &mut [] } else { self.decoder.space() }
    }

    /// So many bytes of [`Link::space`] are here.
    pub fn received(&mut self, count: usize, now: Duration) {
        self.decoder.filled(count);
        self.core.last_received = now;
        self.decode(now);
    }

    fn decode(&mut self, now: Duration) {
        while let Some((head, payload)) = self.decoder.next_frame() {
            self.core.frame(head, payload, now);
        }
        if self.decoder.take_garbage()
            && let State::Open(open) = &mut self.core.state
        {
            open.receiver.gap();
        }
    }

    /// Appends what is to be written now; whether there was anything.
    pub fn poll_transmit(&mut self, now: Duration, wire: &mut Vec<u8>) -> bool {
        let before = wire.len();
        self.core.transmit(now, wire, before + BATCH);
        wire.len() > before
    }

    /// When [`Link::on_timeout`] is to be called.
    pub fn deadline(&self) -> Option<Duration> {
        let partial = self.decoder.is_partial().then(|| self.core.last_received + PARTIAL);
        [partial, self.core.deadline()].into_iter().flatten().min()
    }

    /// The time of [`Link::deadline`] has come.
    pub fn on_timeout(&mut self, now: Duration) {
        if self.decoder.is_partial() && now >= self.core.last_received + PARTIAL {
            self.decoder.give_up();
            // The next frame that is partial gets its time from now on.
            self.core.last_received = now;
            self.decode(now);
        }
        self.core.on_timeout(now);
    }

    /// What happened, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.core.events.pop_front()
    }

    /// The present session.
    pub fn session(&self) -> Option<u32> {
        if let State::Open(open) = &self.core.state { Some(open.session) } else { None }
    }

    /// Takes bytes to send in the present session; how many, 0 if there is no room or no session.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        if let State::Open(open) = &mut self.core.state { open.sender.write(bytes) } else { 0 }
    }

    /// Whether [`Link::write`] takes anything.
    pub fn has_room(&self) -> bool {
        matches!(&self.core.state, State::Open(open) if open.sender.has_room())
    }

    /// Whether [`Link::read`] gives anything.
    pub fn has_received(&self) -> bool {
        self.core.buffered() > 0
    }

    /// Whether all that was written has been acknowledged.
    pub fn is_idle(&self) -> bool {
        !matches!(&self.core.state, State::Open(open) if !open.sender.is_idle())
    }

    /// Moves received bytes of the present session to `into`; how many.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        if let State::Open(open) = &mut self.core.state { open.receiver.read(into) } else { 0 }
    }

    /// Ends the present session, if it is this one. The peer is told, once.
    pub fn close(&mut self, session: u32) {
        let present = match &self.core.state {
            State::Open(open) => open.session,
            State::Greeting { session, .. } => *session,
            _ => return,
        };
        if present == session {
            self.core.close = Some(session);
            self.core.end(session, End::Closed);
        }
    }

    /// While `paused`, the peer is known not to answer: nothing is asked of it.
    pub fn set_paused(&mut self, paused: bool) {
        self.core.paused = paused;
    }

    /// DATA frames that were sent again in this session.
    pub fn retransmitted(&self) -> u64 {
        if let State::Open(open) = &self.core.state { open.sender.retransmitted } else { 0 }
    }
}

impl Core {
    fn buffered(&self) -> usize {
        if let State::Open(open) = &self.state { open.receiver.buffered() } else { 0 }
    }

    fn end(&mut self, session: u32, end: End) {
        self.events.push_back(Event::Ended { session, end });
        self.state = if self.is_host { State::Over } else { State::Waiting };
    }

    fn begin(&mut self, session: u32, peer: Limits) {
        let open = Open {
            session,
            sender: Sender::new(peer.within(self.config.most)),
            receiver: Receiver::new(self.config.limits),
            pong: None,
            welcome: !self.is_host,
        };
        self.state = State::Open(Box::new(open));
        self.events.push_back(Event::Began { session });
    }

    fn frame(&mut self, head: Head, payload: &[u8], now: Duration) {
        match (head.kind, self.is_host) {
            (Kind::Hello, false) => self.hello(head.session, payload),
            (Kind::Announce, true) => self.announced(payload, now),
            (Kind::Welcome, true) => self.welcomed(head.session, payload),
            (Kind::Hello | Kind::Announce | Kind::Welcome, _) => {}
            _ => self.in_session(head, payload, now),
        }
    }

    fn hello(&mut self, session: u32, payload: &[u8]) {
        let Some((version, limits)) = Limits::decode(payload) else { return };
        match &mut self.state {
            // Said again: our answer is late or lost.
            State::Open(open) if open.session == session => open.welcome = true,
            // A host that was ended says hello with a new number.
            _ if version == self.config.version => {
                if let State::Open(open) = &self.state {
                    self.events.push_back(Event::Ended { session: open.session, end: End::Superseded });
                }
                self.begin(session, limits);
            }
            // The answer has our version, with which the host gives up.
            _ => self.refuse = Some(session),
        }
    }

    fn announced(&mut self, payload: &[u8], now: Duration) {
        let Some((version, _)) = Limits::decode(payload) else { return };
        match &mut self.state {
            State::Greeting { .. } if version != self.config.version => self.other_version(version),
            State::Greeting { repeat, .. } => repeat.hurry(now),
            State::Open(open) => {
                // A port keeps the order: this guest has forgotten the session that it had welcomed.
                let session = open.session;
                self.end(session, End::Superseded);
            }
            _ => {}
        }
    }

    fn welcomed(&mut self, session: u32, payload: &[u8]) {
        let Some((version, limits)) = Limits::decode(payload) else { return };
        match self.state {
            State::Greeting { session: ours, .. } if ours == session => {
                if version == self.config.version {
                    self.begin(session, limits);
                } else {
                    self.other_version(version);
                }
            }
            _ => {}
        }
    }

    fn other_version(&mut self, peer: u32) {
        self.events.push_back(Event::Version { peer });
        self.state = State::Over;
    }

    fn in_session(&mut self, head: Head, payload: &[u8], now: Duration) {
        let State::Open(open) = &mut self.state else { return };
        if open.session != head.session {
            return;
        }
        if head.kind == Kind::Close {
            let session = open.session;
            return self.end(session, End::PeerClosed);
        }
        open.sender.acknowledged(head.ack, now);
        match head.kind {
            Kind::Data => open.receiver.data(head.seq, payload, now),
            Kind::Nak => open.sender.missed(),
            Kind::Ping => open.pong = Some(head.seq),
            Kind::Pong => open.sender.answered(head.seq, now),
            _ => {}
        }
    }

    fn transmit(&mut self, now: Duration, wire: &mut Vec<u8>, until: usize) {
        if let Some(session) = self.close.take() {
            encode(wire, Head { kind: Kind::Close, session, seq: 0, ack: 0 }, [&[], &[]]);
        }
        let hello = self.config.limits.encode(self.config.version);
        if let Some(session) = self.refuse.take() {
            encode(wire, Head { kind: Kind::Welcome, session, seq: 0, ack: 0 }, [&hello, &[]]);
        }
        match &mut self.state {
            State::Announcing(repeat) => {
                if repeat.is_due(now) {
                    encode(wire, Head { kind: Kind::Announce, session: 0, seq: 0, ack: 0 }, [&hello, &[]]);
                }
            }
            State::Greeting { session, repeat } => {
                if repeat.is_due(now) {
                    encode(
                        wire,
                        Head { kind: Kind::Hello, session: *session, seq: 0, ack: 0 },
                        [&hello, &[]],
                    );
                }
            }
            State::Open(open) => open.transmit(&hello, self.paused, now, wire, until),
            State::Waiting | State::Over => {}
        }
    }

    fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Announcing(repeat) | State::Greeting { repeat, .. } => Some(repeat.deadline()),
            State::Open(open) => {
                let probe = open.sender.deadline().filter(|_| !self.paused);
                [probe, open.receiver.deadline()].into_iter().flatten().min()
            }
            State::Waiting | State::Over => None,
        }
    }

    fn on_timeout(&mut self, now: Duration) {
        let State::Open(open) = &mut self.state else { return };
        if self.paused {
            return;
        }
        open.sender.on_timeout(now);
        let (unanswered, session) = (open.sender.unanswered(), open.session);
        if self.config.patience > 0 && unanswered >= self.config.patience {
            self.close = Some(session);
            self.end(session, End::Silent(unanswered));
        }
    }
}

impl Open {
    fn transmit(&mut self, hello: &[u8], paused: bool, now: Duration, wire: &mut Vec<u8>, until: usize) {
        let (session, ack) = (self.session, self.receiver.expected());
        // Whether a frame carries the acknowledgement; a welcome's is not looked at.
        let mut carried = false;
        if std::mem::take(&mut self.welcome) {
            encode(wire, Head { kind: Kind::Welcome, session, seq: 0, ack }, [hello, &[]]);
        }
        if let Some(seq) = self.pong.take() {
            encode(wire, Head { kind: Kind::Pong, session, seq, ack }, [&[], &[]]);
            carried = true;
        }
        if self.receiver.take_nak() {
            encode(wire, Head { kind: Kind::Nak, session, seq: 0, ack }, [&[], &[]]);
            carried = true;
        }
        if !paused {
            carried |= self.sender.poll_probe(session, ack, now, wire);
        }
        while wire.len() < until && self.sender.poll_data(session, ack, now, wire) {
            carried = true;
        }
        if !carried && self.receiver.ack_is_due(now) {
            encode(wire, Head { kind: Kind::Ack, session, seq: 0, ack }, [&[], &[]]);
            carried = true;
        }
        if carried {
            self.receiver.acknowledged();
        }
    }
}

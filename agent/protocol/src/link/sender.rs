//! The sending half of a session: frames out, acknowledgements in, probes instead of retransmission on suspicion.

use std::collections::VecDeque;
use std::time::Duration;

use super::frame::{HEADER, Head, Kind, encode};
use super::limits::Limits;

/// Bytes taken from the writer and not yet sent.
const UNSENT: usize = 64 * 1024;

/// First and longest time without progress before a probe.
const PROBE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));

/// A PING on its way.
#[derive(Debug, Clone, Copy)]
struct Probe {
    number: u32,
    /// It counts as unanswered from then on.
    until: Duration,
}

#[derive(Debug)]
pub(super) struct Sender {
    limits: Limits,
    /// The payload of all frames in `lengths`, then what is not framed yet.
    bytes: VecDeque<u8>,
    /// Payload lengths of the frames that are not acknowledged.
    lengths: VecDeque<u16>,
    /// Sum of `lengths`.
    framed: usize,
    /// Number of the first frame in `lengths`.
    first: u32,
    /// So many of `lengths` are out; the rest is to be sent again.
    out: usize,
    /// Sum of the first `out` of `lengths`.
    out_bytes: usize,
    /// The peer missed a frame: nothing new until the answer to a probe.
    missed: bool,
    probe: Option<Probe>,
    next_probe: u32,
    /// Probes in a row without a sign of life.
    unanswered: u32,
    /// When to probe, if nothing happens before. Only while frames are out.
    probe_at: Option<Duration>,
    /// Counts for the user of the link.
    pub(super) retransmitted: u64,
}

impl Sender {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            bytes: VecDeque::new(),
            lengths: VecDeque::new(),
            framed: 0,
            first: 0,
            out: 0,
            out_bytes: 0,
            missed: false,
            probe: None,
            next_probe: 0,
            unanswered: 0,
            probe_at: None,
            retransmitted: 0,
        }
    }

    fn unsent(&self) -> usize {
        self.bytes.len() - self.framed
    }

    /// Takes bytes to send; how many.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(UNSENT.saturating_sub(self.unsent()));
        self.bytes.extend(&bytes[..count]);
        count
    }

    pub(super) fn has_room(&self) -> bool {
        self.unsent() < UNSENT
    }

    /// Whether everything written has been acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// The peer expects the frame `ack` next. Numbers that were never sent are ignored.
    pub(super) fn acknowledged(&mut self, ack: u32, now: Duration) {
        let count = ack.wrapping_sub(self.first) as usize;
        if count == 0 || count > self.lengths.len() {
            return;
        }
        let freed: usize = self.lengths.drain(..count).map(usize::from).sum();
        self.bytes.drain(..freed);
        self.framed -= freed;
        self.first = ack;
        // After going back some frames may be acknowledged that are not out again yet.
        self.out_bytes = self.out_bytes.saturating_sub(freed);
        self.out = self.out.saturating_sub(count);
        if self.out == 0 {
            // Nothing is out: nothing to ask about.
            self.out_bytes = 0;
            self.missed = false;
            self.probe = None;
        }
        self.unanswered = 0;
        self.restart_timer(now);
    }

    fn restart_timer(&mut self, now: Duration) {
        let waits = self.out > 0 && self.probe.is_none();
        self.probe_at = waits.then(|| now + self.patience());
    }

    /// How long without progress until the next probe.
    fn patience(&self) -> Duration {
        PROBE.0.saturating_mul(1 << self.unanswered.min(16)).min(PROBE.1)
    }

    /// The peer says that it missed the first frame that is not acknowledged.
    pub(super) fn missed(&mut self) {
        self.missed |= self.out > 0;
    }

    /// The peer answers the probe `number`; its acknowledgement has been processed.
    pub(super) fn answered(&mut self, number: u32, now: Duration) {
        if self.probe.is_none_or(|probe| probe.number != number) {
            return;
        }
        self.probe = None;
        self.missed = false;
        self.unanswered = 0;
        // What went out before the probe and is not acknowledged now is lost, and nothing went out after it.
        self.retransmitted += self.out as u64;
        self.out = 0;
        self.out_bytes = 0;
        self.restart_timer(now);
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.probe.map(|probe| probe.until).or(self.probe_at)
    }

    /// The deadline of [`Sender::deadline`] has passed.
    pub(super) fn on_timeout(&mut self, now: Duration) {
        if let Some(probe) = self.probe {
            if probe.until <= now {
                self.probe = None;
                self.unanswered += 1;
                self.missed = true;
                self.probe_at = None;
            }
        } else if self.probe_at.is_some_and(|at| at <= now) {
            self.probe_at = None;
            self.missed = self.out > 0;
        }
    }

    /// Appends a probe, if one is due.
    pub(super) fn poll_probe(&mut self, session: u32, ack: u32, now: Duration, wire: &mut Vec<u8>) -> bool {
        if !self.missed || self.probe.is_some() {
            return false;
        }
        let number = self.next_probe;
        self.next_probe = number.wrapping_add(1);
        self.probe = Some(Probe { number, until: now + self.patience() });
        self.probe_at = None;
        encode(wire, Head { kind: Kind::Ping, session, seq: number, ack }, [&[], &[]]);
        true
    }

    /// Appends one DATA frame, if there is one and the limits allow it.
    pub(super) fn poll_data(&mut self, session: u32, ack: u32, now: Duration, wire: &mut Vec<u8>) -> bool {
        if self.missed || self.probe.is_some() || self.out >= self.limits.frames as usize {
            return false;
        }
        let budget = (self.limits.bytes as usize).saturating_sub(self.out_bytes + self.out * HEADER);
        let (length, again) = match self.lengths.get(self.out) {
            Some(length) => (usize::from(*length), true),
            None => (self.unsent().min(self.longest()).min(budget.saturating_sub(HEADER)), false),
        };
        // A frame of few bytes because the window ends would cost the peer a buffer for nothing: it waits.
        let cut_by_window = !again && length < self.unsent().min(self.longest());
        if length == 0 || length + HEADER > budget || cut_by_window {
            return false;
        }
        let seq = self.first.wrapping_add(u32::try_from(self.out).unwrap_or(0));
        let (start, end) = (self.out_bytes, self.out_bytes + length);
        let (front, back) = self.bytes.as_slices();
        let split = front.len();
        let parts = [
            &front[start.min(split)..end.min(split)],
            &back[start.saturating_sub(split)..end.saturating_sub(split)],
        ];
        encode(wire, Head { kind: Kind::Data, session, seq, ack }, parts);
        if !again {
            self.lengths.push_back(u16::try_from(length).unwrap_or(u16::MAX));
            self.framed += length;
        }
        self.out += 1;
        self.out_bytes = end;
        if self.probe_at.is_none() {
            self.restart_timer(now);
        }
        true
    }

    /// Longest payload.
    fn longest(&self) -> usize {
        (self.limits.frame.min(self.limits.bytes) as usize - HEADER).min(usize::from(u16::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::super::decoder::Decoder;
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LIMITS: Limits = Limits { frame: 256, frames: 3, bytes: 700 };

    /// All that goes out now: kind, number, length.
    fn flush(sender: &mut Sender, now: Duration) -> Vec<(Kind, u32, usize)> {
        let mut wire = Vec::new();
        while sender.poll_probe(1, 0, now, &mut wire) || sender.poll_data(1, 0, now, &mut wire) {}
        let mut decoder = Decoder::new(wire.len());
        decoder.space()[..wire.len()].copy_from_slice(&wire);
        decoder.filled(wire.len());
        let mut frames = Vec::new();
        while let Some((head, payload)) = decoder.next_frame() {
            frames.push((head.kind, head.seq, payload.len()));
        }
        frames
    }

    #[test]
    fn keeps_within_the_limits() {
        let mut sender = Sender::new(LIMITS);
        assert_eq!(sender.write(&[5; 1000]), 1000);
        // 2 frames of 256; a third would be cut to 188, so it waits.
        assert_eq!(flush(&mut sender, MS), [(Kind::Data, 0, 228), (Kind::Data, 1, 228)]);
        sender.acknowledged(1, MS);
        assert_eq!(flush(&mut sender, MS), [(Kind::Data, 2, 228)]);
        sender.acknowledged(3, MS);
        assert_eq!(flush(&mut sender, MS), [(Kind::Data, 3, 228), (Kind::Data, 4, 88)]);
        sender.write(b"x");
        assert_eq!(flush(&mut sender, MS), [(Kind::Data, 5, 1)]);
        sender.write(b"y");
        assert_eq!(flush(&mut sender, MS), [], "3 frames are out");
        sender.acknowledged(6, MS);
        assert_eq!(flush(&mut sender, MS), [(Kind::Data, 6, 1)]);
        assert!(!sender.is_idle());
        sender.acknowledged(7, MS);
        assert!(sender.is_idle() && sender.deadline().is_none());
    }

    #[test]
    fn buffers_a_bounded_amount() {
        let mut sender = Sender::new(LIMITS);
        assert_eq!(sender.write(&vec![0; 10 * UNSENT]), UNSENT);
        assert!(!sender.has_room());
        assert_eq!(sender.write(b"x"), 0);
    }

    #[test]
    fn ignores_acknowledgements_of_what_was_never_sent() {
        let mut sender = Sender::new(LIMITS);
        sender.write(b"x");
        flush(&mut sender, MS);
        for wrong in [2, 1000, u32::MAX] {
            sender.acknowledged(wrong, MS);
        }
        assert!(!sender.is_idle());
    }

    #[test]
    fn silence_costs_a_probe_and_sends_nothing_again() {
        let mut sender = Sender::new(LIMITS);
        sender.write(b"x");
        flush(&mut sender, Duration::ZERO);
        let mut now = Duration::ZERO;
        let mut waits = Vec::new();
        for number in 0..12 {
            let at = sender.deadline().unwrap();
            waits.push(at.saturating_sub(now).as_millis());
            now = at;
            sender.on_timeout(now);
            assert_eq!(flush(&mut sender, now), [(Kind::Ping, number, 0)]);
        }
        assert_eq!(waits, [200, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        assert_eq!(sender.unanswered(), 11);
        // An answer to an old probe proves nothing; the last one's does.
        sender.answered(10, now);
        assert_eq!(flush(&mut sender, now), []);
        sender.answered(11, now);
        assert_eq!(flush(&mut sender, now), [(Kind::Data, 0, 1)]);
        assert_eq!((sender.unanswered(), sender.retransmitted), (0, 1));
    }

    #[test]
    fn goes_back_to_what_was_missed_after_a_probe() {
        let mut sender = Sender::new(LIMITS);
        for byte in [b"a", b"b", b"c"] {
            sender.write(byte);
            flush(&mut sender, MS);
        }
        // The peer got frame 0, then frame 2.
        sender.acknowledged(1, MS);
        sender.missed();
        sender.write(b"d");
        assert_eq!(flush(&mut sender, MS), [(Kind::Ping, 0, 0)]);
        sender.acknowledged(1, MS);
        sender.answered(0, MS);
        assert_eq!(flush(&mut sender, MS), [(Kind::Data, 1, 1), (Kind::Data, 2, 1), (Kind::Data, 3, 1)]);
        sender.acknowledged(4, MS);
        assert!(sender.is_idle());
    }

    #[test]
    fn a_probe_whose_answer_shows_no_loss_changes_nothing() {
        let mut sender = Sender::new(LIMITS);
        sender.write(b"x");
        flush(&mut sender, MS);
        sender.on_timeout(sender.deadline().unwrap());
        assert_eq!(flush(&mut sender, MS), [(Kind::Ping, 0, 0)]);
        sender.acknowledged(1, MS);
        sender.answered(0, MS);
        assert!(sender.is_idle() && sender.deadline().is_none());
        assert_eq!((flush(&mut sender, MS), sender.retransmitted), (vec![], 0));
    }

    #[test]
    fn a_probe_of_an_idle_sender_is_not_repeated_for_ever() {
        let mut sender = Sender::new(LIMITS);
        sender.write(b"x");
        flush(&mut sender, MS);
        sender.on_timeout(sender.deadline().unwrap());
        flush(&mut sender, MS);
        // The acknowledgement arrives, the probe's answer is lost.
        sender.acknowledged(1, MS);
        for _ in 0..3 {
            let Some(at) = sender.deadline() else { break };
            sender.on_timeout(at);
            flush(&mut sender, at);
        }
        assert!(sender.deadline().is_none() && sender.unanswered() == 0);
    }
}

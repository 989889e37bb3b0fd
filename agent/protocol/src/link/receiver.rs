//! The receiving half of a session: frames in order, and when to acknowledge them.

use std::collections::VecDeque;
use std::time::Duration;

use super::limits::Limits;

/// Longest time a frame stays unacknowledged, in the hope of data to send the acknowledgement along with.
const ACK_DELAY: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Receiver {
    /// In order, not read yet.
    bytes: VecDeque<u8>,
    /// Number of the frame that comes next.
    expected: u32,
    /// Frames and bytes not acknowledged yet.
    owed: u32,
    owed_bytes: u32,
    /// Owing so much is acknowledged at once: a quarter of what the sender may have outstanding.
    eager: (u32, u32),
    ack_at: Option<Duration>,
    /// A NAK is to be sent.
    nak: bool,
    /// A NAK for this number went out: the next one waits for progress or for the sender's probe.
    nakked: Option<u32>,
}

impl Receiver {
    /// `limits` are our own, as the peer knows them.
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            bytes: VecDeque::new(),
            expected: 0,
            owed: 0,
            owed_bytes: 0,
            eager: ((limits.frames / 4).max(1), limits.bytes / 4),
            ack_at: None,
            nak: false,
            nakked: None,
        }
    }

    pub(super) fn expected(&self) -> u32 {
        self.expected
    }

    /// A DATA frame is here.
    pub(super) fn data(&mut self, seq: u32, payload: &[u8], now: Duration) {
        if seq == self.expected {
            self.expected = seq.wrapping_add(1);
            self.nakked = None;
            self.nak = false;
            self.bytes.extend(payload);
            self.owed += 1;
            self.owed_bytes =
                self.owed_bytes.saturating_add(u32::try_from(payload.len()).unwrap_or(u32::MAX));
            let eager = self.owed >= self.eager.0 || self.owed_bytes >= self.eager.1;
            let at = if eager { now } else { now + ACK_DELAY };
            self.ack_at = Some(self.ack_at.map_or(at, |earlier| earlier.min(at)));
        } else if self.expected.wrapping_sub(seq) <= u32::MAX / 2 {
            // Seen before: our acknowledgement got lost.
            self.ack_at.get_or_insert(now + ACK_DELAY);
        } else {
            self.gap();
        }
    }

    /// A frame seems to be missing.
    pub(super) fn gap(&mut self) {
        if self.nakked != Some(self.expected) {
            self.nak = true;
        }
    }

    /// Whether a NAK is due; it also acknowledges.
    pub(super) fn take_nak(&mut self) -> bool {
        let due = std::mem::take(&mut self.nak);
        if due {
            self.nakked = Some(self.expected);
        }
        due
    }

    /// Whether an acknowledgement is due with no data to carry it.
    pub(super) fn ack_is_due(&self, now: Duration) -> bool {
        self.ack_at.is_some_and(|at| at <= now)
    }

    /// A frame with our `ack` goes out.
    pub(super) fn acknowledged(&mut self) {
        self.owed = 0;
        self.owed_bytes = 0;
        self.ack_at = None;
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.ack_at
    }

    /// Moves bytes to `into`; how many.
    pub(super) fn read(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.bytes.len());
        let (front, back) = self.bytes.as_slices();
        let split = count.min(front.len());
        into[..split].copy_from_slice(&front[..split]);
        into[split..count].copy_from_slice(&back[..count - split]);
        self.bytes.drain(..count);
        count
    }

    /// Bytes not read yet.
    pub(super) fn buffered(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { frame: 256, frames: 8, bytes: 2048 };
    const MS: Duration = Duration::from_millis(1);

    fn text(receiver: &mut Receiver) -> String {
        let mut into = [0; 100];
        let count = receiver.read(&mut into);
        String::from_utf8(into[..count].to_vec()).unwrap()
    }

    #[test]
    fn takes_frames_in_order_only() {
        let mut receiver = Receiver::new(LIMITS);
        receiver.data(0, b"a", MS);
        receiver.data(2, b"c", MS);
        receiver.data(0, b"a", MS);
        receiver.data(1, b"b", MS);
        receiver.data(u32::MAX, b"?", MS);
        receiver.data(2, b"c", MS);
        assert_eq!((text(&mut receiver), receiver.expected()), ("abc".to_owned(), 3));
    }

    #[test]
    fn numbers_wrap() {
        let mut receiver = Receiver::new(LIMITS);
        receiver.expected = u32::MAX;
        receiver.data(0, b"?", MS);
        assert!(receiver.take_nak());
        receiver.data(u32::MAX, b"a", MS);
        receiver.data(0, b"b", MS);
        assert_eq!((text(&mut receiver), receiver.expected()), ("ab".to_owned(), 1));
    }

    #[test]
    fn one_nak_per_gap() {
        let mut receiver = Receiver::new(LIMITS);
        receiver.data(1, b"b", MS);
        assert!(receiver.take_nak());
        receiver.data(2, b"c", MS);
        receiver.gap();
        assert!(!receiver.take_nak());
        receiver.data(0, b"a", MS);
        receiver.data(2, b"c", MS);
        assert!(receiver.take_nak(), "the next gap is another");
    }

    #[test]
    fn a_gap_that_is_filled_at_once_needs_no_nak() {
        let mut receiver = Receiver::new(LIMITS);
        receiver.gap();
        receiver.data(0, b"a", MS);
        assert!(!receiver.take_nak());
    }

    #[test]
    fn acknowledges_a_quarter_at_once_and_the_rest_in_time() {
        let mut receiver = Receiver::new(LIMITS);
        receiver.data(0, b"a", MS);
        assert!(!receiver.ack_is_due(MS));
        assert_eq!(receiver.deadline(), Some(MS + ACK_DELAY));
        receiver.data(1, b"b", 2 * MS);
        assert!(receiver.ack_is_due(2 * MS), "two frames of eight");
        receiver.acknowledged();
        assert_eq!(receiver.deadline(), None);
        receiver.data(2, &[0; 512], MS);
        assert!(receiver.ack_is_due(MS), "512 bytes of 2048");
        receiver.acknowledged();
        receiver.data(2, &[0; 512], MS);
        assert!(!receiver.ack_is_due(MS) && receiver.ack_is_due(MS + ACK_DELAY), "a repeated frame, again");
    }
}

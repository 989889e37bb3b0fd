//! Asking and waiting for answers.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::time::Instant;

use super::arp::Claim;
use super::client::{Client, Outcome, Step};
use super::lease::now;
use super::message::Answer;
use crate::mac::Mac;

/// The way from a sandbox to the DHCP servers of its network, and back. None but what comes from the network outside is
/// heard: servers' answers, and ARP.
pub trait Line: Send {
    /// Sends a frame, as the sandbox would.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// A frame that came; none if there is none until then.
    fn receive(&mut self, until: Instant) -> io::Result<Option<Vec<u8>>>;
}

/// A number for a search, which nobody outside can know.
pub(crate) fn number() -> u32 {
    // The keys of the hash are by chance.
    let number = RandomState::new().build_hasher().finish();
    u32::try_from(number >> 32).unwrap_or_default()
}

/// Lets a client talk until it is done, for the sandbox with this Ethernet address.
pub fn exchange(mut client: Client, mac: Mac, line: &mut dyn Line) -> io::Result<Outcome> {
    let mut step = client.begin();
    let (mut until, mut sent) = (Instant::now(), now());
    loop {
        match step {
            Step::Send(frame, wait) => {
                line.send(&frame)?;
                // A lease is counted from when it was asked for (RFC 2131, 4.4.1).
                (until, sent) = (Instant::now() + wait, now());
            }
            Step::Wait => {}
            Step::Done(outcome) => return Ok(outcome),
        }
        step = match line.receive(until)? {
            Some(frame) => {
                if let Some(answer) = client.locate(&frame) {
                    line.send(&answer)?;
                }
                match (Answer::parse(&frame, mac), Claim::parse(&frame)) {
                    (Some(answer), _) => client.hear(&answer, sent),
                    (None, Some(claim)) => client.hear_claim(claim),
                    (None, None) => Step::Wait,
                }
            }
            None => client.timeout(),
        };
    }
}

//! What a client says when, and what it makes of answers: RFC 2131, 4.4. It knows no clock and no socket.
//!
//! An address that was leased is asked for by ARP before it is used (RFC 2131, 3.1, step 5). Where somebody has it, it is
//! declined, and another asked for.

use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::wire::DhcpMessageType;

use super::arp::{self, Claim, probe};
use super::lease::Lease;
use super::message::{Answer, AnswerKind, Identity, Offered, Question};

/// How often a server is looked for, and how long an answer may take each time (RFC 2131, 4.1: twice as long as before,
/// and a bit by chance; it begins with 4 s, for links of another age).
const TRIES: u32 = 4;
const FIRST: Duration = Duration::from_secs(2);
/// How often the server that was chosen is asked for what it offered.
const REQUESTS: u32 = 3;
/// How often one may offer what it then refuses.
const REFUSALS: u32 = 2;
/// How long a server may take that has leased the address already.
const RENEWAL: Duration = Duration::from_secs(4);
/// How often is asked whether somebody has the address, and how long an answer may take each time. RFC 5227 has three
/// questions in up to seven seconds, for links of which nothing is known; a container's start waits for these here, and a
/// neighbour on Ethernet answers within some milliseconds.
const PROBES: u32 = 2;
const PROBE: Duration = Duration::from_millis(200);
/// How often an address may be declined, and how long nothing is asked after that (RFC 2131, 3.1, step 5).
const DECLINES: u32 = 2;
const DECLINED: Duration = Duration::from_secs(10);

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this frame, and wait so long for an answer.
    Send(Vec<u8>, Duration),
    /// Go on waiting.
    Wait,
    /// It is over.
    Done(Outcome),
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is a lease, and what goes with it.
    Bound(Box<Lease>, Offered),
    /// A server said no.
    Refused(Ipv4Addr, String),
    /// Somebody has the address that a server gave, which was told to the server.
    Taken(Ipv4Addr, Claim),
    /// Nobody said anything.
    Silent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Looks for a server.
    Selecting,
    /// Asks one for the address that it offered.
    Requesting { server: Ipv4Addr, address: Ipv4Addr, tries: u32 },
    /// Asks whether somebody has the address that it was given.
    Probing { lease: Box<Lease>, offered: Offered, sent: u32 },
    /// Has told the server that somebody has its address, and asks again after a while, or not.
    Declined { again: bool },
    /// Asks the server of a lease for more time, or anyone.
    Extending { lease: Box<Lease>, anyone: bool },
}

/// A client.
#[derive(Clone, Debug)]
pub struct Client {
    identity: Identity,
    xid: u32,
    state: State,
    /// The only address that is wanted.
    only: Option<Ipv4Addr>,
    tries: u32,
    refusals: u32,
    declines: u32,
    /// Who has the address that was declined last, and which server gave it.
    taken: Option<(Ipv4Addr, Claim)>,
    waited: Duration,
}

impl Client {
    fn new(identity: Identity, xid: u32, state: State, only: Option<Ipv4Addr>) -> Self {
        Self {
            identity,
            xid,
            state,
            only,
            tries: 0,
            refusals: 0,
            declines: 0,
            taken: None,
            waited: Duration::ZERO,
        }
    }

    /// One that has no lease. With `only`, no other address will do, and a server is looked for once: it was lost, and is
    /// asked for again and again. `xid` is by chance.
    pub fn acquire(identity: Identity, only: Option<Ipv4Addr>, xid: u32) -> Self {
        Self::new(identity, xid, State::Selecting, only)
    }

    /// One that wants more time, of the server that leased the address, or of `anyone`.
    pub fn extend(lease: &Lease, anyone: bool, xid: u32) -> Self {
        let state = State::Extending { lease: Box::new(lease.clone()), anyone };
        Self::new(lease.identity.clone(), xid, state, None)
    }

    /// The frame that gives a lease back. There is no answer to it.
    pub fn release(lease: &Lease, xid: u32) -> Vec<u8> {
        let question = Question {
            own: Some(lease.address.addr()),
            server: Some(lease.server),
            to: Some((lease.server, lease.server_mac)),
            ..question(DhcpMessageType::Release, xid)
        };
        question.frame(&lease.identity)
    }

    /// What begins it.
    pub fn begin(&mut self) -> Step {
        match &self.state {
            State::Extending { lease, anyone } => {
                let own = lease.address.addr();
                let to = (!anyone).then_some((lease.server, lease.server_mac));
                let question =
                    Question { own: Some(own), to, ..question(DhcpMessageType::Request, self.xid) };
                Step::Send(question.frame(&self.identity), RENEWAL)
            }
            _ => self.discover(),
        }
    }

    /// Nobody answered in time.
    pub fn timeout(&mut self) -> Step {
        match &mut self.state {
            State::Extending { .. } => Step::Done(Outcome::Silent),
            State::Requesting { server, address, tries } if *tries < REQUESTS => {
                let (server, address, tries) = (*server, *address, *tries);
                self.request(server, address, tries)
            }
            State::Probing { lease, sent, .. } if *sent < PROBES => {
                *sent += 1;
                Step::Send(probe(self.identity.mac, lease.address.addr()), PROBE)
            }
            State::Probing { lease, offered, .. } => {
                Step::Done(Outcome::Bound(lease.clone(), offered.clone()))
            }
            State::Declined { again: false } => Step::Done(self.silent()),
            // The one that offered has gone, or never meant it: somebody else may.
            State::Requesting { .. } | State::Selecting | State::Declined { .. } => self.discover(),
        }
    }

    /// Somebody says of an address that it is theirs.
    pub fn hear_claim(&mut self, claim: Claim) -> Step {
        match &self.state {
            // Its own probe comes back from some switches.
            State::Probing { lease, .. }
                if claim.address == lease.address.addr() && claim.mac != self.identity.mac =>
            {
                self.decline(lease.server, claim)
            }
            _ => Step::Wait,
        }
    }

    /// Somebody said something to what was sent in the second `now`.
    pub fn hear(&mut self, answer: &Answer, now: u64) -> Step {
        if answer.xid != self.xid {
            return Step::Wait;
        }
        match (&self.state, answer.kind) {
            (State::Selecting, AnswerKind::Offer) => match (answer.server(), answer.net(), answer.times()) {
                (Some(server), Ok(net), Ok(_)) if self.only.is_none_or(|only| only == net.addr()) => {
                    self.request(server, net.addr(), 0)
                }
                // There may be better ones.
                _ => Step::Wait,
            },
            (State::Requesting { server, address, .. }, AnswerKind::Ack | AnswerKind::Nak)
                if answer.server() == Some(*server) =>
            {
                let (server, address) = (*server, *address);
                if answer.kind == AnswerKind::Nak {
                    return self.refused(server, answer.words());
                }
                match self.bound(answer, now) {
                    Ok((lease, _)) if lease.address.addr() != address => self
                        .refused(server, format!("it offered {address} and gave {}", lease.address.addr())),
                    Ok((lease, offered)) => {
                        self.state = State::Probing { lease: Box::new(lease), offered, sent: 0 };
                        self.timeout()
                    }
                    Err(why) => self.refused(server, why),
                }
            }
            (State::Extending { lease, anyone }, AnswerKind::Ack | AnswerKind::Nak) => {
                let Some(server) = answer.server().filter(|server| *anyone || *server == lease.server) else {
                    return Step::Wait;
                };
                if answer.kind == AnswerKind::Nak {
                    return Step::Done(Outcome::Refused(server, answer.words()));
                }
                let own = lease.address.addr();
                Step::Done(match self.bound(answer, now) {
                    Ok((lease, offered)) if lease.address.addr() == own => {
                        Outcome::Bound(Box::new(lease), offered)
                    }
                    Ok((lease, _)) => {
                        Outcome::Refused(server, format!("it gave {} for {own}", lease.address.addr()))
                    }
                    // What cannot be read is no answer: there is time for others yet.
                    Err(_) => return Step::Wait,
                })
            }
            _ => Step::Wait,
        }
    }

    /// The frame that answers another, if that asks where a leased address is. Who renews a lease is answered there (RFC 2131,
    /// 4.1), and a sandbox that does not run cannot say so.
    pub fn locate(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let State::Extending { lease, .. } = &self.state else { return None };
        arp::answer(frame, Claim { address: lease.address.addr(), mac: self.identity.mac })
    }

    fn bound(&self, answer: &Answer, now: u64) -> Result<(Lease, Offered), String> {
        let server = answer.server().ok_or("it did not say which server it is")?;
        let lease =
            Lease::new(self.identity.clone(), answer.net()?, (server, answer.from), answer.times()?, now);
        Ok((lease, answer.offered()))
    }

    fn discover(&mut self) -> Step {
        if self.tries == if self.only.is_some() { 1 } else { TRIES } {
            return Step::Done(self.silent());
        }
        let wait = self.wait(self.tries);
        self.tries += 1;
        self.state = State::Selecting;
        // A number of its own for each search: late answers to another are none to this.
        self.xid = self.xid.wrapping_add(1);
        let question = Question {
            secs: self.secs(),
            wanted: self.only,
            ..question(DhcpMessageType::Discover, self.xid)
        };
        self.waited += wait;
        Step::Send(question.frame(&self.identity), wait)
    }

    fn request(&mut self, server: Ipv4Addr, address: Ipv4Addr, tries: u32) -> Step {
        let wait = self.wait(tries);
        self.state = State::Requesting { server, address, tries: tries + 1 };
        let question = Question {
            secs: self.secs(),
            wanted: Some(address),
            server: Some(server),
            ..question(DhcpMessageType::Request, self.xid)
        };
        self.waited += wait;
        Step::Send(question.frame(&self.identity), wait)
    }

    /// Nobody has anything to say any more: a server that gave what somebody has may have had nothing else.
    fn silent(&self) -> Outcome {
        self.taken.map_or(Outcome::Silent, |(server, by)| Outcome::Taken(server, by))
    }

    /// Tells a server that the address it gave is somebody's.
    fn decline(&mut self, server: Ipv4Addr, by: Claim) -> Step {
        self.declines += 1;
        let again = self.only.is_none() && self.declines <= DECLINES;
        let wait = if again { DECLINED } else { Duration::ZERO };
        self.waited += wait;
        self.state = State::Declined { again };
        self.taken = Some((server, by));
        let question = Question {
            wanted: Some(by.address),
            server: Some(server),
            ..question(DhcpMessageType::Decline, self.xid)
        };
        Step::Send(question.frame(&self.identity), wait)
    }

    fn refused(&mut self, server: Ipv4Addr, why: String) -> Step {
        self.refusals += 1;
        if self.refusals > REFUSALS {
            return Step::Done(Outcome::Refused(server, why));
        }
        match self.discover() {
            Step::Done(_) => Step::Done(Outcome::Refused(server, why)),
            step => step,
        }
    }

    /// How long an answer may take: twice as long each time, and up to half a second more or less by chance.
    fn wait(&self, tries: u32) -> Duration {
        let chance = Duration::from_millis(u64::from(self.xid.rotate_left(tries * 8) % 1024));
        (FIRST * (1 << tries.min(4)) + chance).saturating_sub(Duration::from_millis(512))
    }

    fn secs(&self) -> u16 {
        u16::try_from(self.waited.as_secs()).unwrap_or(u16::MAX)
    }
}

fn question(kind: DhcpMessageType, xid: u32) -> Question {
    Question { kind, xid, secs: 0, own: None, wanted: None, server: None, to: None }
}

#[cfg(test)]
mod tests;

//! What a client says when, and what it makes of answers: RFC 2131, 4.4. It knows no clock and no socket.

use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::wire::DhcpMessageType;

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
    /// Nobody said anything.
    Silent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Looks for a server.
    Selecting,
    /// Asks one for the address that it offered.
    Requesting { server: Ipv4Addr, address: Ipv4Addr, tries: u32 },
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
    waited: Duration,
}

impl Client {
    fn new(identity: Identity, xid: u32, state: State, only: Option<Ipv4Addr>) -> Self {
        Self { identity, xid, state, only, tries: 0, refusals: 0, waited: Duration::ZERO }
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
        match self.state {
            State::Extending { .. } => Step::Done(Outcome::Silent),
            State::Requesting { server, address, tries } if tries < REQUESTS => {
                self.request(server, address, tries)
            }
            // The one that offered has gone, or never meant it: somebody else may.
            State::Requesting { .. } | State::Selecting => self.discover(),
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
                    Ok((lease, offered)) => Step::Done(Outcome::Bound(Box::new(lease), offered)),
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

    fn bound(&self, answer: &Answer, now: u64) -> Result<(Lease, Offered), String> {
        let server = answer.server().ok_or("it did not say which server it is")?;
        let lease =
            Lease::new(self.identity.clone(), answer.net()?, (server, answer.from), answer.times()?, now);
        Ok((lease, answer.offered()))
    }

    fn discover(&mut self) -> Step {
        if self.tries == if self.only.is_some() { 1 } else { TRIES } {
            return Step::Done(Outcome::Silent);
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
mod tests {
    use super::*;
    use crate::dhcp::message::option;
    use crate::mac::Mac;
    use proptest::prelude::*;
    use smoltcp::wire::DhcpPacket;
    use std::collections::BTreeMap;

    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);

    fn identity() -> Identity {
        Identity {
            mac: Mac([2, 0, 0, 0, 0, 9]),
            client_id: vec![1, 2, 3],
            provide: BTreeMap::new(),
            request: vec![1],
        }
    }

    fn answer(kind: AnswerKind, xid: u32, server: Ipv4Addr, address: Ipv4Addr) -> Answer {
        let options = BTreeMap::from([
            (option::SERVER, server.octets().to_vec()),
            (option::SUBNET_MASK, vec![255, 255, 255, 0]),
            (option::LEASE_TIME, 100_u32.to_be_bytes().to_vec()),
        ]);
        Answer { kind, xid, address, from: [2, 0, 0, 0, 0, 1], options }
    }

    /// What a frame asks: its kind, its number, and the address that it wants.
    fn sent(step: &Step) -> (u8, u32, Option<Vec<u8>>) {
        let Step::Send(frame, _) = step else { panic!("{step:?}") };
        let message = DhcpPacket::new_checked(&frame[42..]).unwrap();
        let option = |kind| message.options().find(|one| one.kind == kind).map(|one| one.data.to_vec());
        (option(53).unwrap()[0], message.transaction_id(), option(50))
    }

    fn leased() -> Lease {
        Lease::new(
            identity(),
            "192.0.2.50/24".parse().unwrap(),
            (SERVER, [2, 0, 0, 0, 0, 1]),
            Some((100, 50, 88)),
            10,
        )
    }

    #[test]
    fn the_first_offer_is_asked_for_and_acknowledged() {
        let mut client = Client::acquire(identity(), None, 40);
        let (kind, xid, wanted) = sent(&client.begin());
        assert_eq!((kind, wanted), (1, None));
        assert_eq!(client.hear(&answer(AnswerKind::Offer, xid + 1, SERVER, OWN), 0), Step::Wait, "another's");
        assert_eq!(
            client.hear(&answer(AnswerKind::Ack, xid, SERVER, OWN), 0),
            Step::Wait,
            "nobody asked yet"
        );
        let request = client.hear(&answer(AnswerKind::Offer, xid, SERVER, OWN), 0);
        assert_eq!(sent(&request), (3, xid, Some(OWN.octets().to_vec())));
        assert_eq!(client.hear(&answer(AnswerKind::Offer, xid, OTHER, OWN), 0), Step::Wait, "too late");
        assert_eq!(client.hear(&answer(AnswerKind::Nak, xid, OTHER, OWN), 0), Step::Wait, "not its business");
        match client.hear(&answer(AnswerKind::Ack, xid, SERVER, OWN), 10) {
            Step::Done(Outcome::Bound(lease, _)) => assert_eq!(*lease, leased()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn silence_ends_it() {
        let mut client = Client::acquire(identity(), None, 40);
        let mut step = client.begin();
        let mut waits = Vec::new();
        while let Step::Send(_, wait) = step {
            waits.push(wait);
            step = client.timeout();
        }
        assert_eq!(step, Step::Done(Outcome::Silent));
        assert_eq!(waits.len(), TRIES as usize);
        assert!(waits.is_sorted() && waits.iter().sum::<Duration>() < Duration::from_secs(40), "{waits:?}");
    }

    #[test]
    fn a_server_that_goes_is_looked_for_again_and_one_that_refuses_is_believed() {
        let mut client = Client::acquire(identity(), None, 40);
        let (_, xid, _) = sent(&client.begin());
        let mut step = client.hear(&answer(AnswerKind::Offer, xid, SERVER, OWN), 0);
        for _ in 0..REQUESTS {
            assert_eq!(sent(&step).0, 3);
            step = client.timeout();
        }
        for _ in 0..REFUSALS {
            let (kind, xid, _) = sent(&step);
            assert_eq!(kind, 1);
            sent(&client.hear(&answer(AnswerKind::Offer, xid, SERVER, OWN), 0));
            step = client.hear(&answer(AnswerKind::Nak, xid, SERVER, Ipv4Addr::UNSPECIFIED), 0);
        }
        let (_, xid, _) = sent(&step);
        client.hear(&answer(AnswerKind::Offer, xid, SERVER, OWN), 0);
        // Another address than the one that was offered is none.
        let end = client.hear(&answer(AnswerKind::Ack, xid, SERVER, [192, 0, 2, 60].into()), 0);
        assert!(matches!(end, Step::Done(Outcome::Refused(SERVER, _))), "{end:?}");
    }

    #[test]
    fn who_wants_one_address_takes_no_other() {
        let mut client = Client::acquire(identity(), Some(OWN), 40);
        let (kind, xid, wanted) = sent(&client.begin());
        assert_eq!((kind, wanted), (1, Some(OWN.octets().to_vec())));
        assert_eq!(
            client.hear(&answer(AnswerKind::Offer, xid, SERVER, [192, 0, 2, 60].into()), 0),
            Step::Wait
        );
        assert_eq!(sent(&client.hear(&answer(AnswerKind::Offer, xid, SERVER, OWN), 0)).0, 3);
    }

    #[test]
    fn a_lease_is_extended_by_its_server_or_when_it_matters_by_anyone() {
        let mut client = Client::extend(&leased(), false, 40);
        let step = client.begin();
        let (kind, xid, wanted) = sent(&step);
        // RFC 2131, table 4: in RENEWING the address is in `ciaddr` and in no option.
        assert_eq!((kind, wanted), (3, None));
        let Step::Send(frame, _) = &step else { panic!() };
        assert_eq!(&frame[..6], [2, 0, 0, 0, 0, 1]);
        assert_eq!(client.hear(&answer(AnswerKind::Nak, xid, OTHER, OWN), 0), Step::Wait);
        let mut silent = client.clone();
        assert_eq!(silent.timeout(), Step::Done(Outcome::Silent));
        match client.hear(&answer(AnswerKind::Ack, xid, SERVER, OWN), 60) {
            Step::Done(Outcome::Bound(lease, _)) => assert_eq!(lease.since, 60),
            other => panic!("{other:?}"),
        }
        let mut client = Client::extend(&leased(), true, 40);
        let step = client.begin();
        let Step::Send(frame, _) = &step else { panic!() };
        assert_eq!(&frame[..6], [0xff; 6]);
        let end = client.hear(&answer(AnswerKind::Nak, sent(&step).1, OTHER, OWN), 0);
        assert!(matches!(end, Step::Done(Outcome::Refused(OTHER, _))), "{end:?}");
    }

    proptest! {
        /// Whatever is heard, and whenever nothing is: it ends, and never with an address that it did not ask for.
        #[test]
        fn it_always_ends(events in proptest::collection::vec((0_u8..6, any::<bool>(), any::<bool>(), any::<bool>()), 0..60), only: bool, renew in 0_u8..3) {
            let mut client = match renew {
                0 => Client::acquire(identity(), only.then_some(OWN), 40),
                one => Client::extend(&leased(), one == 2, 40),
            };
            let mut step = client.begin();
            let mut last = 40;
            let mut events = events.into_iter();
            for _ in 0..500 {
                if let Step::Send(..) = &step {
                    last = sent(&step).1;
                }
                if let Step::Done(outcome) = &step {
                    if let Outcome::Bound(lease, _) = outcome {
                        prop_assert!(lease.address.addr() == OWN || (!only && renew == 0));
                    }
                    return Ok(());
                }
                step = match events.next() {
                    Some((kind @ 0..=2, fresh, same, own)) => {
                        let kind = [AnswerKind::Offer, AnswerKind::Ack, AnswerKind::Nak][usize::from(kind)];
                        let server = if same { SERVER } else { OTHER };
                        let address = if own { OWN } else { Ipv4Addr::new(192, 0, 2, 60) };
                        client.hear(&answer(kind, if fresh { last } else { 1 }, server, address), 5)
                    }
                    _ => client.timeout(),
                };
            }
            prop_assert!(false, "it goes on and on");
        }
    }
}

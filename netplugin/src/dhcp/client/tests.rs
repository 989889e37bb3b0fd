use super::*;
use crate::dhcp::message::option;
use crate::mac::Mac;
use proptest::prelude::*;
use smoltcp::wire::DhcpPacket;
use std::collections::BTreeMap;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);
const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 8]);

fn identity() -> Identity {
    Identity { mac: MAC, client_id: vec![1, 2, 3], provide: BTreeMap::new(), request: vec![1] }
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
    assert_eq!(client.hear(&answer(AnswerKind::Ack, xid, SERVER, OWN), 0), Step::Wait, "nobody asked yet");
    let request = client.hear(&answer(AnswerKind::Offer, xid, SERVER, OWN), 0);
    assert_eq!(sent(&request), (3, xid, Some(OWN.octets().to_vec())));
    assert_eq!(client.hear(&answer(AnswerKind::Offer, xid, OTHER, OWN), 0), Step::Wait, "too late");
    assert_eq!(client.hear(&answer(AnswerKind::Nak, xid, OTHER, OWN), 0), Step::Wait, "not its business");
    // Before it is used, everybody is asked for it.
    let mut step = client.hear(&answer(AnswerKind::Ack, xid, SERVER, OWN), 10);
    for _ in 0..PROBES {
        assert_eq!(step, Step::Send(probe(MAC, OWN), PROBE));
        assert_eq!(client.hear(&answer(AnswerKind::Nak, xid, SERVER, OWN), 10), Step::Wait, "too late");
        step = client.timeout();
    }
    match step {
        Step::Done(Outcome::Bound(lease, _)) => assert_eq!(*lease, leased()),
        other => panic!("{other:?}"),
    }
}

/// Has it leased the address, and then hears that somebody has it.
fn finds_taken(client: &mut Client, xid: u32, address: Ipv4Addr) -> Step {
    client.hear(&answer(AnswerKind::Offer, xid, SERVER, address), 0);
    client.hear(&answer(AnswerKind::Ack, xid, SERVER, address), 0);
    for claim in [Claim { address, mac: MAC }, Claim { address: [192, 0, 2, 99].into(), mac: THEIRS }] {
        assert_eq!(client.hear_claim(claim), Step::Wait, "{claim:?}");
    }
    client.hear_claim(Claim { address, mac: THEIRS })
}

#[test]
fn an_address_that_somebody_has_is_declined_and_another_asked_for() {
    let mut client = Client::acquire(identity(), None, 40);
    let mut step = client.begin();
    let mut address = OWN;
    for left in (0..=DECLINES).rev() {
        let (kind, xid, _) = sent(&step);
        assert_eq!(kind, 1);
        address = (u32::from(address) + 1).into();
        let declined = finds_taken(&mut client, xid, address);
        assert_eq!(sent(&declined), (4, xid, Some(address.octets().to_vec())));
        let Step::Send(_, wait) = declined else { panic!() };
        assert_eq!(wait, if left > 0 { DECLINED } else { Duration::ZERO });
        assert_eq!(client.hear(&answer(AnswerKind::Offer, xid, SERVER, OWN), 0), Step::Wait, "not yet");
        step = client.timeout();
    }
    assert_eq!(step, Step::Done(Outcome::Taken(SERVER, Claim { address, mac: THEIRS })));
    // A server that had nothing else.
    let mut client = Client::acquire(identity(), None, 40);
    let (_, xid, _) = sent(&client.begin());
    let mut step = finds_taken(&mut client, xid, OWN);
    while let Step::Send(..) = step {
        step = client.timeout();
    }
    assert_eq!(step, Step::Done(Outcome::Taken(SERVER, Claim { address: OWN, mac: THEIRS })));
    // Who wants that one alone does not wait for another.
    let mut client = Client::acquire(identity(), Some(OWN), 40);
    let (_, xid, _) = sent(&client.begin());
    let declined = finds_taken(&mut client, xid, OWN);
    assert!(matches!(declined, Step::Send(_, Duration::ZERO)), "{declined:?}");
    assert_eq!(client.timeout(), Step::Done(Outcome::Taken(SERVER, Claim { address: OWN, mac: THEIRS })));
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
    assert_eq!(client.hear(&answer(AnswerKind::Offer, xid, SERVER, [192, 0, 2, 60].into()), 0), Step::Wait);
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
    // It says where it is, as long as it is its own.
    let mut asks = probe(THEIRS, OWN);
    asks[28..32].copy_from_slice(&SERVER.octets());
    assert!(client.locate(&asks).is_some_and(|told| told[28..32] == OWN.octets()));
    assert_eq!(Client::acquire(identity(), Some(OWN), 40).locate(&asks), None);
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
    fn it_always_ends(events in proptest::collection::vec((0_u8..7, any::<bool>(), any::<bool>(), any::<bool>()), 0..60), only: bool, renew in 0_u8..3) {
        let mut client = match renew {
            0 => Client::acquire(identity(), only.then_some(OWN), 40),
            one => Client::extend(&leased(), one == 2, 40),
        };
        let mut step = client.begin();
        let mut last = 40;
        let mut events = events.into_iter();
        for _ in 0..500 {
            // Not a probe.
            if let Step::Send(frame, _) = &step && frame[13] == 0 {
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
                Some((3, _, same, own)) => {
                    let address = if own { OWN } else { Ipv4Addr::new(192, 0, 2, 60) };
                    client.hear_claim(Claim { address, mac: if same { MAC } else { THEIRS } })
                }
                _ => client.timeout(),
            };
        }
        prop_assert!(false, "it goes on and on");
    }
}

use super::*;
use proptest::prelude::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn identity() -> Identity {
    Identity {
        mac: MAC,
        client_id: Identity::client_id_of("public", "c1", "eth0"),
        provide: BTreeMap::from([(option::HOST_NAME, b"web".to_vec())]),
        request: vec![option::SUBNET_MASK, option::ROUTERS],
    }
}

fn question(kind: DhcpMessageType) -> Question {
    Question { kind, xid: 7, secs: 3, own: None, wanted: None, server: None, to: None }
}

fn answer(options: &[(u8, &[u8])]) -> Answer {
    Answer {
        kind: AnswerKind::Ack,
        xid: 7,
        address: [192, 0, 2, 50].into(),
        from: [2, 0, 0, 0, 0, 1],
        options: options.iter().map(|(kind, data)| (*kind, data.to_vec())).collect(),
    }
}

#[test]
fn a_question_is_a_frame_that_others_can_read() {
    let bytes = question(DhcpMessageType::Discover).frame(&identity());
    let frame = EthernetFrame::new_checked(&bytes[..]).unwrap();
    assert_eq!((frame.src_addr().0, frame.dst_addr().0), (MAC.0, [0xff; 6]));
    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
    assert!(packet.verify_checksum());
    assert_eq!(packet.dst_addr(), Ipv4Addr::BROADCAST);
    let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
    assert!(datagram.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
    assert!(datagram.payload().len() >= MIN_MESSAGE);
    let message = DhcpPacket::new_checked(datagram.payload()).unwrap();
    let options: BTreeMap<u8, &[u8]> = message.options().map(|one| (one.kind, one.data)).collect();
    assert_eq!(options[&option::HOST_NAME], b"web");
    assert_eq!(options[&option::REQUEST_LIST], [1, 3]);
    assert_eq!(options[&option::MAX_SIZE], MAX_MESSAGE.to_be_bytes());
    let id = options[&option::CLIENT_ID];
    // Type, interface, kind of DUID, UUID.
    assert_eq!((id.len(), id[0], &id[5..7]), (1 + 4 + 2 + 16, 255, &[0, 4][..]));
    assert_ne!(id, Identity::client_id_of("public", "c2", "eth0"));
}

#[test]
fn who_has_an_address_speaks_from_it_to_its_server() {
    let (own, server) = (Ipv4Addr::new(192, 0, 2, 50), Ipv4Addr::new(192, 0, 2, 1));
    let to = Some((server, [2, 0, 0, 0, 0, 1]));
    let release = Question { own: Some(own), server: Some(server), to, ..question(DhcpMessageType::Release) };
    let bytes = release.frame(&identity());
    let frame = EthernetFrame::new_checked(&bytes[..]).unwrap();
    assert_eq!(frame.dst_addr().0, [2, 0, 0, 0, 0, 1]);
    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
    assert_eq!((packet.src_addr(), packet.dst_addr()), (own, server));
    let message = DhcpPacket::new_checked(&packet.payload()[8..]).unwrap();
    assert_eq!(message.client_ip(), own);
    let kinds: Vec<u8> = message.options().map(|one| one.kind).collect();
    // RFC 2131, table 5: what it wants, or wanted, has no place there.
    assert_eq!(kinds, [option::MESSAGE_TYPE, option::SERVER, option::CLIENT_ID]);
}

#[test]
fn what_is_declined_is_told_to_everybody() {
    let (wanted, server) = (Some([192, 0, 2, 50].into()), Some([192, 0, 2, 1].into()));
    let decline = Question { wanted, server, ..question(DhcpMessageType::Decline) };
    let bytes = decline.frame(&identity());
    assert_eq!(&bytes[..6], [0xff; 6]);
    let message = DhcpPacket::new_checked(&bytes[42..]).unwrap();
    // RFC 2131, table 5: no flag, no address but the one that is declined.
    assert_eq!((message.client_ip(), message.flags().bits()), (Ipv4Addr::UNSPECIFIED, 0));
    let kinds: Vec<u8> = message.options().map(|one| one.kind).collect();
    let (kind, own) = (option::MESSAGE_TYPE, option::CLIENT_ID);
    let mut wanted = vec![kind, option::SERVER, option::REQUESTED_ADDRESS, own];
    wanted.sort_unstable();
    let mut kinds = kinds;
    kinds.sort_unstable();
    assert_eq!(kinds, wanted);
}

#[test]
fn classless_routes_take_the_routers_place() {
    let plain: (u8, &[u8]) = (option::ROUTERS, &[192, 0, 2, 1]);
    let by_router = (Ipv4Net::default(), Some(Ipv4Addr::new(192, 0, 2, 1)));
    assert_eq!(answer(&[plain]).offered().routes, [by_router]);
    // RFC 3442's form: 10.17.0.0/16 by a router, 192.0.2.128/25 on the link.
    let classless: (u8, &[u8]) =
        (option::CLASSLESS_ROUTES, &[16, 10, 17, 192, 0, 2, 9, 25, 192, 0, 2, 128, 0, 0, 0, 0]);
    assert_eq!(
        answer(&[plain, classless]).offered().routes,
        [
            ("10.17.0.0/16".parse().unwrap(), Some([192, 0, 2, 9].into())),
            ("192.0.2.128/25".parse().unwrap(), None)
        ]
    );
    for torn in [&[33, 1, 2, 3, 4, 5, 1, 2, 3, 4][..], &[24, 10, 1, 2, 192, 0, 2], &[8]] {
        let torn = answer(&[plain, (option::CLASSLESS_ROUTES, torn)]);
        assert_eq!(torn.offered().routes, [by_router]);
    }
}

#[test]
fn what_makes_no_sense_is_no_lease() {
    let mask: (u8, &[u8]) = (option::SUBNET_MASK, &[255, 255, 255, 0]);
    assert_eq!(answer(&[mask]).net().unwrap().to_string(), "192.0.2.50/24");
    answer(&[]).net().unwrap_err();
    answer(&[(option::SUBNET_MASK, &[255, 0, 255, 0])]).net().unwrap_err();
    for octets in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], [240, 0, 0, 1]] {
        Answer { address: octets.into(), ..answer(&[mask]) }.net().unwrap_err();
    }
    let time: (u8, &[u8]) = (option::LEASE_TIME, &[0, 0, 0, 80]);
    assert_eq!(answer(&[time]).times(), Ok(Some((80, 40, 70))));
    // Times that are in no order are not kept to.
    let late: (u8, &[u8]) = (option::REBINDING_TIME, &[0, 0, 0, 90]);
    let early: (u8, &[u8]) = (option::RENEWAL_TIME, &[0, 0, 0, 75]);
    assert_eq!(answer(&[time, late, early]).times(), Ok(Some((80, 70, 70))));
    assert_eq!(answer(&[(option::LEASE_TIME, &[255; 4])]).times(), Ok(None));
    answer(&[(option::LEASE_TIME, &[0; 4])]).times().unwrap_err();
    answer(&[]).times().unwrap_err();
    assert_eq!(answer(&[(option::DOMAIN, b"a.example\0")]).offered().domain.unwrap(), "a.example");
    assert_eq!(answer(&[(option::DOMAIN, b"a\nnameserver x")]).offered().domain, None);
}

#[test]
fn what_a_server_sends_is_read_if_it_is_for_this_client() {
    // A frame of another maker's: DHCPNAK with a reason, to one that has an address.
    let mut message = vec![0; 240];
    message[..8].copy_from_slice(&[2, 1, 6, 0, 0, 0, 0, 7]);
    message[28..34].copy_from_slice(&MAC.0);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, 6, 54, 4, 192, 0, 2, 1, 56, 2, b'n', b'o', 56, 2, b'.', b'\n', 255, 0, 0]);
    let frame = |mac: Mac, ports: (u16, u16)| {
        let length = u16::try_from(message.len() + 28).unwrap().to_be_bytes();
        let udp = u16::try_from(message.len() + 8).unwrap().to_be_bytes();
        let mut frame =
            [&mac.0[..], &[2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0], &length, &[0; 4], &[64, 17, 0, 0]].concat();
        frame.extend([192, 0, 2, 1, 192, 0, 2, 50]);
        frame.extend(ports.0.to_be_bytes().into_iter().chain(ports.1.to_be_bytes()));
        frame.extend(udp.into_iter().chain([0, 0]).chain(message.iter().copied()));
        frame
    };
    let answer = Answer::parse(&frame(MAC, (67, 68)), MAC).unwrap();
    assert_eq!((answer.kind, answer.xid, answer.from), (AnswerKind::Nak, 7, [2, 0, 0, 0, 0, 1]));
    assert_eq!((answer.server(), answer.words()), (Some([192, 0, 2, 1].into()), "no.".to_owned()));
    assert_eq!(Answer::parse(&frame(MAC, (67, 67)), MAC), None);
    assert_eq!(Answer::parse(&frame(MAC, (67, 68)), Mac([2, 0, 0, 0, 0, 8])), None, "another's");
    // One that was made longer by the wire, or cut.
    let mut whole = frame(MAC, (67, 68));
    whole.extend([0; 8]);
    assert!(Answer::parse(&whole, MAC).is_some());
    assert_eq!(Answer::parse(&whole[..200], MAC), None);
}

proptest! {
    #[test]
    fn no_frame_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0_usize..400, byte: u8) {
        let _ = Answer::parse(&bytes, MAC);
        let _ = Answer::of_message(&bytes, MAC, [0; 6]);
        // What begins well may end badly.
        let mut frame = question(DhcpMessageType::Request).frame(&identity());
        let length = frame.len();
        frame[at % length] = byte;
        let _ = Answer::parse(&frame[..(at * 7) % length], MAC);
        let message = &frame[42..];
        if let Some(answer) = Answer::of_message(message, MAC, [0; 6]) {
            let _ = (answer.net(), answer.times(), answer.offered(), answer.words(), answer.server());
        }
    }

    #[test]
    fn any_options_are_read_or_left(kind: u8, data in proptest::collection::vec(any::<u8>(), 0..64)) {
        let answer = answer(&[(kind, &data)]);
        let _ = (answer.net(), answer.times(), answer.words());
        for (net, _) in answer.offered().routes {
            prop_assert_eq!(net, net.trunc());
        }
    }
}

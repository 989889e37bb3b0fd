//! Asking whether somebody has an address already, before it is used: ARP probes (RFC 5227, 2.1.1). And saying who has one,
//! for a sandbox that may be too still to say so itself.

use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
};

use crate::mac::Mac;

/// The frame that asks everybody who has `address`. It says of the asker no address yet, so nobody remembers it.
pub(super) fn probe(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    frame(ArpOperation::Request, (mac, Ipv4Addr::UNSPECIFIED), None, address)
}

/// The frame that answers who asks for the address that `own` has; none if that is not what a frame asks for.
pub(super) fn answer(asks: &[u8], own: Claim) -> Option<Vec<u8>> {
    match read(asks)? {
        (ArpOperation::Request, by, about) if about == own.address && by.mac != own.mac => {
            Some(frame(ArpOperation::Reply, (own.mac, own.address), Some(by.mac), by.address))
        }
        _ => None,
    }
}

fn frame(operation: ArpOperation, from: (Mac, Ipv4Addr), to: Option<Mac>, about: Ipv4Addr) -> Vec<u8> {
    let own = EthernetAddress(from.0.0);
    let to = to.map(|mac| EthernetAddress(mac.0));
    let ethernet = EthernetRepr {
        src_addr: own,
        dst_addr: to.unwrap_or(EthernetAddress::BROADCAST),
        ethertype: EthernetProtocol::Arp,
    };
    let arp = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: own,
        source_protocol_addr: from.1,
        target_hardware_addr: to.unwrap_or(EthernetAddress([0; 6])),
        target_protocol_addr: about,
    };
    let mut bytes = vec![0; ethernet.buffer_len() + arp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut frame);
    arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

/// What a frame of ARP is, who sent it, with the address it sent from, and the address that it is about.
fn read(frame: &[u8]) -> Option<(ArpOperation, Claim, Ipv4Addr)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Arp {
        return None;
    }
    let packet = ArpPacket::new_checked(frame.payload()).ok()?;
    match ArpRepr::parse(&packet).ok()? {
        ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: mac,
            source_protocol_addr: address,
            target_protocol_addr: about,
            ..
        } => Some((operation, Claim { address, mac: Mac(mac.0) }, about)),
        _ => None,
    }
}

/// What somebody says of an address by ARP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address that it has, or is about to have.
    pub address: Ipv4Addr,
    /// Who.
    pub mac: Mac,
}

impl Claim {
    /// Reads a frame; none if it claims no address. Who asks from an address has it, as who answers does; a probe is about
    /// an address that somebody is going to have.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        match read(frame)? {
            (ArpOperation::Request, by, about) if by.address.is_unspecified() => {
                Some(Self { address: about, ..by })
            }
            (ArpOperation::Request | ArpOperation::Reply, by, _) => Some(by),
            (ArpOperation::Unknown(_), ..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);

    #[test]
    fn a_probe_claims_nothing_but_what_it_is_about() {
        let frame = probe(OWN, ADDRESS);
        // Ethernet to everybody; ARP: Ethernet, IPv4, a request, from nobody's address.
        assert_eq!(&frame[..6], [0xff; 6]);
        assert_eq!(&frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!((&frame[22..28], &frame[28..32]), (&OWN.0[..], &[0; 4][..]));
        assert_eq!(&frame[32..], [0, 0, 0, 0, 0, 0, 192, 0, 2, 50]);
        assert_eq!(Claim::parse(&frame), Some(Claim { address: ADDRESS, mac: OWN }));
    }

    #[test]
    fn who_answers_or_asks_from_an_address_has_it() {
        let frame = |operation: u8| {
            let mut frame = probe(OWN, Ipv4Addr::new(192, 0, 2, 1));
            frame[21] = operation;
            frame[28..32].copy_from_slice(&ADDRESS.octets());
            // As long as Ethernet wants it.
            frame.resize(60, 0);
            frame
        };
        for operation in [1, 2] {
            assert_eq!(Claim::parse(&frame(operation)), Some(Claim { address: ADDRESS, mac: OWN }));
        }
        assert_eq!(Claim::parse(&frame(3)), None, "RARP's");
        let mut other = frame(2);
        other[12..14].copy_from_slice(&[8, 0]);
        assert_eq!(Claim::parse(&other), None, "no ARP");
    }

    #[test]
    fn who_asks_for_the_address_is_answered_and_nobody_else() {
        let own = Claim { address: ADDRESS, mac: OWN };
        let theirs = Mac([2, 0, 0, 0, 0, 1]);
        let asks = |mac: Mac, about: Ipv4Addr| {
            frame(ArpOperation::Request, (mac, [192, 0, 2, 1].into()), None, about)
        };
        let told = answer(&asks(theirs, ADDRESS), own).unwrap();
        assert_eq!((&told[..6], &told[6..12]), (&theirs.0[..], &OWN.0[..]));
        // A reply: from its address, to who asked.
        assert_eq!(
            (&told[20..22], &told[22..28], &told[28..32]),
            (&[0, 2][..], &OWN.0[..], &[192, 0, 2, 50][..])
        );
        assert_eq!((&told[32..38], &told[38..]), (&theirs.0[..], &[192, 0, 2, 1][..]));
        assert_eq!(answer(&asks(theirs, [192, 0, 2, 51].into()), own), None, "another's");
        assert_eq!(answer(&asks(OWN, ADDRESS), own), None, "its own question");
        assert_eq!(answer(&told, Claim { address: [192, 0, 2, 1].into(), mac: theirs }), None, "no question");
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), at in 0_usize..42, byte: u8) {
            let own = Claim { address: ADDRESS, mac: OWN };
            let _ = (Claim::parse(&bytes), answer(&bytes, own));
            let mut frame = probe(OWN, ADDRESS);
            frame[at] = byte;
            let _ = Claim::parse(&frame[..at]);
            let _ = (Claim::parse(&frame), answer(&frame, own));
        }
    }
}

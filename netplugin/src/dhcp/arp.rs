//! Asking whether somebody has an address already, before it is used: ARP probes (RFC 5227, 2.1.1).

use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
};

use crate::mac::Mac;

/// The frame that asks everybody who has `address`. It says of the asker no address yet, so nobody remembers it.
pub(super) fn probe(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let own = EthernetAddress(mac.0);
    let ethernet = EthernetRepr {
        src_addr: own,
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Arp,
    };
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: own,
        source_protocol_addr: Ipv4Addr::UNSPECIFIED,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: address,
    };
    let mut bytes = vec![0; ethernet.buffer_len() + arp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut frame);
    arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
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
        let frame = EthernetFrame::new_checked(frame).ok()?;
        if frame.ethertype() != EthernetProtocol::Arp {
            return None;
        }
        let packet = ArpPacket::new_checked(frame.payload()).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: by,
            source_protocol_addr: from,
            target_protocol_addr: about,
            ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        let address = match operation {
            ArpOperation::Request if from.is_unspecified() => about,
            ArpOperation::Request | ArpOperation::Reply => from,
            ArpOperation::Unknown(_) => return None,
        };
        Some(Self { address, mac: Mac(by.0) })
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

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), at in 0_usize..42, byte: u8) {
            let _ = Claim::parse(&bytes);
            let mut frame = probe(OWN, ADDRESS);
            frame[at] = byte;
            let _ = Claim::parse(&frame[..at]);
            let _ = Claim::parse(&frame);
        }
    }
}

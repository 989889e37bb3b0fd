//! Messages of DHCP in their frames: what a client says, and what it is told.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use crate::mac::{Mac, digest};

/// Where servers listen, and where clients do.
const SERVER: u16 = 67;
const CLIENT: u16 = 68;
/// The least that a message has, since BOOTP (RFC 1542, 2.1).
const MIN_MESSAGE: usize = 300;
/// The most that one may have which is for us: what Ethernet carries, less the headers of IP and UDP.
const MAX_MESSAGE: u16 = 1472;

/// Options by their numbers (RFC 2132; 121: RFC 3442).
pub(super) mod option {
    pub(crate) const SUBNET_MASK: u8 = 1;
    pub(crate) const ROUTERS: u8 = 3;
    pub(crate) const DNS: u8 = 6;
    pub(crate) const HOST_NAME: u8 = 12;
    pub(crate) const DOMAIN: u8 = 15;
    pub(crate) const REQUESTED_ADDRESS: u8 = 50;
    pub(crate) const LEASE_TIME: u8 = 51;
    pub(crate) const OVERLOAD: u8 = 52;
    pub(crate) const MESSAGE_TYPE: u8 = 53;
    pub(crate) const SERVER: u8 = 54;
    pub(crate) const REQUEST_LIST: u8 = 55;
    pub(crate) const MESSAGE: u8 = 56;
    pub(crate) const MAX_SIZE: u8 = 57;
    pub(crate) const RENEWAL_TIME: u8 = 58;
    pub(crate) const REBINDING_TIME: u8 = 59;
    pub(crate) const VENDOR_CLASS: u8 = 60;
    pub(crate) const CLIENT_ID: u8 = 61;
    pub(crate) const USER_CLASS: u8 = 77;
    pub(crate) const CLASSLESS_ROUTES: u8 = 121;
}

/// Whom a sandbox is to a server, and what it wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its client identifier (option 61), all of it.
    pub client_id: Vec<u8>,
    /// Options that are told to the server, by number.
    pub provide: BTreeMap<u8, Vec<u8>>,
    /// Options that are asked for, by number.
    pub request: Vec<u8>,
}

impl Identity {
    /// The client identifier of an interface of a container, the same whenever it asks (RFC 4361, 6.1): 255, an identifier of the
    /// interface, and one of the container, which is a UUID made of its name (RFC 6355).
    pub fn client_id_of(network: &str, container: &str, ifname: &str) -> Vec<u8> {
        const OPAQUE: u8 = 255;
        const DUID_UUID: [u8; 2] = [0, 4];
        let interface = digest(&["iaid", network, ifname]);
        let container = digest(&["duid", container]);
        [&[OPAQUE][..], &interface[..4], &DUID_UUID, &container[..16]].concat()
    }
}

/// What a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) kind: DhcpMessageType,
    pub(super) xid: u32,
    /// Seconds since it began to ask.
    pub(super) secs: u16,
    /// The address that it has.
    pub(super) own: Option<Ipv4Addr>,
    /// The address that it wants.
    pub(super) wanted: Option<Ipv4Addr>,
    /// The server that is meant.
    pub(super) server: Option<Ipv4Addr>,
    /// Where to; none: to everybody.
    pub(super) to: Option<(Ipv4Addr, [u8; 6])>,
}

impl Question {
    /// The frame that says it.
    pub(super) fn frame(&self, identity: &Identity) -> Vec<u8> {
        let mac = EthernetAddress(identity.mac.0);
        // Who gives an address back, or does not take it, wants to know nothing.
        let asks = !matches!(self.kind, DhcpMessageType::Release | DhcpMessageType::Decline);
        // Where there is an address, the server answers to it (RFC 2131, 4.1).
        let broadcast = asks && self.own.is_none();
        let mut more = vec![DhcpOption { kind: option::CLIENT_ID, data: &identity.client_id }];
        more.extend(identity.provide.iter().map(|(kind, data)| DhcpOption { kind: *kind, data }));
        let message = DhcpRepr {
            message_type: self.kind,
            transaction_id: self.xid,
            secs: self.secs,
            client_hardware_address: mac,
            client_ip: self.own.unwrap_or(Ipv4Addr::UNSPECIFIED),
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast,
            requested_ip: self.wanted,
            client_identifier: None,
            server_identifier: self.server,
            parameter_request_list: Some(&identity.request[..]).filter(|list| asks && !list.is_empty()),
            dns_servers: None,
            max_size: asks.then_some(MAX_MESSAGE),
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: if asks { &more } else { &more[..1] },
        };
        let (to, to_mac) = self.to.unwrap_or((Ipv4Addr::BROADCAST, [0xff; 6]));
        let source = self.own.unwrap_or(Ipv4Addr::UNSPECIFIED);
        envelope(mac, (source, CLIENT), EthernetAddress(to_mac), (to, SERVER), &message)
    }
}

/// Puts a message into a UDP packet, and that into an Ethernet frame.
fn envelope(
    mac: EthernetAddress,
    from: (Ipv4Addr, u16),
    to_mac: EthernetAddress,
    to: (Ipv4Addr, u16),
    message: &DhcpRepr<'_>,
) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let mut payload = vec![0; message.buffer_len().max(MIN_MESSAGE)];
    // It has room for all that is in it.
    let emitted = message.emit(&mut DhcpPacket::new_unchecked(&mut payload[..]));
    debug_assert!(emitted.is_ok());
    let udp = UdpRepr { src_port: from.1, dst_port: to.1 };
    let length = udp.header_len() + payload.len();
    let ip = Ipv4Repr {
        src_addr: from.0,
        dst_addr: to.0,
        next_header: IpProtocol::Udp,
        payload_len: length,
        hop_limit: 64,
    };
    let ethernet = EthernetRepr { src_addr: mac, dst_addr: to_mac, ethertype: EthernetProtocol::Ipv4 };
    let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + length];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut frame);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &checksums);
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    udp.emit(
        &mut datagram,
        &IpAddress::Ipv4(from.0),
        &IpAddress::Ipv4(to.0),
        payload.len(),
        |room| room.copy_from_slice(&payload),
        &checksums,
    );
    bytes
}

/// What a server answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    /// An address could be had.
    Offer,
    /// It is ours.
    Ack,
    /// It is not.
    Nak,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which answer it is.
    pub kind: AnswerKind,
    /// To which question.
    pub xid: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// The Ethernet address it came from, the server's own or that of the router before it.
    pub from: [u8; 6],
    /// All options, those in several parts in one (RFC 3396).
    pub options: BTreeMap<u8, Vec<u8>>,
}

/// What goes with an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offered {
    /// Destinations with their gateways; none for one that is on the link.
    pub routes: Vec<(Ipv4Net, Option<Ipv4Addr>)>,
    /// Resolvers.
    pub dns: Vec<Ipv4Addr>,
    /// The domain.
    pub domain: Option<String>,
}

fn addresses(bytes: &[u8]) -> Vec<Ipv4Addr> {
    bytes.chunks_exact(4).filter_map(|four| <[u8; 4]>::try_from(four).ok().map(Ipv4Addr::from)).collect()
}

/// Whether a host can have an address, or be reached by it.
pub(super) fn is_usable(ip: Ipv4Addr) -> bool {
    let first = ip.octets()[0];
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
        && first != 0
        && first < 240
}

impl Answer {
    /// Reads a frame; none if it is no answer to the client with this Ethernet address.
    ///
    /// The checksums are not looked at: a server on the same machine, or behind a virtual network card, leaves them to a
    /// hardware that is not there, and against faults of a wire frames have their own.
    pub fn parse(frame: &[u8], mac: Mac) -> Option<Self> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        if frame.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
        let fragment = packet.more_frags() || packet.frag_offset() != 0;
        if packet.version() != 4 || fragment || packet.next_header() != IpProtocol::Udp {
            return None;
        }
        let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
        if (datagram.src_port(), datagram.dst_port()) != (SERVER, CLIENT) {
            return None;
        }
        Self::of_message(datagram.payload(), mac, frame.src_addr().0)
    }

    fn of_message(message: &[u8], mac: Mac, from: [u8; 6]) -> Option<Self> {
        const COOKIE: u32 = 0x6382_5363;
        let message = DhcpPacket::new_checked(message).ok()?;
        let ours = message.hardware_len() == 6 && message.client_hardware_address().0 == mac.0;
        if !ours || message.magic_number() != COOKIE {
            return None;
        }
        let mut options: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for one in message.options() {
            options.entry(one.kind).or_default().extend_from_slice(one.data);
        }
        // Whose options go on in other fields (RFC 2132, 9.3) says more than is read here.
        if options.contains_key(&option::OVERLOAD) {
            tracing::debug!("a DHCP server's answer has options in the fields of names, which are not read");
        }
        let kind = match options.get(&option::MESSAGE_TYPE)?.as_slice() {
            [2] => AnswerKind::Offer,
            [5] => AnswerKind::Ack,
            [6] => AnswerKind::Nak,
            _ => return None,
        };
        Some(Self { kind, xid: message.transaction_id(), address: message.your_ip(), from, options })
    }

    fn one(&self, kind: u8) -> Option<u32> {
        let bytes: [u8; 4] = self.options.get(&kind)?.as_slice().try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    /// The server that says it.
    pub(super) fn server(&self) -> Option<Ipv4Addr> {
        self.one(option::SERVER).map(Ipv4Addr::from).filter(|ip| is_usable(*ip))
    }

    /// The address with its prefix; in words what is wrong with it.
    pub(super) fn net(&self) -> Result<Ipv4Net, String> {
        let ip = self.address;
        if !is_usable(ip) {
            return Err(format!("{ip} is no host's address"));
        }
        let mask = self.one(option::SUBNET_MASK).map(Ipv4Addr::from).ok_or("it gave no subnet mask")?;
        Ipv4Net::with_netmask(ip, mask)
            .ok()
            .filter(|net| net.prefix_len() > 0)
            .ok_or_else(|| format!("{mask} is no subnet mask"))
    }

    /// Seconds that the address is ours, until it is to be renewed, and until anybody may be asked. None: for ever.
    pub(super) fn times(&self) -> Result<Option<(u32, u32, u32)>, String> {
        let lease = self.one(option::LEASE_TIME).ok_or("it gave no lease time")?;
        match lease {
            0 => Err("it gave a lease of no time".to_owned()),
            u32::MAX => Ok(None),
            _ => {
                let (half, most) = (lease / 2, lease - lease / 8);
                let rebind = self.one(option::REBINDING_TIME).filter(|time| *time < lease).unwrap_or(most);
                let renew = self.one(option::RENEWAL_TIME).unwrap_or(half);
                Ok(Some((lease, renew.min(rebind), rebind)))
            }
        }
    }

    /// What goes with the address.
    pub(super) fn offered(&self) -> Offered {
        let list = |kind| self.options.get(&kind).map(|bytes| addresses(bytes)).unwrap_or_default();
        // Who gives classless routes means these alone (RFC 3442).
        let routes = match self.options.get(&option::CLASSLESS_ROUTES).and_then(|bytes| classless(bytes)) {
            Some(routes) => routes,
            None => list(option::ROUTERS)
                .into_iter()
                .find(|ip| is_usable(*ip))
                .map(|router| (Ipv4Net::default(), Some(router)))
                .into_iter()
                .collect(),
        };
        let domain = self.options.get(&option::DOMAIN).and_then(|bytes| domain(bytes));
        Offered { routes, dns: list(option::DNS).into_iter().filter(|ip| is_usable(*ip)).collect(), domain }
    }

    /// What a server has to say to people.
    pub(super) fn words(&self) -> String {
        let words =
            self.options.get(&option::MESSAGE).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let plain: String = words.unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect();
        if plain.is_empty() { "it gave no reason".to_owned() } else { plain }
    }
}

/// A domain's name; none if it is no word that a resolver's file could have.
fn domain(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!text.is_empty() && text.len() < 256 && text.bytes().all(plain)).then(|| text.to_owned())
}

/// Classless routes: each the length of a prefix, as many octets of it as count, and the router (RFC 3442). None if that is
/// not what is there.
fn classless(mut bytes: &[u8]) -> Option<Vec<(Ipv4Net, Option<Ipv4Addr>)>> {
    let mut routes = Vec::new();
    while let Some((len, octets)) = bytes.split_first() {
        let significant = usize::from(*len).div_ceil(8);
        if *len > 32 || octets.len() < significant + 4 {
            return None;
        }
        let mut net = [0; 4];
        net[..significant].copy_from_slice(&octets[..significant]);
        let by = addresses(&octets[significant..significant + 4]).pop()?;
        let net = Ipv4Net::new(net.into(), *len).ok()?.trunc();
        // The address of nobody: on the link.
        match by {
            Ipv4Addr::UNSPECIFIED => routes.push((net, None)),
            by if is_usable(by) => routes.push((net, Some(by))),
            _ => {}
        }
        bytes = &octets[significant + 4..];
    }
    Some(routes)
}

#[cfg(test)]
mod tests;

//! Bridges and veth pairs.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData,
    InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};

use super::netlink::{Route, kernel};
use super::netns::Netns;
use crate::datapath::DatapathError;
use crate::mac::Mac;

/// What the kernel tells of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// Its number.
    pub(super) index: u32,
    /// Its kind (`bridge`, `veth`, ...); empty for hardware.
    pub(super) kind: String,
    /// Its Ethernet address.
    pub(super) mac: Option<Mac>,
    /// Its MTU in bytes.
    pub(super) mtu: u32,
    /// The bridge it is a port of.
    pub(super) master: Option<u32>,
    /// Whether it is up.
    pub(super) up: bool,
    /// Whether it carries frames: it and what it is connected to are up.
    pub(super) operational: bool,
    /// Whether frames on this bridge pass the IPv4 and IPv6 rules.
    pub(super) filters_bridged: bool,
    /// Packets and bytes received, then sent.
    pub(super) carried: [u64; 4],
}

/// A moment on an idle host; seconds on one that starts many sandboxes at once.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(10);

fn by_name(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn by_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn parse_link(message: LinkMessage) -> (String, Link) {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    let mut name = String::new();
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::OperState(state) => link.operational = state == State::Up,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Stats64(stats) => {
                link.carried = [stats.rx_packets, stats.rx_bytes, stats.tx_packets, stats.tx_bytes];
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
                        LinkInfo::Data(InfoData::Bridge(data)) => {
                            link.filters_bridged = data.contains(&InfoBridge::NfCallIpTables(true))
                                && data.contains(&InfoBridge::NfCallIp6Tables(true));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (name, link)
}

impl Route {
    /// The link called `name`.
    pub(super) fn link(&mut self, name: &str) -> Result<Option<Link>, DatapathError> {
        match self.get(Message::GetLink(by_name(name))) {
            Ok(Some(Message::NewLink(message))) => Ok(Some(parse_link(message).1)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(kernel(format!("look at interface {name}"), error)),
            Ok(_) => {
                Err(DatapathError::Answer { what: format!("interface {name}"), why: "no link".to_owned() })
            }
        }
    }

    /// The link called `name`, which must be there.
    pub(super) fn need_link(&mut self, name: &str) -> Result<Link, DatapathError> {
        self.link(name)?.ok_or_else(|| {
            kernel(format!("look at interface {name}"), io::Error::from_raw_os_error(libc::ENODEV))
        })
    }

    /// Every link, by name.
    pub(super) fn links(&mut self) -> Result<Vec<(String, Link)>, DatapathError> {
        let answers = self
            .dump(Message::GetLink(LinkMessage::default()))
            .map_err(|error| kernel("list interfaces", error))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                Message::NewLink(message) => Some(parse_link(message)),
                _ => None,
            })
            .collect())
    }

    /// Removes a link; false if there was none.
    pub(super) fn delete_link(&mut self, name: &str) -> Result<bool, DatapathError> {
        match self.change(Message::DelLink(by_name(name)), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(kernel(format!("remove interface {name}"), error)),
        }
    }

    /// Makes a bridge unless there is one of that name; true if this call made it.
    pub(super) fn create_bridge(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<bool, DatapathError> {
        let mut message = by_name(name);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        message.attributes.push(LinkAttribute::Mtu(mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                // No snooping: nobody on the bridge sends the queries without which it ends in black holes.
                InfoBridge::MulticastSnooping(false),
                InfoBridge::StpState(BridgeStpState::Disabled),
                InfoBridge::ForwardDelay(0),
            ])),
        ]));
        match self.change(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(kernel(format!("create bridge {name}"), error)),
        }
    }

    /// Makes a bridge's frames pass the IPv4 and IPv6 rules.
    pub(super) fn filter_bridged(&mut self, name: &str) -> Result<(), DatapathError> {
        let index = self.need_link(name)?.index;
        let mut message = by_index(index);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::NfCallIpTables(true),
                InfoBridge::NfCallIp6Tables(true),
            ])),
        ]));
        self.change(Message::NewLink(message), 0)
            .map_err(|error| kernel(format!("let bridge {name} pass its frames to the packet filter"), error))
    }

    /// Makes a veth pair: one end a port of `bridge` (its index) and still down, the other in `netns`.
    pub(super) fn create_veth(
        &mut self,
        host_ifname: &str,
        bridge: u32,
        peer: (&str, Mac),
        mtu: u32,
        netns: &Netns,
    ) -> Result<(), DatapathError> {
        let mut inner = by_name(peer.0);
        inner.attributes.push(LinkAttribute::Address(peer.1.0.to_vec()));
        inner.attributes.push(LinkAttribute::Mtu(mtu));
        inner.attributes.push(LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()));
        let mut message = by_name(host_ifname);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        message.attributes.push(LinkAttribute::Controller(bridge));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inner))),
        ]));
        self.change(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|error| kernel(format!("create veth pair {host_ifname} and {}", peer.0), error))
    }

    /// Brings up a sandbox's port: nothing is learnt by it, nothing unknown is flooded to it, and the host has no
    /// address on it.
    pub(super) fn raise_port(&mut self, index: u32, name: &str) -> Result<(), DatapathError> {
        let mut message = by_index(index);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::Learning(false),
                InfoBridgePort::UnicastFlood(false),
                // br_netfilter hands a translated frame to the bridge, not to routing: one whose destination was
                // translated to its own sender must be able to turn round.
                InfoBridgePort::HairpinMode(true),
            ])),
        ]));
        self.raise(message).map_err(|error| kernel(format!("bring up port {name}"), error))
    }

    /// Brings up a port to other hosts: frames from one such port never leave by another.
    pub(super) fn raise_uplink(
        &mut self,
        index: u32,
        name: &str,
        isolated: bool,
    ) -> Result<(), DatapathError> {
        let mut message = by_index(index);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(isolated)])),
        ]));
        self.raise(message).map_err(|error| kernel(format!("bring up port {name}"), error))
    }

    /// Brings up a link without an IPv6 address of its own making.
    pub(super) fn raise_quiet(&mut self, index: u32, name: &str) -> Result<(), DatapathError> {
        self.raise(by_index(index)).map_err(|error| kernel(format!("bring up {name}"), error))
    }

    fn raise(&mut self, mut message: LinkMessage) -> io::Result<()> {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
            AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
        ])]));
        match self.change(Message::NewLink(message.clone()), 0) {
            // Without IPv6 in the kernel there is no such mode.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                message.attributes.retain(|attribute| !matches!(attribute, LinkAttribute::AfSpecUnspec(_)));
                self.change(Message::NewLink(message), 0)
            }
            result => result,
        }
    }

    /// Waits until a link carries frames: the kernel tells its bridge of a new carrier a moment after the fact, and
    /// a frame sent before that is lost.
    pub(super) fn await_carrier(&mut self, name: &str) -> Result<(), DatapathError> {
        let deadline = Instant::now() + CARRIER_TIMEOUT;
        loop {
            let link = self.need_link(name)?;
            if link.operational {
                return Ok(());
            }
            if Instant::now() > deadline {
                let error =
                    io::Error::new(io::ErrorKind::TimedOut, format!("no carrier after {CARRIER_TIMEOUT:?}"));
                return Err(kernel(format!("wait for {name}"), error));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Brings up a link as it is.
    pub(super) fn raise_plain(&mut self, index: u32, name: &str) -> Result<(), DatapathError> {
        let mut message = by_index(index);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(Message::SetLink(message), 0).map_err(|error| kernel(format!("bring up {name}"), error))
    }

    /// Makes a link a port of a bridge; 0 makes it none.
    pub(super) fn set_master(&mut self, index: u32, bridge: u32, name: &str) -> Result<(), DatapathError> {
        let mut message = by_index(index);
        message.attributes.push(LinkAttribute::Controller(bridge));
        self.change(Message::SetLink(message), 0)
            .map_err(|error| kernel(format!("change the bridge of {name}"), error))
    }
}

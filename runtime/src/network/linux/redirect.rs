//! What arrives at an interface goes to the VM's tap, and the other way round.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::tc::TcMessage;
use skep_netlink::{Route, ingress, redirect, redirect_at, set_sysctl};

use crate::network::NetworkError;
use crate::network::plan::Found;

/// By which a filter is known as one of ours.
const PRIORITY: u16 = 0x534b;

/// Connects the interface `found` and `tap`.
pub(super) fn take(route: &mut Route, found: &Found, tap: &str) -> Result<(), NetworkError> {
    let name = &found.interface.name;
    let failed = |what: String| NetworkError::system(format!("take over interface {name}: {what}"));
    let index = index_of(route, tap)
        .and_then(|index| index.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV)))
        .map_err(failed(format!("find {tap}")))?;
    // The host has nothing to say on it.
    set_sysctl(&format!("ipv6/conf/{tap}/disable_ipv6"), "1")
        .map_err(failed(format!("turn IPv6 off on {tap}")))?;
    let mut message = link(index);
    message.attributes.push(LinkAttribute::Mtu(found.interface.mtu));
    raise(route, message).map_err(failed(format!("bring {tap} up with MTU {}", found.interface.mtu)))?;
    if !found.up {
        raise(route, link(found.index)).map_err(failed("bring it up".into()))?;
    }
    let exclusive = NLM_F_CREATE | NLM_F_EXCL;
    match route.change(Message::NewQueueDiscipline(ingress(found.index)), exclusive) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            return Err(NetworkError::InUse { name: name.clone() });
        }
        made => made.map_err(failed("make its ingress queue".into()))?,
    }
    // The guest can hear before it can speak.
    route
        .change(redirect(found.index, index, PRIORITY), exclusive)
        .map_err(failed(format!("redirect it to {tap}")))?;
    route
        .change(Message::NewQueueDiscipline(ingress(index)), exclusive)
        .map_err(failed(format!("make the ingress queue of {tap}")))?;
    route
        .change(redirect(index, found.index, PRIORITY), exclusive)
        .map_err(failed(format!("redirect {tap} to it")))
}

/// Removes the redirect of the interface `name`, if there is one of ours.
pub(super) fn release(route: &mut Route, name: &str) -> Result<(), NetworkError> {
    let failed = || NetworkError::system(format!("give interface {name} back"));
    let Some(index) = index_of(route, name).map_err(failed())? else { return Ok(()) };
    match route.change(Message::DelTrafficFilter(redirect_at(index, PRIORITY)), 0) {
        // No such filter, no such queue: it had not come to that.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {}
        removed => removed.map_err(failed())?,
    }
    // Others may have put filters of theirs there.
    let mut all = redirect_at(index, 0);
    all.header.info = 0;
    if filters(route, all).map_err(failed())? > 0 {
        return Ok(());
    }
    match route.change(Message::DelQueueDiscipline(ingress(index)), 0) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(()),
        removed => removed.map_err(failed()),
    }
}

fn filters(route: &mut Route, of: TcMessage) -> io::Result<usize> {
    match route.dump(Message::GetTrafficFilter(of)) {
        Ok(found) => Ok(found.len()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(0),
        Err(error) => Err(error),
    }
}

fn index_of(route: &mut Route, name: &str) -> io::Result<Option<u32>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match route.get(Message::GetLink(message)) {
        Ok(Some(Message::NewLink(found))) => Ok(Some(found.header.index)),
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn raise(route: &mut Route, mut message: LinkMessage) -> io::Result<()> {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    route.change(Message::SetLink(message), 0)
}

fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

//! Redirects: what arrives at one link leaves by another. Source of facts: tc-mirred(8), the kernel's
//! `include/uapi/linux/pkt_cls.h` and `tc_act/tc_mirred.h`.

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

/// The queue of what arrives, to which filters are given.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// Every protocol.
const ETH_P_ALL: u16 = 3;

fn message(link: u32, parent: TcHandle, handle: TcHandle) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(link).unwrap_or(0);
    message.header.parent = parent;
    message.header.handle = handle;
    message
}

/// The queue of what arrives at `link`, to be made or removed: all its filters go with it.
pub fn ingress(link: u32) -> TcMessage {
    let mut message = message(link, TcHandle::INGRESS, INGRESS);
    message.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    message
}

/// All filters of `priority` of what arrives at `link`, to be removed or listed.
pub fn redirect_at(link: u32, priority: u16) -> TcMessage {
    let mut message = message(link, INGRESS, TcHandle::UNSPEC);
    message.header.info = u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be());
    message
}

/// A filter of `priority` that takes everything that arrives at `link` and sends it out of `to`.
pub fn redirect(link: u32, to: u32, priority: u16) -> Message {
    // One key that looks at no bit: everything matches.
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let mut message = redirect_at(link, priority);
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    Message::NewTrafficFilter(message)
}

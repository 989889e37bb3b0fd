//! Limits on what an interface carries.
//!
//! A token bucket on the host's end limits what goes to the sandbox. What comes from it is redirected to a device of
//! its own (ifb) with another bucket: a queue works only where packets leave, and the sandbox's own end is in its
//! hands. Source of facts: the kernel's `include/uapi/linux/pkt_sched.h`.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use skep_netlink::{ingress, redirect};

use super::link::Link;
use super::netlink::{Route, allow, kernel};
use super::nft::Attrs;
use crate::cni::Bandwidth;
use crate::datapath::DatapathError;
use crate::network::Attachment;

/// `TCA_OPTIONS`, nested.
const OPTIONS: u16 = 2 | 1 << 15;
/// How long a packet may wait in the queue before there is no room for it, in milliseconds.
const LATENCY_MS: u64 = 25;

/// One direction's limit, in bytes.
struct Limit {
    rate: u64,
    burst: u32,
}

impl Limit {
    /// From bits, as the CNI has them. None without a rate.
    fn new(rate: u64, burst: u64, mtu: u32) -> Option<Self> {
        // A bucket smaller than a packet would let none through.
        let least = u64::from(mtu) + 64;
        let burst = u32::try_from((burst / 8).max(least)).unwrap_or(u32::MAX);
        (rate > 0).then_some(Self { rate: (rate / 8).max(1), burst })
    }

    /// The options of a `tbf` queue.
    fn options(&self) -> Vec<u8> {
        let queue = self.rate * LATENCY_MS / 1000 + u64::from(self.burst);
        // struct tc_ratespec; the full rate is told apart where it does not fit.
        let mut rate = vec![0, 1, 0, 0, 0, 0, 0, 0];
        rate.extend(u32::try_from(self.rate).unwrap_or(u32::MAX).to_ne_bytes());
        let mut parameters = rate;
        parameters.extend([0; 12]);
        for number in [u32::try_from(queue).unwrap_or(u32::MAX), 0, 0] {
            parameters.extend(number.to_ne_bytes());
        }
        let mut buffer = Vec::new();
        let mut attrs = Attrs(&mut buffer);
        attrs.bytes(1, &parameters); // TCA_TBF_PARMS
        attrs.bytes(4, &self.rate.to_ne_bytes()); // TCA_TBF_RATE64
        attrs.bytes(6, &self.burst.to_ne_bytes()); // TCA_TBF_BURST
        buffer
    }
}

/// Limits what passes the port.
pub(super) fn shape(
    route: &mut Route,
    attachment: &Attachment,
    port: &Link,
    bandwidth: &Bandwidth,
) -> Result<(), DatapathError> {
    let failed = |error| kernel(format!("limit the bandwidth of {}", attachment.host_ifname), error);
    if let Some(limit) = Limit::new(bandwidth.ingress_rate, bandwidth.ingress_burst, attachment.mtu) {
        route.change(bucket(port.index, &limit), NLM_F_CREATE | NLM_F_EXCL).map_err(failed)?;
    }
    let Some(limit) = Limit::new(bandwidth.egress_rate, bandwidth.egress_burst, attachment.mtu) else {
        return Ok(());
    };
    let name = Attachment::shaper_of(&attachment.id);
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.clone()));
    message.attributes.push(LinkAttribute::Mtu(attachment.mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
    let made = route.change(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
    allow(made, libc::EEXIST).map_err(|error| kernel(format!("create {name}"), error))?;
    let shaper = route.need_link(&name)?;
    route.raise_quiet(shaper.index, &name)?;
    route.change(bucket(shaper.index, &limit), NLM_F_CREATE | NLM_F_EXCL).map_err(failed)?;
    let ingress = Message::NewQueueDiscipline(ingress(port.index));
    route.change(ingress, NLM_F_CREATE | NLM_F_EXCL).map_err(failed)?;
    route.change(redirect(port.index, shaper.index, 1), NLM_F_CREATE | NLM_F_EXCL).map_err(failed)
}

fn queue(index: u32, parent: TcHandle, handle: TcHandle, kind: &str, options: Vec<u8>) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).unwrap_or(0);
    message.header.parent = parent;
    message.header.handle = handle;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message.attributes.push(TcAttribute::Other(DefaultNla::new(OPTIONS, options)));
    message
}

fn bucket(index: u32, limit: &Limit) -> Message {
    let handle = TcHandle { major: 1, minor: 0 };
    Message::NewQueueDiscipline(queue(index, TcHandle::ROOT, handle, "tbf", limit.options()))
}

/// Removes what [`shape`] made and does not go with the port.
pub(super) fn unshape(route: &mut Route, attachment: &Attachment) -> Result<(), DatapathError> {
    if attachment.bandwidth.is_some_and(|bandwidth| bandwidth.egress_rate > 0) {
        route.delete_link(&Attachment::shaper_of(&attachment.id))?;
    }
    Ok(())
}

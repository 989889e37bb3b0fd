//! Limits on what an interface carries.
//!
//! A bridge hands frames to its ports past netgraph(4), so on the port itself only what comes from the sandbox could be
//! limited. Where there is a limit the port is therefore one end of an epair(4); a node of ng_car(4) joins the other end
//! to the sandbox's own interface, and what passes either way passes it.

use skep_ifnet::sys::load_module;
use skep_ifnet::{Control, Error, Limits, Netgraph, Rate, find};

use crate::datapath::DatapathError;
use crate::network::{Attachment, Kind};

/// The limits of an attachment; none if it has no bandwidth to keep to.
pub(super) fn limits(attachment: &Attachment) -> Result<Option<Limits>, DatapathError> {
    let Some(bandwidth) = attachment.bandwidth.filter(|_| attachment.is_limited()) else { return Ok(None) };
    let rate = |field: &str, bits: u64, burst: u64| {
        if bits > Rate::MOST {
            return Err(DatapathError::Unsupported {
                what: format!("runtimeConfig.bandwidth.{field}: {bits} bits in a second"),
                why: format!("ng_car(4) limits to at most {}; leave it out for no limit", Rate::MOST),
            });
        }
        // A bucket smaller than a packet would let none through.
        let least = u64::from(attachment.mtu) + 64;
        Ok((bits > 0).then_some(Rate { bits, burst: (burst / 8).max(least) }))
    };
    Ok(Some(Limits {
        received: rate("egressRate", bandwidth.egress_rate, bandwidth.egress_burst)?,
        sent: rate("ingressRate", bandwidth.ingress_rate, bandwidth.ingress_burst)?,
    }))
}

/// Whether the limits of an attachment can be made.
pub(super) fn validate(attachment: &Attachment) -> Result<(), DatapathError> {
    if limits(attachment)?.is_none() {
        return Ok(());
    }
    if attachment.kind == Kind::Chained {
        return Err(DatapathError::Unsupported {
            what: "runtimeConfig.bandwidth in a chain".to_owned(),
            why: "on FreeBSD only an interface that this plugin makes is limited".to_owned(),
        });
    }
    load_module("ng_car");
    Ok(())
}

/// Makes the port, and joins the sandbox's interface to it within the limits.
pub(super) fn shape(control: &Control, attachment: &Attachment, limits: Limits) -> Result<(), Error> {
    let (port, device) = (&attachment.host_ifname, Attachment::shaper_of(&attachment.id));
    let made = control.create("epair")?;
    let inner = made.strip_suffix('a').map(|stem| format!("{stem}b")).unwrap_or_default();
    // Named first: from then on a DEL finds it.
    if let Err(error) = control.rename(&made, port) {
        let _ = control.destroy(&made);
        return Err(error);
    }
    control.set_mtu(port, attachment.mtu)?;
    control.set_mtu(&inner, attachment.mtu)?;
    for interface in [&inner, &device] {
        // Nobody speaks on them.
        control.set_ipv6(interface, false)?;
        // A bridge sees to this where the sandbox's interface is its port.
        control.make_checksums(interface)?;
    }
    Netgraph::open()?.join_limited(&device, &inner, limits)?;
    control.raise(&inner)?;
    control.raise(&device)
}

/// Removes what [`shape`] made; the sandbox's interface stays.
pub(super) fn unshape(control: &Control, attachment: &Attachment) -> Result<(), Error> {
    let device = Attachment::shaper_of(&attachment.id);
    control.destroy(&attachment.host_ifname)?;
    if find(&device)?.is_none() {
        return Ok(());
    }
    control.lower(&device)?;
    Netgraph::open()?.part_limited(&device)
}

/// What is not as [`shape`] left it.
pub(super) fn check(attachment: &Attachment, found: &mut Vec<String>) -> Result<(), DatapathError> {
    let Some(limits) = limits(attachment)? else { return Ok(()) };
    let device = Attachment::shaper_of(&attachment.id);
    match find(&device)? {
        None => found.push(format!("interface {device} is gone")),
        Some(link) if !link.up => found.push(format!("interface {device} is down")),
        Some(_) => {}
    }
    if !Netgraph::open()?.is_limited(&device, limits)? {
        found.push(format!("{device} has lost its limits"));
    }
    Ok(())
}

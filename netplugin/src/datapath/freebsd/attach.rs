//! One sandbox's interface: an epair(4) whose other end is in the sandbox's vnet jail, or a tap(4) on the host for a VM.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use skep_ifnet::sys::interruptible;
use skep_ifnet::{Control, DISCOVERS, Error, Jail, LEARNS, Netgraph, find, links, need, route};

use super::pf::ruleset::check_name;
use super::pf::tree::port_groups;
use super::{bridge, frames, shape};
use crate::cni::{Interface, Route};
use crate::datapath::{DatapathError, Existing};
use crate::mac::Mac;
use crate::network::{Attachment, Kind, Network};

/// How long a tap may be in use that is to be removed.
const CLOSED: Duration = Duration::from_secs(5);
/// More than a sandbox has, and few enough for a filter's program.
const MAX_ADDRESSES: usize = 8;

/// Whether the attachment can be made.
pub(super) fn validate(attachment: &Attachment) -> Result<(), DatapathError> {
    check_name(&attachment.host_ifname)?;
    shape::validate(attachment)?;
    if attachment.addresses.len() > MAX_ADDRESSES {
        return Err(DatapathError::Unsupported {
            what: format!("{} addresses for one sandbox", attachment.addresses.len()),
            why: format!("at most {MAX_ADDRESSES} are filtered on FreeBSD"),
        });
    }
    if let Some(route) = attachment.routes.iter().find(|route| route.table.is_some()) {
        return Err(DatapathError::Unsupported {
            what: format!("the route to {} in a table of its own", route.dst),
            why: "routes go into the jail's first table (net.fibs) only: leave `table` out".to_owned(),
        });
    }
    if let Some(tap) = &attachment.given {
        if attachment.kind != Kind::Tap {
            return Err(DatapathError::Unsupported {
                what: format!("SKEP_TAP={tap} in CNI_ARGS"),
                why: "a tap is for a VM on the host, where CNI_NETNS is 0".to_owned(),
            });
        }
        need(tap)?;
    }
    if attachment.kind != Kind::Veth {
        return Ok(());
    }
    let jail = Jail::open(&attachment.netns)?;
    let name = attachment.ifname.clone();
    let taken = jail.run(move || Ok(links()?.iter().any(|link| link.name == name)))?;
    if taken {
        return Err(DatapathError::Conflict(format!(
            "there is an interface {} in jail {} already",
            attachment.ifname, attachment.netns
        )));
    }
    Ok(())
}

/// Finds what another plugin made: the container's end in its jail, and the host's, which is a port of a bridge.
pub(super) fn find_existing(
    control: &Control,
    interfaces: &[Interface],
    netns: &str,
    ifname: &str,
) -> Result<Existing, DatapathError> {
    let conflict = |why: String| DatapathError::Conflict(format!("prevResult: {why}"));
    let name = ifname.to_owned();
    let inside: Option<(Option<[u8; 6]>, u32)> = Jail::open(netns)?.run(move || {
        Ok(links()?.into_iter().find(|link| link.name == name).map(|link| (link.mac, link.mtu)))
    })?;
    let (mac, mtu) =
        inside.ok_or_else(|| conflict(format!("there is no interface {ifname} in jail {netns}")))?;
    let mac = mac.ok_or_else(|| conflict(format!("{ifname} has no Ethernet address")))?;
    let all = links()?;
    // What is no bridge refuses the question.
    let bridge_of = |port: &str| {
        all.iter()
            .find(|link| matches!(control.port_flags(&link.name, port), Ok(Some(_))))
            .map(|link| link.name.clone())
    };
    let ours = interfaces
        .iter()
        .filter(|interface| interface.sandbox.is_none() && all.iter().any(|link| link.name == interface.name))
        .find_map(|interface| Some((interface.name.clone(), bridge_of(&interface.name)?)));
    let (host_ifname, bridge) =
        ours.ok_or_else(|| conflict("no interface of the host in it is a port of a bridge".to_owned()))?;
    Ok(Existing { host_ifname, bridge, mac: Mac(mac), mtu })
}

/// Makes the interface. The rules are there already.
pub(super) fn attach(
    control: &Control,
    network: &Network,
    attachment: &Attachment,
) -> Result<(), DatapathError> {
    let port = &attachment.host_ifname;
    let end = match attachment.kind {
        Kind::Chained => None,
        Kind::Veth | Kind::Tap => make(control, attachment)?,
    };
    join_groups(control, attachment)?;
    Netgraph::open()?.filter(port, &program(attachment))?;
    // Neither learns nor is asked for what nobody knows: who is behind it is written down.
    control.add_port(&attachment.bridge, port, 0)?;
    control.add_station(&attachment.bridge, port, attachment.mac.0)?;
    bridge::neighbours(attachment, true)?;
    if let Some((jail, other)) = end {
        control.set_mac(&other, attachment.mac.0)?;
        control.set_mtu(&other, attachment.mtu)?;
        control.move_into(&other, jail.id)?;
        jail.run(|| configure(network, attachment, &other))?;
    }
    Ok(control.raise(port)?)
}

/// What the sandbox's frames have to pass.
pub(super) fn program(attachment: &Attachment) -> Vec<frames::Insn> {
    frames::program(attachment.mac, &attachment.senders(), attachment.dhcp)
}

/// Gives the interface the addresses that it was made without. The rules are there already.
pub(super) fn give_addresses(attachment: &Attachment) -> Result<(), DatapathError> {
    Netgraph::open()?.refilter(&attachment.host_ifname, &program(attachment))?;
    bridge::neighbours(attachment, true)?;
    if attachment.kind == Kind::Veth {
        Jail::open(&attachment.netns)?.run(|| address(attachment))?;
    }
    Ok(())
}

/// Makes the port, and what is behind it; the end that is the jail's, if it is one's.
fn make(control: &Control, attachment: &Attachment) -> Result<Option<(Jail, String)>, DatapathError> {
    let port = &attachment.host_ifname;
    let limits = shape::limits(attachment)?;
    let jail = if attachment.kind == Kind::Veth { Some(Jail::open(&attachment.netns)?) } else { None };
    let made = match &attachment.given {
        Some(tap) => tap.clone(),
        None => control.create(if jail.is_some() { "epair" } else { "tap" })?,
    };
    // Named first: from then on a DEL finds it.
    let name = if limits.is_some() { Attachment::shaper_of(&attachment.id) } else { port.clone() };
    if let Err(error) = control.rename(&made, &name) {
        if attachment.given.is_none() {
            let _ = control.destroy(&made);
        }
        return Err(error.into());
    }
    control.set_mtu(&name, attachment.mtu)?;
    if let Some(limits) = limits {
        shape::shape(control, attachment, limits)?;
    }
    // The host itself does not speak on it.
    control.set_ipv6(port, false)?;
    let other = made.strip_suffix('a').map(|stem| format!("{stem}b"));
    Ok(jail.zip(other))
}

/// Puts the port into the groups by which its rules are found.
pub(super) fn join_groups(control: &Control, attachment: &Attachment) -> Result<(), Error> {
    port_groups(&attachment.id).iter().try_for_each(|group| control.add_group(&attachment.host_ifname, group))
}

/// The jail's side: name, addresses and routes. Runs inside.
fn configure(network: &Network, attachment: &Attachment, made: &str) -> Result<(), Error> {
    let control = Control::open()?;
    let name = &attachment.ifname;
    control.rename(made, name)?;
    let ipv6 = attachment.ips().any(|ip| ip.is_ipv6());
    if ipv6 && network.accept_ra {
        control.set_ipv6_with_routers(name, attachment.mac.link_local())?;
    } else {
        control.set_ipv6(name, ipv6)?;
        control.raise(name)?;
    }
    address(attachment)
}

/// The jail's addresses and routes. Runs inside.
fn address(attachment: &Attachment) -> Result<(), Error> {
    let control = Control::open()?;
    let name = &attachment.ifname;
    for address in &attachment.addresses {
        control.add_address(name, address.address)?;
    }
    let index = need(name)?.index;
    for wanted in &attachment.routes {
        route::add(index, wanted.dst.trunc(), gateway_of(attachment, wanted))?;
    }
    Ok(())
}

/// A route's gateway: its own, or that of the first address of its family. None for one on the link.
pub(super) fn gateway_of(attachment: &Attachment, route: &Route) -> Option<IpAddr> {
    if route.is_on_link() {
        return None;
    }
    route.gw.or_else(|| {
        attachment
            .addresses
            .iter()
            .find(|address| address.address.addr().is_ipv4() == route.dst.addr().is_ipv4())
            .and_then(|address| address.gateway)
    })
}

/// Removes the interface, as much of it as there is; the jail's end goes with the host's. Goes on after an error.
pub(super) fn detach(control: &Control, attachment: &Attachment) -> Vec<DatapathError> {
    let mut errors = Vec::new();
    errors.extend(match (&attachment.given, attachment.kind) {
        (_, Kind::Chained) => leave(control, attachment).err(),
        (Some(tap), _) => give_back(control, attachment, tap).err(),
        (None, _) => remove(control, attachment).err(),
    });
    errors.extend(bridge::neighbours(attachment, false).err());
    errors
}

/// Takes what is ours off an interface: its filter, and the groups by which its rules are found.
fn leave(control: &Control, attachment: &Attachment) -> Result<(), DatapathError> {
    let port = &attachment.host_ifname;
    if find(port)?.is_none() {
        return Ok(());
    }
    Netgraph::open()?.unfilter(port)?;
    for group in port_groups(&attachment.id) {
        control.remove_group(port, &group)?;
    }
    if attachment.kind == Kind::Chained && control.port_flags(&attachment.bridge, port)?.is_some() {
        control.remove_station(&attachment.bridge, attachment.mac.0)?;
        control.add_port(&attachment.bridge, port, LEARNS | DISCOVERS)?;
    }
    Ok(())
}

/// Gives a tap of the runtime's back, as much of it as was taken.
fn give_back(control: &Control, attachment: &Attachment, tap: &str) -> Result<(), DatapathError> {
    let port = &attachment.host_ifname;
    if attachment.is_limited() {
        let device = Attachment::shaper_of(&attachment.id);
        shape::unshape(control, attachment)?;
        return match find(&device)? {
            Some(_) => Ok(control.rename(&device, tap)?),
            None => Ok(()),
        };
    }
    if find(port)?.is_none() {
        return Ok(());
    }
    control.lower(port)?;
    control.remove_port(&attachment.bridge, port)?;
    leave(control, attachment)?;
    Ok(control.rename(port, tap)?)
}

/// Removes the port, and what is behind it. A tap that its VM has open still waits until it is closed, so from then on
/// nothing shall pass.
fn remove(control: &Control, attachment: &Attachment) -> Result<(), DatapathError> {
    let device = if attachment.is_limited() {
        shape::unshape(control, attachment)?;
        Attachment::shaper_of(&attachment.id)
    } else {
        attachment.host_ifname.clone()
    };
    control.lower(&device)?;
    match interruptible(CLOSED, || control.destroy(&device)) {
        Err(error) if error.errno() == Some(libc::EINTR) => Err(DatapathError::Conflict(format!(
            "interface {device} is still in use after {} s: end the VM that has it open first",
            CLOSED.as_secs()
        ))),
        result => Ok(result?),
    }
}

/// What is in the jail, as it tells it.
#[derive(Serialize, Deserialize)]
struct Inside {
    mac: bool,
    up: bool,
    mtu: u32,
    addresses: Vec<IpNet>,
}

/// What is not as [`attach`] left it.
pub(super) fn check(
    control: &Control,
    attachment: &Attachment,
    found: &mut Vec<String>,
) -> Result<(), DatapathError> {
    let port = &attachment.host_ifname;
    match find(port)? {
        None => found.push(format!("interface {port} is gone")),
        Some(link) => {
            if control.port_flags(&attachment.bridge, port)?.is_none() {
                found.push(format!("{port} is not a port of {}", attachment.bridge));
            }
            if !link.up {
                found.push(format!("interface {port} is down"));
            }
            let groups = control.groups(port)?;
            for group in port_groups(&attachment.id).iter().filter(|one| !groups.contains(one)) {
                found.push(format!("interface {port} is not in group {group}: its rules are not asked"));
            }
            if Netgraph::open()?.refused(port)?.is_none() {
                found.push(format!("{port} has lost its filter of frames"));
            }
        }
    }
    shape::check(attachment, found)?;
    if attachment.kind != Kind::Veth {
        return Ok(());
    }
    let (name, mac) = (&attachment.ifname, attachment.mac);
    let inside: Option<Inside> = Jail::open(&attachment.netns)?.run(|| {
        let link = links()?.into_iter().find(|link| link.name == *name);
        Ok(link.map(|link| Inside {
            mac: link.mac == Some(mac.0),
            up: link.up,
            mtu: link.mtu,
            addresses: link.addresses,
        }))
    })?;
    let Some(inside) = inside else {
        found.push(format!("interface {name} is gone from jail {}", attachment.netns));
        return Ok(());
    };
    if !inside.mac {
        found.push(format!("{name} does not have the Ethernet address {mac}"));
    }
    if !inside.up {
        found.push(format!("{name} is down"));
    }
    if inside.mtu != attachment.mtu {
        found.push(format!("{name} has an MTU of {}, not {}", inside.mtu, attachment.mtu));
    }
    for address in attachment.addresses.iter().filter(|one| !inside.addresses.contains(&one.address)) {
        found.push(format!("{name} has lost {}", address.address));
    }
    Ok(())
}

//! One sandbox's interface: an epair(4) whose other end is in the sandbox's vnet jail, or a tap(4) on the host for a VM.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use skep_ifnet::sys::interruptible;
use skep_ifnet::{Control, Error, Jail, Netgraph, find, links, need, route};

use super::pf::ruleset::{addresses, check_name};
use super::pf::tree::port_groups;
use super::{bridge, frames};
use crate::cni::Route;
use crate::datapath::DatapathError;
use crate::network::{Attachment, Kind};

/// How long a tap may be in use that is to be removed.
const CLOSED: Duration = Duration::from_secs(5);
/// More than a sandbox has, and few enough for a filter's program.
const MAX_ADDRESSES: usize = 8;

/// Whether the attachment can be made.
pub(super) fn validate(attachment: &Attachment) -> Result<(), DatapathError> {
    check_name(&attachment.host_ifname)?;
    if attachment.bandwidth.is_some_and(|limit| limit.ingress_rate > 0 || limit.egress_rate > 0) {
        return Err(DatapathError::Unsupported {
            what: "runtimeConfig.bandwidth".to_owned(),
            // A pipe hands a packet back to IP: what was bridged would be routed, past its bridge and its rules.
            why: "FreeBSD has no limit for both directions of a bridge's port: pf's dummynet pipes route what was bridged"
                .to_owned(),
        });
    }
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

/// Makes the interface. The rules are there already.
pub(super) fn attach(control: &Control, attachment: &Attachment) -> Result<(), DatapathError> {
    let port = &attachment.host_ifname;
    let jail = match attachment.kind {
        Kind::Veth => Some(Jail::open(&attachment.netns)?),
        Kind::Tap | Kind::Chained => None,
    };
    let made = match &attachment.given {
        Some(tap) => tap.clone(),
        None => control.create(if jail.is_some() { "epair" } else { "tap" })?,
    };
    let other = made.strip_suffix('a').filter(|_| jail.is_some()).map(|stem| format!("{stem}b"));
    // Named first: from then on a DEL finds it.
    if let Err(error) = control.rename(&made, port) {
        if attachment.given.is_none() {
            let _ = control.destroy(&made);
        }
        return Err(error.into());
    }
    control.set_mtu(port, attachment.mtu)?;
    join_groups(control, attachment)?;
    // The host itself does not speak on it.
    control.set_ipv6(port, false)?;
    let program = frames::program(attachment.mac, &addresses(attachment));
    Netgraph::open()?.filter(port, &program)?;
    // Neither learns nor is asked for what nobody knows: who is behind it is written down.
    control.add_port(&attachment.bridge, port, 0)?;
    control.add_station(&attachment.bridge, port, attachment.mac.0)?;
    bridge::neighbours(attachment, true)?;
    if let (Some(jail), Some(other)) = (jail, other) {
        control.set_mac(&other, attachment.mac.0)?;
        control.set_mtu(&other, attachment.mtu)?;
        control.move_into(&other, jail.id)?;
        jail.run(|| configure(attachment, &other))?;
    }
    Ok(control.raise(port)?)
}

/// Puts the port into the groups by which its rules are found.
pub(super) fn join_groups(control: &Control, attachment: &Attachment) -> Result<(), Error> {
    port_groups(&attachment.id).iter().try_for_each(|group| control.add_group(&attachment.host_ifname, group))
}

/// The jail's side: name, addresses and routes. Runs inside.
fn configure(attachment: &Attachment, made: &str) -> Result<(), Error> {
    let control = Control::open()?;
    let name = &attachment.ifname;
    control.rename(made, name)?;
    control.set_ipv6(name, attachment.ips().any(|ip| ip.is_ipv6()))?;
    control.raise(name)?;
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
fn gateway_of(attachment: &Attachment, route: &Route) -> Option<IpAddr> {
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
    if attachment.kind != Kind::Chained {
        errors.extend(match &attachment.given {
            Some(tap) => give_back(control, attachment, tap).err(),
            None => remove(control, attachment).err(),
        });
    }
    errors.extend(bridge::neighbours(attachment, false).err());
    errors
}

/// Gives a tap of the runtime's back, as much of it as was taken.
fn give_back(control: &Control, attachment: &Attachment, tap: &str) -> Result<(), DatapathError> {
    let port = &attachment.host_ifname;
    if find(port)?.is_none() {
        return Ok(());
    }
    control.lower(port)?;
    control.remove_port(&attachment.bridge, port)?;
    Netgraph::open()?.unfilter(port)?;
    for group in port_groups(&attachment.id) {
        control.remove_group(port, &group)?;
    }
    Ok(control.rename(port, tap)?)
}

/// Removes the port. A tap that its VM has open still waits until it is closed, so from then on nothing shall pass.
fn remove(control: &Control, attachment: &Attachment) -> Result<(), DatapathError> {
    let port = &attachment.host_ifname;
    control.lower(port)?;
    match interruptible(CLOSED, || control.destroy(port)) {
        Err(error) if error.errno() == Some(libc::EINTR) => Err(DatapathError::Conflict(format!(
            "interface {port} is still in use after {} s: end the VM that has it open first",
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

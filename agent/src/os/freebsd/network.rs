//! The sandbox's network: the guest's interfaces, routes and neighbours, as the host says they are to be.

use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use ipnet::IpNet;
use skep_ifnet::{Control, Link, links, need, route};
use skep_protocol::api::{Interface, InterfaceAddress, Network, Route};

use crate::error::Refusal;

/// Interfaces, and for each of them addresses, routes and neighbours.
const MOST: usize = 1024;

/// Makes the interfaces what the host says. Those that no interface names are detached from their driver.
pub(crate) fn settle(network: &Network) -> Result<(), Refusal> {
    check(network)?;
    let found = links().map_err(|e| Refusal::internal(e.to_string()))?;
    let wanted = network
        .interfaces
        .iter()
        .enumerate()
        .map(|(index, interface)| Ok((index, interface, by_device(&found, index, interface)?)))
        .collect::<Result<Vec<_>, Refusal>>()?;
    for link in found.iter().filter(|link| link.mac.is_some()) {
        if !wanted.iter().any(|(_, _, used)| used.name == link.name) {
            detach(&link.name)
                .map_err(|e| Refusal::internal(format!("network: cannot take {} away: {e}", link.name)))?;
        }
    }
    let control = Control::open().map_err(|e| Refusal::internal(e.to_string()))?;
    for (index, interface, link) in &wanted {
        configure(&control, interface, link)
            .map_err(|reason| Refusal::internal(format!("network.interfaces[{index}]: {reason}")))?;
    }
    Ok(())
}

fn check(network: &Network) -> Result<(), Refusal> {
    let invalid = |index: usize, reason: String| {
        Err(Refusal::invalid(format!("network.interfaces[{index}]: {reason}")))
    };
    if network.interfaces.len() > MOST {
        return Err(Refusal::invalid(format!("network.interfaces: more than {MOST}")));
    }
    for (index, interface) in network.interfaces.iter().enumerate() {
        let Interface { name, addresses, routes, neighbours, .. } = interface;
        if name.is_empty() || name.len() > 15 || name.contains(['\0', '/']) {
            return invalid(index, format!("name {name:?}: not 1 to 15 plain bytes"));
        }
        if [addresses.len(), routes.len(), neighbours.len()].iter().any(|count| *count > MOST) {
            return invalid(index, format!("more than {MOST} addresses, routes or neighbours"));
        }
        if let Some(address) = addresses.iter().find(|address| !address.peer.is_empty()) {
            return invalid(index, format!("{:?}: point-to-point addresses are not supported", address.ip));
        }
    }
    Ok(())
}

fn by_device<'a>(links: &'a [Link], index: usize, interface: &Interface) -> Result<&'a Link, Refusal> {
    let device = ethernet(&interface.device);
    links.iter().find(|link| device.is_some() && link.mac == device).ok_or_else(|| {
        Refusal::invalid(format!(
            "network.interfaces[{index}].device {:02x?}: the guest has no such device",
            interface.device
        ))
    })
}

fn configure(control: &Control, interface: &Interface, link: &Link) -> Result<(), String> {
    let Interface { name, mtu, addresses, routes, neighbours, .. } = interface;
    let told = |e: skep_ifnet::Error| e.to_string();
    if link.name != *name {
        control.rename(&link.name, name).map_err(told)?;
    }
    let mac = ethernet(&interface.mac).ok_or_else(|| format!("mac {:02x?}: not 6 bytes", interface.mac))?;
    if link.mac != Some(mac) {
        control.set_mac(name, mac).map_err(told)?;
    }
    if *mtu != 0 && *mtu != link.mtu {
        control.set_mtu(name, *mtu).map_err(told)?;
    }
    let nets = addresses.iter().map(net_of).collect::<Result<Vec<_>, _>>()?;
    control.set_ipv6(name, nets.iter().any(|net| matches!(net, IpNet::V6(_)))).map_err(told)?;
    control.raise(name).map_err(told)?;
    for net in nets.into_iter().filter(|net| !is_link_local(net)) {
        control.add_address(name, net).map_err(told)?;
    }
    let index = need(name).map_err(told)?.index;
    for neighbour in neighbours {
        let mac = ethernet(&neighbour.mac).ok_or_else(|| format!("neighbour: mac {:02x?}", neighbour.mac))?;
        let at = ip_of(&neighbour.ip)?;
        route::add_neighbour(index, at, mac).map_err(told)?;
    }
    for route in routes {
        let (net, gateway) = route_of(route)?;
        match route::add(index, net, gateway) {
            // What comes with an address is there.
            Err(e) if gateway.is_none() && e.errno() == Some(libc::EEXIST) => {}
            done => done.map_err(told)?,
        }
    }
    Ok(())
}

/// The kernel makes it by itself, from the Ethernet address.
fn is_link_local(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local())
}

fn ethernet(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok()
}

fn ip_of(bytes: &[u8]) -> Result<IpAddr, String> {
    let four: Result<[u8; 4], _> = bytes.try_into();
    let sixteen: Result<[u8; 16], _> = bytes.try_into();
    match (four, sixteen) {
        (Ok(four), _) => Ok(four.into()),
        (_, Ok(sixteen)) => Ok(sixteen.into()),
        _ => Err(format!("an IP address of {} bytes", bytes.len())),
    }
}

fn net(bytes: &[u8], prefix: u32) -> Result<IpNet, String> {
    let ip = ip_of(bytes)?;
    let length = u8::try_from(prefix).ok();
    length
        .and_then(|length| IpNet::new(ip, length).ok())
        .ok_or_else(|| format!("{ip}/{prefix}: no such prefix"))
}

fn net_of(address: &InterfaceAddress) -> Result<IpNet, String> {
    net(&address.ip, address.prefix)
}

fn route_of(route: &Route) -> Result<(IpNet, Option<IpAddr>), String> {
    let gateway = if route.gateway.is_empty() { None } else { Some(ip_of(&route.gateway)?) };
    // The default route may come without a destination: then it is of its gateway's family.
    let net = match (&gateway, route.destination.is_empty()) {
        (Some(IpAddr::V6(_)), true) => net(&[0; 16], 0)?,
        (_, true) => net(&[0; 4], 0)?,
        (_, false) => net(&route.destination, route.prefix)?,
    };
    Ok((net, gateway))
}

/// `struct devreq` of sys/bus.h.
#[repr(C)]
struct Request {
    name: [u8; 128],
    flags: libc::c_int,
    data: [usize; 2],
}

// The group and number of devctl(3)'s DEV_DETACH.
nix::ioctl_write_ptr!(detach_device, b'D', 2, Request);
const FORCE: libc::c_int = 1;

/// Takes a device's driver away, and with it the interface that has the device's name: devctl(8), `detach`.
fn detach(name: &str) -> std::io::Result<()> {
    let devctl = std::fs::OpenOptions::new().read(true).open("/dev/devctl2")?;
    let mut request = Request { name: [0; 128], flags: FORCE, data: [0; 2] };
    for (to, from) in request.name[..127].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the request is an initialised devreq, which is what DEV_DETACH reads.
    unsafe { detach_device(devctl.as_raw_fd(), &raw const request) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_addresses_are_read() {
        let address = InterfaceAddress { ip: vec![10, 0, 0, 2], prefix: 24, ..InterfaceAddress::new() };
        assert_eq!(net_of(&address).map(|net| net.to_string()), Ok("10.0.0.2/24".into()));
        let default = Route { gateway: vec![10, 0, 0, 1], ..Route::new() };
        let (net, gateway) = route_of(&default).expect("route");
        assert_eq!((net.to_string(), gateway), ("0.0.0.0/0".into(), Some([10, 0, 0, 1].into())));
        assert!(net_of(&InterfaceAddress { ip: vec![1, 2], ..InterfaceAddress::new() }).is_err());
        let long = InterfaceAddress { ip: vec![10, 0, 0, 2], prefix: 33, ..InterfaceAddress::new() };
        assert!(net_of(&long).is_err());
    }
}

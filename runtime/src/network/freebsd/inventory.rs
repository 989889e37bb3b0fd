//! What there is in a vnet jail, as the guest is to have it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use skep_ifnet::{Control, Error, Jail, links, route};
use skep_protocol::api;

use crate::network::NetworkError;
use crate::network::cni::address;
use crate::network::plan::Found;

// linux/rtnetlink.h: what the guest is told is in Linux's terms.
const RT_SCOPE_UNIVERSE: u32 = 0;
const RT_SCOPE_LINK: u32 = 253;
const RTPROT_STATIC: u32 = 4;

/// An interface, as a process inside tells of it.
#[derive(Serialize, Deserialize)]
struct Seen {
    index: u16,
    name: String,
    up: bool,
    loopback: bool,
    mac: Option<[u8; 6]>,
    mtu: u32,
    addresses: Vec<IpNet>,
    routes: Vec<SeenRoute>,
    hears_routers: bool,
}

#[derive(Serialize, Deserialize)]
struct SeenRoute {
    net: IpNet,
    gateway: Option<IpAddr>,
    mtu: u32,
}

/// Reads what is in a jail.
pub(super) fn look(jail: &Jail) -> Result<Vec<Found>, NetworkError> {
    Ok(jail.run(inside)?.into_iter().map(found).collect())
}

fn inside() -> Result<Vec<Seen>, Error> {
    let routes = route::list()?;
    let of = |index: u16| {
        let own = routes.iter().filter(move |route| route.index == index);
        own.map(|route| SeenRoute { net: route.net, gateway: route.gateway, mtu: route.mtu }).collect()
    };
    let control = Control::open()?;
    Ok(links()?
        .into_iter()
        .map(|link| Seen {
            // What speaks no IPv6 at all has no such flag.
            hears_routers: control.hears_routers(&link.name).unwrap_or(false),
            index: link.index,
            up: link.up,
            loopback: link.loopback,
            mac: link.mac,
            mtu: link.mtu,
            addresses: link.addresses,
            routes: of(link.index),
            name: link.name,
        })
        .collect())
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn found(seen: Seen) -> Found {
    let on_link = |ip: IpAddr| seen.addresses.iter().any(|own| own.contains(&ip));
    let mut interface = api::Interface {
        mac: seen.mac.map(|mac| mac.to_vec()).unwrap_or_default(),
        name: seen.name,
        mtu: seen.mtu,
        addresses: seen.addresses.iter().map(|net| address(*net)).collect(),
        ..api::Interface::new()
    };
    for route in &seen.routes {
        let scope = if route.gateway.is_some() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
        interface.routes.push(api::Route {
            destination: bytes(route.net.network()),
            prefix: route.net.prefix_len().into(),
            gateway: route.gateway.map(bytes).unwrap_or_default(),
            scope,
            onlink: route.gateway.is_some_and(|by| !on_link(by)),
            mtu: route.mtu,
            protocol: RTPROT_STATIC,
            ..api::Route::new()
        });
    }
    // What a gateway is reached by has to be there before it.
    interface.routes.sort_by_key(|route| !route.gateway.is_empty());
    let ipv6 = seen.addresses.iter().any(|net| net.addr().is_ipv6());
    // Its addresses are those that the interface has, none of the guest's making.
    for (setting, value) in [
        // 2: also where the guest forwards for its containers.
        ("accept_ra", if seen.hears_routers { "2" } else { "0" }),
        ("autoconf", "0"),
        ("addr_gen_mode", "1"),
        ("disable_ipv6", if ipv6 { "0" } else { "1" }),
    ] {
        interface.ipv6_settings.insert(setting.into(), value.into());
    }
    Found {
        index: seen.index.into(),
        ethernet: seen.mac.is_some(),
        loopback: seen.loopback,
        up: seen.up,
        interface,
    }
}

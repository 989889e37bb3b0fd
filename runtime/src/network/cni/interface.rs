//! What a guest is told of an interface that plugins made: pure.

use std::net::IpAddr;

use ipnet::IpNet;
use skep_cni::cni::{AddResult, Dns};
use skep_protocol::api;

/// What Ethernet carries where nobody says otherwise.
const ETHERNET_MTU: u32 = 1500;
// linux/rtnetlink.h
const RT_SCOPE_UNIVERSE: u32 = 0;
const RT_SCOPE_LINK: u32 = 253;
const RTPROT_STATIC: u32 = 4;

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The interface `ifname` of a result, for the VM's device with the Ethernet address `device`; it keeps that address if
/// the result has no other. It has routes from what routers advertise if it `hears_routers`.
pub(crate) fn interface(
    result: &AddResult,
    ifname: &str,
    device: [u8; 6],
    hears_routers: bool,
) -> api::Interface {
    let mut found = api::Interface {
        device: device.to_vec(),
        mac: device.to_vec(),
        name: ifname.to_owned(),
        mtu: ETHERNET_MTU,
        ..api::Interface::new()
    };
    // The container's has the sandbox in it that it is for; the host's have none.
    let index = result.interfaces.iter().position(|one| one.name == ifname && one.sandbox.is_some());
    if let Some(one) = index.and_then(|index| result.interfaces.get(index)) {
        if let Some(mac) = one.mac {
            found.mac = mac.0.to_vec();
        }
        found.mtu = one.mtu.unwrap_or(ETHERNET_MTU);
    }
    let ours: Vec<_> =
        result.ips.iter().filter(|ip| ip.interface.is_none() || ip.interface == index).collect();
    found.addresses = ours.iter().map(|ip| address(ip.address)).collect();
    let gateway = |ipv4: bool| ours.iter().filter_map(|ip| ip.gateway).find(|ip| ip.is_ipv4() == ipv4);
    let on_link = |ip: IpAddr| ours.iter().any(|own| own.address.contains(&ip));
    for wanted in &result.routes {
        let by = wanted.gw.or_else(|| gateway(wanted.dst.addr().is_ipv4()).filter(|_| !wanted.is_on_link()));
        let net = wanted.dst.trunc();
        let scope = if by.is_some() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
        found.routes.push(api::Route {
            destination: bytes(net.addr()),
            prefix: net.prefix_len().into(),
            gateway: by.map(bytes).unwrap_or_default(),
            scope: wanted.scope.map_or(scope, u32::from),
            metric: wanted.priority.unwrap_or_default(),
            onlink: by.is_some_and(|by| !on_link(by) && !is_link_local(by)),
            mtu: wanted.mtu.unwrap_or_default(),
            protocol: RTPROT_STATIC,
            ..api::Route::new()
        });
    }
    // What a gateway is reached by has to be there before it.
    found.routes.sort_by_key(|route| !route.gateway.is_empty());
    // What its sandbox does not have of IPv6, it shall not make up.
    let ipv6 = ours.iter().any(|ip| ip.address.addr().is_ipv6());
    for (setting, value) in [
        // 2: also where the guest forwards for its containers.
        ("accept_ra", if hears_routers { "2" } else { "0" }),
        ("autoconf", "0"),
        ("disable_ipv6", if ipv6 { "0" } else { "1" }),
    ] {
        found.ipv6_settings.insert(setting.into(), value.into());
    }
    found
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// An address of an interface.
pub(in crate::network) fn address(net: IpNet) -> api::InterfaceAddress {
    let broadcast = match net {
        IpNet::V4(net) if net.prefix_len() < 31 => net.broadcast().octets().to_vec(),
        _ => Vec::new(),
    };
    let scope = if is_link_local(net.addr()) { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
    api::InterfaceAddress {
        ip: bytes(net.addr()),
        prefix: net.prefix_len().into(),
        broadcast,
        scope,
        ..api::InterfaceAddress::new()
    }
}

/// A resolver's settings, of all networks of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

/// Takes over what is a word of a resolver's file and not there yet.
fn merge(into: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for word in more {
        let plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic());
        if plain && !into.contains(&word) {
            into.push(word);
        }
    }
}

impl Resolver {
    /// Adds what a network says; what came before is asked first.
    pub(crate) fn add(&mut self, dns: &Dns) {
        merge(&mut self.nameservers, dns.nameservers.iter().cloned());
        // resolv.conf(5): `domain` is a search list of one.
        merge(&mut self.search, dns.search.iter().chain(&dns.domain).cloned());
        merge(&mut self.options, dns.options.iter().cloned());
    }

    /// Its file, resolv.conf(5); none if nothing is said.
    pub(crate) fn file(&self) -> Option<String> {
        if *self == Self::default() {
            return None;
        }
        let mut lines: Vec<String> =
            self.nameservers.iter().map(|server| format!("nameserver {server}\n")).collect();
        for (key, words) in [("search", &self.search), ("options", &self.options)] {
            if !words.is_empty() {
                lines.push(format!("{key} {}\n", words.join(" ")));
            }
        }
        Some(lines.concat())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DEVICE: [u8; 6] = [2, 1, 1, 1, 1, 0];

    fn made(result: &Value) -> api::Interface {
        interface(&AddResult::from_json(result).unwrap(), "eth0", DEVICE, false)
    }

    fn shown(route: &api::Route) -> (Vec<u8>, u32, Vec<u8>, bool) {
        (route.destination.clone(), route.prefix, route.gateway.clone(), route.onlink)
    }

    #[test]
    fn a_guest_gets_what_the_plugin_says_of_the_sandboxs_interface() {
        let found = made(&json!({
            "interfaces": [{ "name": "cni0", "mtu": 9000 }, { "name": "eth0", "mac": "02:00:00:00:00:07" },
                { "name": "eth0", "mac": "02:00:00:00:00:09", "mtu": 1450, "sandbox": "0" }],
            "ips": [{ "address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 2 },
                { "address": "192.0.2.1/24", "interface": 0 },
                { "address": "fd01::5/64", "gateway": "fd01::1", "interface": 2 }],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0", "mtu": 1280, "priority": 7 },
                { "dst": "10.9.1.2/16", "gw": "10.1.0.254" }],
        }));
        assert_eq!(
            (found.mac.clone(), found.mtu, found.device.clone()),
            (vec![2, 0, 0, 0, 0, 9], 1450, DEVICE.to_vec())
        );
        assert_eq!(found.addresses.len(), 2);
        assert_eq!((found.addresses[0].ip.clone(), found.addresses[0].prefix), (vec![10, 1, 0, 5], 24));
        assert_eq!(found.addresses[0].broadcast, [10, 1, 0, 255]);
        assert_eq!(shown(&found.routes[0]), (vec![0; 4], 0, vec![10, 1, 0, 1], false));
        assert_eq!(
            (found.routes[1].mtu, found.routes[1].metric, found.routes[1].gateway.len()),
            (1280, 7, 16)
        );
        assert_eq!(shown(&found.routes[2]), (vec![10, 9, 0, 0], 16, vec![10, 1, 0, 254], false));
        assert_eq!(found.ipv6_settings["disable_ipv6"], "0");
    }

    #[test]
    fn little_said_is_enough() {
        let found = made(&json!({ "ips": [{ "address": "10.1.0.5/32", "gateway": "10.0.0.1" }],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "fd00::/8" }] }));
        assert_eq!((found.mac, found.mtu), (DEVICE.to_vec(), ETHERNET_MTU));
        assert_eq!(
            (found.ipv6_settings["accept_ra"].as_str(), found.ipv6_settings["autoconf"].as_str()),
            ("0", "0")
        );
        // On the link first, and a gateway outside of every subnet is taken at its word.
        assert_eq!(found.routes[0].scope, RT_SCOPE_LINK);
        assert_eq!(shown(&found.routes[1]), (vec![0; 4], 0, vec![10, 0, 0, 1], true));
        assert!(found.addresses[0].broadcast.is_empty());
        assert_eq!(found.ipv6_settings["disable_ipv6"], "1");
    }

    #[test]
    fn routes_that_are_said_to_be_on_the_link_have_no_gateway() {
        let result = json!({ "ips": [{ "address": "10.1.0.5/24", "gateway": "10.9.0.1" }],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.1/32", "scope": 253 }] });
        let result = AddResult::from_json(&result).unwrap();
        let found = interface(&result, "eth0", DEVICE, true);
        assert_eq!(shown(&found.routes[0]), (vec![10, 9, 0, 1], 32, vec![], false));
        assert_eq!(found.ipv6_settings["accept_ra"], "2");
        assert_eq!(found.ipv6_settings["autoconf"], "0");
    }

    #[test]
    fn resolvers_of_several_networks_are_one_file() {
        let mut resolver = Resolver::default();
        assert_eq!(resolver.file(), None);
        let dns = |value: Value| serde_json::from_value::<Dns>(value).unwrap();
        resolver.add(&dns(json!({ "nameservers": ["10.0.0.1"], "domain": "a.example" })));
        resolver.add(&dns(
            json!({ "nameservers": ["10.0.0.1", "fd00::1\nnameserver evil"], "search": ["b.example"],
            "options": ["ndots:2"] }),
        ));
        assert_eq!(
            resolver.file().unwrap(),
            "nameserver 10.0.0.1\nsearch a.example b.example\noptions ndots:2\n"
        );
    }
}

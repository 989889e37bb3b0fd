//! Ports of the host that lead to sandboxes. No input or output.
//!
//! Whoever asks for such a port by an interface gets the sandbox's address in its place. A process of the host itself asks
//! by the loopback, where the answer would come back to it with the sandbox's address and port, which it never asked for:
//! it leaves by no interface, and pf translates back what leaves only. So these flows come, while they are under way, from
//! an address that is nobody's and that has a route to the loopback; the answer goes there, and by the loopback is
//! translated back twice.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::ruleset::{Ruleset, family};
use super::tree::{GROUP, map_anchor};
use crate::network::Attachment;

/// Marks packets that came by a published port.
pub(super) const PUBLISHED: &str = "skep_published";

/// Where flows of the host's own come from while they are under way: IPv4's dummy address (RFC 7600), and one of the range
/// that nobody routes (RFC 6666).
pub(in super::super) fn from_host(ipv6: bool) -> IpAddr {
    if ipv6 { Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 8).into() } else { Ipv4Addr::new(192, 0, 0, 8).into() }
}

/// A sandbox's published ports; none if it has none.
pub(in super::super) fn map(attachment: &Attachment) -> Option<Ruleset> {
    let mut set = Ruleset::of(map_anchor(&attachment.id));
    for port in &attachment.ports {
        // One address of each family is published: the first.
        for ipv6 in [false, true] {
            let Some(ip) = attachment.ips().find(|ip| ip.is_ipv6() == ipv6) else { continue };
            let host = match port.host_ip {
                None => "(self)".to_owned(),
                Some(host) if host.is_ipv6() == ipv6 => host.to_string(),
                Some(_) => continue,
            };
            // The kernel forwards nothing that comes from ::1.
            let (anybody, local) = (if ipv6 { "! ::1" } else { "any" }, from_host(ipv6));
            let asked = format!(
                "{} proto {} from {anybody} to {host} port {}",
                family(ip),
                port.protocol,
                port.host_port
            );
            let to = format!("tag {PUBLISHED} -> {ip} port {}", port.container_port);
            set.line(&format!("nat on lo0 {asked} -> {local}"));
            set.line(&format!("rdr pass on ! {GROUP} {asked} {to}"));
            // From a sandbox, its own lists are asked first.
            set.line(&format!("rdr on {GROUP} {asked} {to}"));
        }
    }
    (!set.text.is_empty()).then_some(set)
}

/// Addresses that ports are published on by name: the host need not have them, they may just be routed to it.
pub(in super::super) fn hosts<'a>(attachments: impl Iterator<Item = &'a Attachment>) -> Vec<IpNet> {
    attachments.flat_map(|one| &one.ports).filter_map(|port| port.host_ip).map(IpNet::from).collect()
}

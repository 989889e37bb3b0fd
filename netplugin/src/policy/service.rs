//! Rules of a list by what they speak of: packet filters look peers up in tables, one lookup for each service.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::rule::{GroupName, Peer, PortRange, Rule, Transport};

/// Rules that differ in nothing but their peers.
#[derive(Debug)]
pub(crate) struct Service<'a> {
    /// The protocol; none means every one.
    pub(crate) transport: Option<Transport>,
    /// The destination ports.
    pub(crate) ports: PortRange,
    /// Whether everybody is a peer.
    pub(crate) any: bool,
    /// Ranges of addresses.
    pub(crate) nets: Vec<IpNet>,
    /// Groups of sandboxes.
    pub(crate) groups: Vec<&'a GroupName>,
}

/// The services of a list, in an order that depends on nothing but what they are.
pub(crate) fn by_service(rules: &[Rule]) -> impl Iterator<Item = Service<'_>> {
    // The protocol's IPv4 number orders them.
    let mut services: BTreeMap<(Option<u8>, u16, u16), Service<'_>> = BTreeMap::new();
    for rule in rules {
        let ports = if rule.ports.is_empty() { &[PortRange::ALL][..] } else { &rule.ports };
        for range in ports {
            let key = (rule.transport.map(|transport| transport.number(false)), range.first, range.last);
            let service = services.entry(key).or_insert_with(|| Service {
                transport: rule.transport,
                ports: *range,
                any: false,
                nets: Vec::new(),
                groups: Vec::new(),
            });
            match &rule.peer {
                Peer::Any => service.any = true,
                Peer::Net(net) => service.nets.push(*net),
                Peer::Group(group) => service.groups.push(group),
            }
        }
    }
    services.into_values()
}

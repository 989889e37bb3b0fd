//! CHECK, and what was counted.

use super::address::KnownRoute;
use super::attach::gateway_of;
use super::netlink::{Route, kernel};
use super::netns::Netns;
use super::{Host, rules};
use crate::datapath::{Counters, DatapathError};
use crate::network::{Attachment, Network};

/// What differs from what ADD made.
pub(super) fn check(
    host: &Host,
    network: &Network,
    attachment: &Attachment,
) -> Result<Vec<String>, DatapathError> {
    let mut found = Vec::new();
    let bridge = host.route().link(&attachment.bridge)?;
    match &bridge {
        None => found.push(format!("bridge {} is gone", attachment.bridge)),
        Some(bridge) => {
            if !bridge.up {
                found.push(format!("bridge {} is down", attachment.bridge));
            }
            if !bridge.filters_bridged {
                found.push(format!(
                    "bridge {} does not pass its frames to the packet filter",
                    attachment.bridge
                ));
            }
            let addresses = host.route().addresses()?;
            for gateway in &network.gateways {
                if !addresses.contains(&(bridge.index, *gateway)) {
                    found.push(format!("bridge {} has lost {gateway}", attachment.bridge));
                }
            }
        }
    }
    match host.route().link(&attachment.host_ifname)? {
        None => found.push(format!("interface {} is gone", attachment.host_ifname)),
        Some(port) => {
            if bridge.is_some_and(|bridge| port.master != Some(bridge.index)) {
                found.push(format!("{} is not a port of {}", attachment.host_ifname, attachment.bridge));
            }
            if !port.up {
                found.push(format!("interface {} is down", attachment.host_ifname));
            }
        }
    }
    found.extend(Netns::open(&attachment.netns)?.run(|| inside(attachment))?);
    filter(host, network, attachment, &mut found)?;
    Ok(found)
}

/// The container's side. Runs inside its namespace.
fn inside(attachment: &Attachment) -> Result<Vec<String>, DatapathError> {
    let mut route = Route::open()?;
    let name = &attachment.ifname;
    let Some(link) = route.link(name)? else {
        return Ok(vec![format!("interface {name} is gone from {}", attachment.netns)]);
    };
    let mut found = Vec::new();
    if link.mac != Some(attachment.mac) {
        found.push(format!("{name} does not have the Ethernet address {}", attachment.mac));
    }
    if !link.up {
        found.push(format!("{name} is down"));
    }
    // A later plugin of the chain may have made it smaller; what is longer than ours gets lost.
    if link.mtu > attachment.mtu {
        found.push(format!("{name} has an MTU of {}, more than {}", link.mtu, attachment.mtu));
    }
    let addresses = route.addresses()?;
    for address in &attachment.addresses {
        if !addresses.contains(&(link.index, address.address)) {
            found.push(format!("{name} has lost {}", address.address));
        }
    }
    for ipv6 in [false, true] {
        let wanted = attachment.routes.iter().filter(|wanted| wanted.dst.addr().is_ipv6() == ipv6);
        let mut present = None;
        for wanted in wanted.filter(|wanted| wanted.table.is_none()) {
            if present.is_none() {
                present =
                    Some(route.routes_of_all_tables(ipv6)?.into_iter().map(|(_, route)| route).collect());
            }
            let key = (wanted.dst.trunc(), gateway_of(attachment, wanted), Some(link.index));
            // Where two interfaces bring the same route, the first had it and keeps it. A later plugin of the chain (sbr)
            // may have moved it to another table.
            let there = |routes: &Vec<KnownRoute>| {
                routes.iter().any(|route| *route == key || (route.0 == key.0 && route.2 != key.2))
            };
            if !present.as_ref().is_some_and(there) {
                found.push(format!("the route to {} is gone", wanted.dst));
            }
        }
    }
    Ok(found)
}

fn filter(
    host: &Host,
    network: &Network,
    attachment: &Attachment,
    found: &mut Vec<String>,
) -> Result<(), DatapathError> {
    let asking = |error| kernel("look at our rules", error);
    if host.tables()? != [Some(true); 2] {
        found.push("our packet filter tables are gone, or another version's".to_owned());
        return Ok(());
    }
    for (family, set, element) in rules::all_elements(network, attachment) {
        if host.nft.element(family, rules::TABLE, &set, &element).map_err(asking)?.is_none() {
            found.push(format!("{} is gone from the packet filter's set {set}", attachment.host_ifname));
        }
    }
    for (chain, count) in rules::chains(network, attachment) {
        let there = host.nft.rules(super::nft::Family::Inet, rules::TABLE, &chain).map_err(asking)?;
        if there != Some(count) {
            found.push(format!("packet filter chain {chain} has {} rules, not {count}", there.unwrap_or(0)));
        }
    }
    Ok(())
}

/// What a sandbox's interface carried and what was refused.
pub(super) fn counters(host: &Host, attachment: &Attachment) -> Result<Counters, DatapathError> {
    let carried = host.route().link(&attachment.host_ifname)?.map(|link| link.carried).unwrap_or_default();
    let mut sums = [0; 3];
    for (sum, elements) in sums.iter_mut().zip(rules::counting(attachment)) {
        for (family, set, element) in elements {
            let counted = host.nft.element(family, rules::TABLE, set, &element);
            *sum += counted.map_err(|error| kernel("read our counters", error))?.unwrap_or(0);
        }
    }
    // Seen from the host: what it received, the sandbox sent.
    let [sent_packets, sent_bytes, received_packets, received_bytes] = carried;
    Ok(Counters {
        sent_packets,
        sent_bytes,
        received_packets,
        received_bytes,
        spoofed_packets: sums[0],
        denied_out_packets: sums[1],
        denied_in_packets: sums[2],
    })
}

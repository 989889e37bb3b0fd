//! The rules of a network.

use super::lists::{append_list, group_set};
use crate::datapath::linux::nft::{Batch, Element, Family, Field, Key, SetFlags, SetSpec, Verdict};
use crate::network::Network;
use crate::policy::{Direction, GroupName, Peer, Rule, always_denied};

/// The chains of a network's deny and allow lists, by direction.
pub(super) fn chain(network_id: &str, allow: bool, direction: Direction) -> String {
    let list = if allow { "allow" } else { "deny" };
    let direction = if direction == Direction::Egress { "out" } else { "in" };
    format!("net_{network_id}_{list}_{direction}")
}

/// Where what a direction's lists refuse goes to be counted.
pub(super) fn refuse(direction: Direction) -> Verdict {
    Verdict::Goto(if direction == Direction::Egress { "refuse_out" } else { "refuse_in" }.to_owned())
}

/// What an allow list does: outgoing flows go on to the receiver's list, incoming ones have passed the last.
pub(super) fn permit(direction: Direction) -> Verdict {
    if direction == Direction::Egress { Verdict::Return } else { Verdict::Accept }
}

const GROUP4: SetSpec = SetSpec {
    name: "",
    key: &[Field::Ipv4],
    value: &[],
    flags: SetFlags { interval: false, counter: false, verdicts: false, noting: None },
};
const GROUP6: SetSpec = SetSpec { key: &[Field::Ipv6], ..GROUP4 };

/// Makes the sets of groups, unless they are there.
pub(crate) fn group_sets<'a>(
    batch: &mut Batch,
    network: &Network,
    groups: impl Iterator<Item = &'a GroupName>,
) {
    let id = network.id();
    for group in groups {
        batch.set_as(&group_set(&id, group, false), &GROUP4);
        batch.set_as(&group_set(&id, group, true), &GROUP6);
    }
}

/// The elements that a network has in sets of the bridge table.
fn frame_elements(network: &Network) -> Vec<(&'static str, Element)> {
    let mut list = Vec::new();
    for uplink in network.uplinks() {
        let key = || Key::new().ifname(&uplink);
        list.push(("uplinks", Element::key(key())));
        if network.accept_ra {
            list.push(("routers", Element::key(key())));
        }
        if network.vpc.is_none() {
            // On a wire of the network outside the gateway may be anybody.
            continue;
        }
        list.push(("own_mac", Element::key(key().ether(network.mac))));
        for gateway in &network.gateways {
            let set = if gateway.addr().is_ipv4() { "gateway4" } else { "gateway6" };
            list.push((set, Element::key(key().ip(gateway.addr()))));
        }
    }
    list
}

/// The elements that a network has in sets of the inet table.
fn flow_elements(network: &Network) -> Vec<(&'static str, Element)> {
    let bridge = |key: Key| key.ifname(&network.bridge);
    let mut list = vec![
        ("bridges", Element::key(bridge(Key::new()))),
        ("same", Element::key(bridge(bridge(Key::new())))),
        ("linked", Element::key(bridge(bridge(Key::new())))),
    ];
    if network.notes_addresses() {
        list.push(("noted", Element::key(bridge(Key::new()))));
    }
    if network.ip_masq {
        list.push(("masq", Element::key(bridge(Key::new()))));
    }
    if network.accept_ra {
        list.push(("routed", Element::key(bridge(Key::new()))));
    }
    if network.policy.host_ingress {
        list.push(("host_ok", Element::key(bridge(Key::new()))));
    }
    for service in &network.policy.host_services {
        let key = bridge(Key::new()).proto(service.protocol.number()).port(service.port);
        list.push(("host_services", Element::key(key)));
    }
    for link in &network.links {
        let tunnel = |key: Key| key.port(link.port).vni(link.vni);
        list.push(("vxlan", Element::key(tunnel(Key::new()))));
        for peer in &link.flood_to {
            let set = if peer.is_ipv4() { "peers4" } else { "peers6" };
            list.push((set, Element::key(tunnel(Key::new().ip(*peer)))));
        }
    }
    for subnet in network.subnets_inside() {
        let set = if subnet.addr().is_ipv4() { "inside4" } else { "inside6" };
        list.extend(Element::range(&subnet).into_iter().map(|bound| (set, bound)));
    }
    for peer in &network.peer_bridges {
        list.push(("linked", Element::key(bridge(Key::new()).ifname(peer))));
    }
    list
}

/// Which elements a network has, by table.
type Elements = fn(&Network) -> Vec<(&'static str, Element)>;
const ELEMENTS: [(Family, Elements); 2] = [(Family::Bridge, frame_elements), (Family::Inet, flow_elements)];

/// Makes a network's rules, in place of `earlier`'s if there were any. Live sandboxes keep theirs.
pub(crate) fn add_network(batch: &mut Batch, network: &Network, earlier: Option<&Network>) {
    let id = network.id();
    for (family, elements) in ELEMENTS {
        batch.family(family);
        let new = elements(network);
        // A range loses its end before its start: the kernel knows no end without one.
        for (set, element) in earlier.map(elements).unwrap_or_default().into_iter().rev() {
            if !new.contains(&(set, element.clone())) {
                batch.remove(set, &[element]);
            }
        }
        for (set, element) in new {
            batch.add(set, &[element]);
        }
    }
    batch.family(Family::Inet);
    group_sets(batch, network, network.groups.iter());
    for direction in [Direction::Egress, Direction::Ingress] {
        let lists = network.policy.resolved(network.policy.lists(direction));
        let (deny, allow) = (chain(&id, false, direction), chain(&id, true, direction));
        for name in [&deny, &allow] {
            batch.chain(name);
            batch.flush_chain(name);
        }
        let mut denied = lists.deny.clone();
        if direction == Direction::Egress {
            denied.extend(
                always_denied()
                    .into_iter()
                    .chain(network.policy.always_deny.iter().copied())
                    .map(|net| Rule { peer: Peer::Net(net.trunc()), transport: None, ports: Vec::new() }),
            );
        }
        append_list(batch, &deny, None, &id, direction, &denied, &refuse(direction));
        append_list(batch, &allow, None, &id, direction, &lists.allow, &permit(direction));
        batch.rule(&allow, &super::super::nft::Rule::new().verdict(&refuse(direction)));
    }
}

/// Removes a network's rules. No sandbox may be left on it.
pub(crate) fn remove_network(batch: &mut Batch, network: &Network) {
    let id = network.id();
    for (family, elements) in ELEMENTS {
        batch.family(family);
        for (set, element) in elements(network).into_iter().rev() {
            batch.remove(set, &[element]);
        }
    }
    batch.family(Family::Inet);
    for direction in [Direction::Egress, Direction::Ingress] {
        for allow in [false, true] {
            let name = chain(&id, allow, direction);
            batch.chain(&name);
            batch.flush_chain(&name);
            batch.delete_chain(&name);
        }
    }
    group_sets(batch, network, network.groups.iter());
    for group in &network.groups {
        batch.delete_set(&group_set(&id, group, false));
        batch.delete_set(&group_set(&id, group, true));
    }
}

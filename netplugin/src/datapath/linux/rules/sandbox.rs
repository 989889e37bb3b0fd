//! The rules of a sandbox: elements in shared sets, and a chain for each direction.

use std::net::IpAddr;

use super::delta::{Change, change, hosts_set};
use super::lists::{append_list, group_set};
use super::network::{chain as network_chain, permit, refuse};
use crate::datapath::linux::nft::{Batch, Data, Element, Family, Key, Rule, Verdict};
use crate::network::{Attachment, Network};
use crate::policy::{Direction, Policy};

fn chain(id: &str, direction: Direction) -> String {
    format!("box_{id}_{}", if direction == Direction::Egress { "out" } else { "in" })
}

fn by_family(ip: IpAddr, v4: &'static str, v6: &'static str) -> &'static str {
    if ip.is_ipv4() { v4 } else { v6 }
}

/// Elements in sets of the bridge table.
fn frame_elements(
    attachment: &Attachment,
    multicast: bool,
    uplinks: &[String],
) -> Vec<(&'static str, Element)> {
    let port = || Key::new().ifname(&attachment.host_ifname);
    let mut list = vec![
        ("mac", Element::key(port().ether(attachment.mac))),
        ("spoofed", Element::key(port())),
        ("ports", Element::key(port())),
    ];
    for ip in attachment.senders() {
        list.push((by_family(ip, "src4", "src6"), Element::key(port().ip(ip))));
    }
    if attachment.dhcp {
        list.push(("dhcp", Element::key(port())));
    }
    if multicast {
        list.push(("mcast", Element::key(port())));
    }
    list.extend(uplinks.iter().map(|uplink| lives_here(attachment, uplink)));
    list
}

/// What keeps frames from `uplink` that say they are the sandbox's.
fn lives_here(attachment: &Attachment, uplink: &str) -> (&'static str, Element) {
    ("own_mac", Element::key(Key::new().ifname(uplink).ether(attachment.mac)))
}

/// Has a live sandbox's Ethernet address guarded on the uplinks that its network has now, instead of those it had.
pub(crate) fn follow_uplinks(
    batch: &mut Batch,
    attachment: &Attachment,
    earlier: &Network,
    network: &Network,
) {
    let (before, now) = (earlier.uplinks(), network.uplinks());
    batch.family(Family::Bridge);
    for uplink in before.iter().filter(|uplink| !now.contains(uplink)) {
        let (set, element) = lives_here(attachment, uplink);
        batch.remove(set, &[element]);
    }
    for uplink in now.iter().filter(|uplink| !before.contains(uplink)) {
        let (set, element) = lives_here(attachment, uplink);
        batch.add(set, &[element]);
    }
}

/// Elements in sets and maps of the inet table.
fn flow_elements(attachment: &Attachment) -> Vec<(&'static str, Element)> {
    let mut list = Vec::new();
    for ip in attachment.senders() {
        let key = || Key::new().ifname(&attachment.bridge).ip(ip);
        list.push((by_family(ip, "own4", "own6"), Element::key(key())));
        if attachment.dhcp && ip.is_ipv4() {
            list.push(("leased4", Element::key(key())));
        }
        list.push((by_family(ip, "refused_out4", "refused_out6"), Element::key(key())));
        list.push((by_family(ip, "refused_in4", "refused_in6"), Element::key(key())));
        for (map, direction) in [
            (by_family(ip, "out4", "out6"), Direction::Egress),
            (by_family(ip, "in4", "in6"), Direction::Ingress),
        ] {
            let jump = Verdict::Jump(chain(&attachment.id, direction));
            list.push((map, Element { key: key(), data: Data::Verdict(jump) }));
        }
    }
    for port in &attachment.ports {
        // One address of each family is published: the first.
        for ipv6 in [false, true] {
            let Some(ip) = attachment.ips().find(|ip| ip.is_ipv6() == ipv6) else { continue };
            let data = Data::Value(Key::new().ip(ip).port(port.container_port));
            let service = |key: Key| key.proto(port.protocol.number()).port(port.host_port);
            match port.host_ip {
                None => {
                    let key = service(Key::new());
                    list.push((by_family(ip, "published4", "published6"), Element { key, data }));
                }
                Some(host) if host.is_ipv6() == ipv6 => {
                    let key = service(Key::new().ip(host));
                    list.push((by_family(ip, "published4_at", "published6_at"), Element { key, data }));
                }
                Some(_) => {}
            }
        }
    }
    list
}

fn group_elements(network: &Network, attachment: &Attachment) -> Vec<(String, Element)> {
    let Some(group) = network.policy.undeclared(attachment.group.iter()).next() else { return Vec::new() };
    let id = network.id();
    // By its link-local address it would be in no group: denied none, allowed none.
    attachment
        .senders()
        .into_iter()
        .map(|ip| (group_set(&id, group, ip.is_ipv6()), Element::key(Key::new().ip(ip))))
        .collect()
}

/// Makes a sandbox's rules. Its port must not be up yet.
pub(crate) fn add_sandbox(batch: &mut Batch, network: &Network, attachment: &Attachment) {
    batch.family(Family::Inet);
    let named = attachment.policy.named_groups().chain(&attachment.group);
    super::group_sets(batch, network, network.policy.undeclared(named));
    fill_chains(batch, network, attachment);
    for (set, element) in flow_elements(attachment) {
        batch.add(set, &[element]);
    }
    for (set, element) in group_elements(network, attachment) {
        batch.add(&set, &[element]);
    }
    batch.family(Family::Bridge);
    for (set, element) in frame_elements(attachment, network.policy.multicast, &network.uplinks()) {
        batch.add(set, &[element]);
    }
}

/// Removes a sandbox's rules, as many of them as there are. Its port must not be up any more.
pub(crate) fn remove_sandbox(batch: &mut Batch, network: Option<&Network>, attachment: &Attachment) {
    batch.family(Family::Inet);
    for direction in [Direction::Egress, Direction::Ingress] {
        batch.chain(&chain(&attachment.id, direction));
    }
    for (set, element) in flow_elements(attachment) {
        batch.remove(set, &[element]);
    }
    for direction in [Direction::Egress, Direction::Ingress] {
        batch.flush_chain(&chain(&attachment.id, direction));
        batch.delete_chain(&chain(&attachment.id, direction));
        drop_sets(batch, attachment, direction);
    }
    if let Some(network) = network {
        super::group_sets(batch, network, network.policy.undeclared(attachment.group.iter()));
        for (set, element) in group_elements(network, attachment) {
            batch.remove(&set, &[element]);
        }
    }
    batch.family(Family::Bridge);
    let uplinks = network.map(Network::uplinks).unwrap_or_default();
    for (set, element) in frame_elements(attachment, true, &uplinks) {
        batch.remove(set, &[element]);
    }
}

/// Replaces what a sandbox may do by what its record says now. If the kernel is known to have `earlier`, only what differs.
pub(crate) fn replace_policy(
    batch: &mut Batch,
    network: &Network,
    attachment: &Attachment,
    earlier: Option<&Policy>,
) {
    batch.family(Family::Inet);
    for direction in [Direction::Egress, Direction::Ingress] {
        let lists = |policy| network.policy.resolved(Policy::lists(policy, direction));
        match earlier.map_or(Change::All, |earlier| change(&lists(earlier), &lists(&attachment.policy))) {
            Change::None => {}
            Change::Hosts { come, go } => {
                let of = |ips: &[IpAddr], ipv6: bool| -> Vec<Element> {
                    let ips = ips.iter().filter(|ip| ip.is_ipv6() == ipv6);
                    ips.map(|ip| Element::key(Key::new().ip(*ip))).collect()
                };
                for ipv6 in [false, true] {
                    let set = hosts_set(&attachment.id, direction, ipv6);
                    // First what goes: there is room for as many.
                    batch.remove_present(&set, &of(&go, ipv6));
                    batch.add(&set, &of(&come, ipv6));
                }
            }
            Change::All => {
                super::group_sets(
                    batch,
                    network,
                    network.policy.undeclared(attachment.policy.named_groups()),
                );
                let name = chain(&attachment.id, direction);
                batch.chain(&name);
                batch.flush_chain(&name);
                drop_sets(batch, attachment, direction);
                fill_chain(batch, network, attachment, direction);
            }
        }
    }
}

/// Removes the sets that a direction's chain looked into, there or not. Not for an ADD: the kernel clears up behind it, and has
/// the program wait for that at its end.
fn drop_sets(batch: &mut Batch, attachment: &Attachment, direction: Direction) {
    for ipv6 in [false, true] {
        batch.drop_hosts(&hosts_set(&attachment.id, direction, ipv6), ipv6);
    }
}

fn fill_chains(batch: &mut Batch, network: &Network, attachment: &Attachment) {
    for direction in [Direction::Egress, Direction::Ingress] {
        fill_chain(batch, network, attachment, direction);
    }
}

fn fill_chain(batch: &mut Batch, network: &Network, attachment: &Attachment, direction: Direction) {
    let id = network.id();
    let name = chain(&attachment.id, direction);
    let lists = network.policy.resolved(attachment.policy.lists(direction));
    batch.chain(&name);
    // Making all rules anew may just have filled it.
    batch.flush_chain(&name);
    let hosts = |ipv6| hosts_set(&attachment.id, direction, ipv6);
    append_list(batch, &name, Some(&hosts), &id, direction, &lists.deny, &refuse(direction));
    batch.rule(&name, &Rule::new().jump(&network_chain(&id, false, direction)));
    if direction == Direction::Ingress {
        for port in &attachment.ports {
            let published = Rule::new().ct_dnat().l4proto(port.protocol.number());
            batch.rule(&name, &published.dport(port.container_port, port.container_port).accept());
        }
    }
    append_list(batch, &name, None, &id, direction, &lists.allow, &permit(direction));
    batch.rule(&name, &Rule::new().goto(&network_chain(&id, true, direction)));
}

/// Every element a sandbox has, for CHECK.
pub(crate) fn all_elements(network: &Network, attachment: &Attachment) -> Vec<(Family, String, Element)> {
    let frames = frame_elements(attachment, network.policy.multicast, &network.uplinks());
    let frames = frames.into_iter().map(|(set, element)| (Family::Bridge, set.to_owned(), element));
    let flows = flow_elements(attachment).into_iter().map(|(set, element)| (set.to_owned(), element));
    let groups = group_elements(network, attachment);
    frames.chain(flows.chain(groups).map(|(set, element)| (Family::Inet, set, element))).collect()
}

/// The chains of a sandbox, with the number of rules each must have.
pub(crate) fn chains(network: &Network, attachment: &Attachment) -> Vec<(String, usize)> {
    let mut batch = Batch::new(super::TABLE);
    fill_chains(&mut batch, network, attachment);
    [Direction::Egress, Direction::Ingress]
        .map(|direction| chain(&attachment.id, direction))
        .map(|name| (batch.count_rules(&name), name))
        .map(|(count, name)| (name, count))
        .to_vec()
}

/// The counting elements of a sandbox: spoofed frames, refused outgoing and refused incoming flows.
pub(crate) fn counting(attachment: &Attachment) -> [Vec<(Family, &'static str, Element)>; 3] {
    let by = |v4, v6| {
        let key = |ip| Element::key(Key::new().ifname(&attachment.bridge).ip(ip));
        attachment.senders().into_iter().map(|ip| (Family::Inet, by_family(ip, v4, v6), key(ip))).collect()
    };
    let port = Element::key(Key::new().ifname(&attachment.host_ifname));
    [
        vec![(Family::Bridge, "spoofed", port)],
        by("refused_out4", "refused_out6"),
        by("refused_in4", "refused_in6"),
    ]
}

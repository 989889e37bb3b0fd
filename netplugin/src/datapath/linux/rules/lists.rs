//! From allow and deny lists to rules.

use ipnet::IpNet;

use crate::datapath::linux::nft::{Base, Batch, Rule as NftRule, Verdict};
use crate::policy::{Direction, GroupName, PortRange, Rule, Service, by_service};

/// The name of the set of a group's addresses on a network.
pub(super) fn group_set(network_id: &str, group: &GroupName, ipv6: bool) -> String {
    let hash = crate::mac::digest_hex(&["group", group.as_str()], 6);
    format!("group_{network_id}_{hash}_{}", if ipv6 { 6 } else { 4 })
}

/// Appends to `chain`: what a rule of the list matches gets `verdict`. Single addresses for every protocol and port go into
/// sets that `hosts_set` names by family, if it does.
pub(super) fn append_list(
    batch: &mut Batch,
    chain: &str,
    hosts_set: Option<&dyn Fn(bool) -> String>,
    network_id: &str,
    direction: Direction,
    rules: &[Rule],
    verdict: &Verdict,
) {
    for Service { transport, ports, any, nets: peers, groups } in by_service(rules) {
        for ipv6 in [false, true] {
            let service = || {
                let mut rule = NftRule::new().family(ipv6);
                if let Some(transport) = transport {
                    rule = rule.l4proto(transport.number(ipv6));
                }
                if ports != PortRange::ALL {
                    rule = rule.dport(ports.first, ports.last);
                }
                rule
            };
            let nets: Vec<IpNet> = peers.iter().copied().filter(|net| net.addr().is_ipv6() == ipv6).collect();
            if any || nets.iter().any(|net| net.prefix_len() == 0) {
                batch.rule(chain, &service().verdict(verdict));
                continue;
            }
            if !nets.is_empty() {
                let everything = transport.is_none() && ports == PortRange::ALL;
                let hosts = hosts_set.filter(|_| everything).map(|name| name(ipv6));
                for rule in batch.within(&peer(service(), direction, ipv6), &nets, hosts.as_deref()) {
                    batch.rule(chain, &rule.verdict(verdict));
                }
            }
            for group in &groups {
                let set = group_set(network_id, group, ipv6);
                batch.rule(chain, &peer(service(), direction, ipv6).in_set(&set).verdict(verdict));
            }
        }
    }
}

/// Loads the peer's address.
fn peer(rule: NftRule, direction: Direction, ipv6: bool) -> NftRule {
    let offset = match (direction, ipv6) {
        (Direction::Egress, false) => 16,
        (Direction::Egress, true) => 24,
        (Direction::Ingress, false) => 12,
        (Direction::Ingress, true) => 8,
    };
    rule.payload(Base::Network, offset, if ipv6 { 16 } else { 4 }, 0)
}

//! What a configuration says of a network, and what is there of it already.

use ipnet::IpNet;

use crate::cni::{CniError, NetConf};
use crate::datapath::{Datapath, DatapathError};
use crate::ipam::IpamError;
use crate::network::{Attachment, Network, Store};
use crate::vxlan::Link;

/// A network's record as its configuration has it.
pub(super) fn network_of(conf: &NetConf) -> Network {
    Network {
        version: Network::VERSION,
        name: conf.name.clone(),
        bridge: conf.bridge.clone(),
        owns_bridge: false,
        mac: Network::derive_mac(&conf.name),
        mtu: conf.mtu.unwrap_or(0),
        gateways: Vec::new(),
        ip_masq: conf.ip_masq,
        policy: conf.policy.clone(),
        nic: conf.uplink.nic.clone(),
        accept_ra: conf.uplink.accept_ra,
        vpc: conf.uplink.vpc.clone(),
        keep: conf.keep_bridge,
        peer_bridges: conf.policy.peer_networks.iter().map(|name| crate::cni::default_bridge(name)).collect(),
        links: Vec::new(),
        groups: conf.policy.undeclared(conf.policy.named_groups()).cloned().collect(),
    }
}

/// Joins a network's draft with what is on record of it; gives the record. The lock is held.
pub(super) fn settle<D: Datapath>(
    datapath: &D,
    store: &Store,
    network: &mut Network,
) -> Result<Option<Network>, CniError> {
    let earlier = store.network(&network.name)?;
    let mut others = Vec::new();
    for name in store.network_names()?.iter().filter(|name| **name != network.name) {
        others.extend(store.network(name)?);
    }
    if let Some(other) = others.iter().find(|other| other.bridge == network.bridge) {
        return Err(conflict(format!("bridge: {} is network {}'s", network.bridge, other.name)));
    }
    subnets_apart(network, &others)?;
    let Some(earlier) = earlier else {
        datapath.prepare(network)?;
        identifiers_apart(network, &others)?;
        return Ok(None);
    };
    if earlier.bridge != network.bridge {
        return Err(conflict(format!(
            "bridge: network {} has sandboxes on bridge {}, not {}",
            network.name, earlier.bridge, network.bridge
        )));
    }
    if earlier.policy.groups != network.policy.groups {
        groups_still_fit(store, &earlier, network)?;
    }
    let same = earlier.vpc == network.vpc && earlier.nic == network.nic;
    if same && (network.mtu == 0 || network.mtu == earlier.mtu) {
        network.links.clone_from(&earlier.links);
        network.mtu = earlier.mtu;
    } else {
        datapath.prepare(network)?;
        // Sandboxes that are there keep theirs, so the network does too, unless it no longer fits.
        if earlier.mtu <= network.mtu {
            network.mtu = earlier.mtu;
        } else if network.vpc.is_some() {
            still_fits(store, network)?;
        }
    }
    identifiers_apart(network, &others)?;
    network.absorb(&earlier);
    Ok(Some(earlier))
}

/// The host routes by a sandbox's address, so it must know which network is meant.
fn subnets_apart(network: &Network, others: &[Network]) -> Result<(), CniError> {
    let nested = |a: IpNet, b: IpNet| a.trunc().contains(&b.trunc()) || b.trunc().contains(&a.trunc());
    for other in others {
        let pairs =
            network.gateways.iter().flat_map(|ours| other.gateways.iter().map(move |theirs| (ours, theirs)));
        for (ours, theirs) in pairs {
            if nested(*ours, *theirs) {
                let (ours, theirs) = (ours.trunc(), theirs.trunc());
                return Err(conflict(format!(
                    "subnet {ours} overlaps {theirs}, which is network {}'s",
                    other.name
                )));
            }
        }
    }
    Ok(())
}

/// What comes to a UDP port with one identifier is for one network.
fn identifiers_apart(network: &Network, others: &[Network]) -> Result<(), CniError> {
    let of = |link: &Link| (link.vni, link.port, link.local.is_ipv4());
    for link in &network.links {
        if let Some(other) = others.iter().find(|other| other.links.iter().any(|one| of(one) == of(link))) {
            return Err(conflict(format!(
                "vxlan: identifier {} on UDP port {} is network {}'s on this host",
                link.vni, link.port, other.name
            )));
        }
    }
    Ok(())
}

/// Sandboxes of before a change of the declared groups must be what the rules of after it take them for.
fn groups_still_fit(store: &Store, earlier: &Network, network: &Network) -> Result<(), CniError> {
    // Who is in a group is then known in another way.
    let other_kind = earlier.policy.groups.is_some() != network.policy.groups.is_some();
    for one in store.attachments(&network.name)? {
        let lists = [&one.policy.egress, &one.policy.ingress];
        let unfit = if other_kind {
            Some("with sandboxes, a network cannot begin or cease to declare its groups".to_owned())
        } else {
            check_group(network, &one).err().map(|error| error.to_string())
        };
        if let Some(why) = unfit.or_else(|| network.policy.wrong(lists, network.vpc.is_some())) {
            return Err(conflict(format!(
                "policy.groups: cannot change as long as network {} has container `{}`: {why}",
                network.name, one.container_id
            )));
        }
    }
    Ok(())
}

/// Where a network declares its groups, a sandbox's addresses are those of its group, whoever gave them.
pub(super) fn check_group(network: &Network, attachment: &Attachment) -> Result<(), IpamError> {
    let Some(groups) = &network.policy.groups else { return Ok(()) };
    groups.check_member(attachment.group.as_ref(), attachment.ips()).map_err(IpamError::Group)
}

/// What a sandbox of before the change sends would be too long for the links, and nobody would tell it.
fn still_fits(store: &Store, network: &Network) -> Result<(), CniError> {
    let attachments = store.attachments(&network.name)?;
    let longer = attachments.iter().filter(|one| one.mtu > network.mtu);
    let Some(most) = longer.clone().map(|one| one.mtu).max() else { return Ok(()) };
    Err(conflict(format!(
        "mtu: network {} carries {} bytes with its nodes as declared now, but {} of its sandboxes send up to {most}: \
         remove them first (a network that shall get IPv6 nodes later wants `mtu` {} from the start)",
        network.name,
        network.mtu,
        longer.count(),
        network.mtu
    )))
}

pub(super) fn conflict(why: String) -> CniError {
    DatapathError::Conflict(why).into()
}

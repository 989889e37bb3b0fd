//! What an administrator asks, beside the CNI: status, clean-up, another policy for a live sandbox.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::live::end_changes;
use super::settle::{network_of, settle};
use super::{drop_network, undo};
use crate::cni::{CniError, NetConf};
use crate::datapath::{Counters, Datapath, DatapathError, Orphan};
use crate::ipam::IpamConfig;
use crate::network::{Attachment, HostState, Network, Store};
use crate::policy::{GroupName, Groups};

/// A network's state.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// Its name.
    pub name: String,
    /// Its bridge.
    pub bridge: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// The gateway's addresses.
    pub gateways: Vec<IpNet>,
    /// Links to other hosts.
    pub links: Vec<LinkStatus>,
    /// The groups it declares, with their ranges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Groups>,
    /// Its sandboxes.
    pub attachments: Vec<AttachmentStatus>,
    /// What is not as it should be; empty is good.
    pub problems: Vec<String>,
}

/// A VXLAN link's state.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// Its name.
    pub name: String,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// This node's address in the underlay.
    pub local: IpAddr,
    /// The nodes behind it, by name where the declaration has one.
    pub peers: Vec<PeerStatus>,
    /// What it carried; none if the link is gone.
    pub carried: Option<Carried>,
}

/// What an interface of the host carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Carried {
    /// Frames that came in by it.
    pub received_packets: u64,
    /// Bytes that came in by it.
    pub received_bytes: u64,
    /// Frames that went out by it.
    pub sent_packets: u64,
    /// Bytes that went out by it.
    pub sent_bytes: u64,
}

/// Another node.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its address in the underlay.
    pub address: IpAddr,
}

/// A sandbox's state.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentStatus {
    /// The container.
    pub container_id: String,
    /// Its interface.
    pub ifname: String,
    /// The host's end.
    pub host_ifname: String,
    /// The packet filter's name for it.
    pub anchor: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Its group.
    pub group: Option<GroupName>,
    /// Ports of the host that lead to it.
    pub ports: Vec<String>,
    /// What it carried.
    pub counters: Counters,
    /// What is not as it should be; empty is good.
    pub problems: Vec<String>,
}

/// The host's state.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its networks.
    pub networks: Vec<NetworkStatus>,
    /// What has our names and is in no record.
    pub orphans: Vec<Orphan>,
}

/// Looks at every network and sandbox on record.
pub fn status<D: Datapath>(datapath: &D, store: &Store) -> Result<Status, CniError> {
    let (HostState { networks, attachments }, orphans) = {
        let _lock = store.lock()?;
        let state = store.load()?;
        let orphans = find_orphans(datapath, store, &state)?;
        (state, orphans)
    };
    let networks = networks
        .into_iter()
        .map(|network| {
            let mut own = Vec::new();
            for attachment in attachments.iter().filter(|one| one.network == network.name) {
                let mut problems =
                    datapath.check(&network, attachment).unwrap_or_else(|error| vec![error.to_string()]);
                problems.extend(super::lease::problems(store, attachment)?);
                own.push(AttachmentStatus {
                    container_id: attachment.container_id.clone(),
                    ifname: attachment.ifname.clone(),
                    host_ifname: attachment.host_ifname.clone(),
                    anchor: attachment.id.clone(),
                    mac: attachment.mac.to_string(),
                    addresses: attachment.addresses.iter().map(|one| one.address).collect(),
                    group: attachment.group.clone(),
                    ports: attachment
                        .ports
                        .iter()
                        .map(|port| format!("{port} -> {}", port.container_port))
                        .collect(),
                    counters: datapath.counters(attachment)?,
                    problems,
                });
            }
            let links = links(datapath, &network)?;
            let mut problems = Vec::new();
            if datapath.carried(&network.bridge)?.is_none() {
                problems.push(format!("bridge {} is gone", network.bridge));
            }
            for link in links.iter().filter(|link| link.carried.is_none()) {
                problems.push(format!("VXLAN link {} is gone", link.name));
            }
            Ok(NetworkStatus {
                name: network.name,
                bridge: network.bridge,
                mtu: network.mtu,
                gateways: network.gateways,
                links,
                groups: network.policy.groups,
                attachments: own,
                problems,
            })
        })
        .collect::<Result<_, CniError>>()?;
    Ok(Status { networks, orphans })
}

fn links<D: Datapath>(datapath: &D, network: &Network) -> Result<Vec<LinkStatus>, CniError> {
    let name_of = |ip: IpAddr| {
        let mut nodes = network.vpc.iter().flat_map(|vpc| &vpc.nodes);
        nodes.find(|node| node.addresses().any(|own| own == ip)).map(|node| node.name.clone())
    };
    network
        .links
        .iter()
        .map(|link| {
            let peer = |ip: &IpAddr| PeerStatus { name: name_of(*ip).unwrap_or_default(), address: *ip };
            Ok(LinkStatus {
                name: link.name.clone(),
                vni: link.vni,
                port: link.port,
                local: link.local,
                peers: link.flood_to.iter().map(peer).collect(),
                carried: datapath.carried(&link.name)?.map(
                    |[received_packets, received_bytes, sent_packets, sent_bytes]| Carried {
                        received_packets,
                        received_bytes,
                        sent_packets,
                        sent_bytes,
                    },
                ),
            })
        })
        .collect()
}

/// Makes a network without waiting for its first sandbox, or brings it into line with a changed configuration; it
/// stays without sandboxes.
pub fn up<D: Datapath>(datapath: &D, store: &Store, conf: &NetConf) -> Result<Network, CniError> {
    let mut network = network_of(conf);
    network.keep = true;
    if let (true, IpamConfig::Own(own)) = (conf.is_gateway, &conf.ipam) {
        for range in own.ranges() {
            let gateway = IpNet::new(range.gateway, range.subnet.prefix_len()).ok();
            network.gateways.extend(gateway.filter(|net| !network.gateways.contains(net)));
        }
    }
    let _lock = store.lock()?;
    let earlier = settle(datapath, store, &mut network)?;
    datapath.validate(&network, None)?;
    store.save_network(&network)?;
    match datapath.ensure_network(&network, earlier.as_ref(), &|| store.load()) {
        Ok(()) => Ok(network),
        Err(error) if earlier.is_none() => {
            let mut errors = vec![error.into()];
            errors.extend(drop_network(datapath, store, &network.name)?);
            Err(if errors.len() == 1 { errors.remove(0) } else { CniError::Several(errors) })
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes a network; it must not have sandboxes.
pub fn down<D: Datapath>(datapath: &D, store: &Store, name: &str) -> Result<(), CniError> {
    let _lock = store.lock()?;
    if store.has_others(name, "")? {
        return Err(DatapathError::Conflict(format!("network {name} has sandboxes")).into());
    }
    CniError::collect(drop_network(datapath, store, name)?)
}

/// What has our names and is in no record. The lock is held, `state` was read under it.
fn find_orphans<D: Datapath>(
    datapath: &D,
    store: &Store,
    state: &HostState,
) -> Result<Vec<Orphan>, CniError> {
    let mut found = datapath.orphans(state)?;
    for network in &state.networks {
        found.extend(
            unowned(store, state, &network.name)?.into_iter().map(|ip| Orphan::Address(ip.to_string())),
        );
    }
    Ok(found)
}

/// Addresses of a network that are taken in its file, by nobody.
fn unowned(store: &Store, state: &HostState, network: &str) -> Result<Vec<IpAddr>, CniError> {
    let owned: BTreeSet<IpAddr> =
        state.attachments.iter().filter(|one| one.network == network).flat_map(Attachment::ips).collect();
    Ok(store.used(network)?.addresses().filter(|ip| !owned.contains(ip)).collect())
}

/// Removes what has our names and is in no record. Only where the records are those of the whole host: with another
/// directory's, everything that lives would look lost.
pub fn remove_orphans<D: Datapath>(datapath: &D, store: &Store) -> Result<Vec<Orphan>, CniError> {
    let _lock = store.lock()?;
    let state = store.load()?;
    let found = find_orphans(datapath, store, &state)?;
    let mut errors: Vec<CniError> =
        datapath.remove_orphans(&found, &state).into_iter().map(CniError::from).collect();
    for network in &state.networks {
        let lost = unowned(store, &state, &network.name)?;
        if !lost.is_empty() {
            let mut used = store.used(&network.name)?;
            for ip in lost {
                used.release(ip);
            }
            errors.extend(store.save_used(&network.name, &used).err().map(CniError::from));
        }
    }
    CniError::collect(errors).map(|()| found)
}

/// Puts back rules that somebody removed, and ends changes of policy that were cut short; true if there was something
/// to put back.
pub fn restore<D: Datapath>(datapath: &D, store: &Store) -> Result<bool, CniError> {
    let _lock = store.lock()?;
    let restored = datapath.restore(&|| store.load())?;
    end_changes(datapath, store)?;
    Ok(restored)
}

/// Undoes attachments whose namespace is gone, or whose ADD never ended, and networks without attachments. Gives
/// the names of what was undone.
pub fn collect<D: Datapath>(datapath: &D, store: &Store) -> Result<Vec<String>, CniError> {
    let (mut undone, mut errors) = (Vec::new(), Vec::new());
    let state = {
        // Whoever is making something holds no lock while it takes long: only what has no namespace is surely dead.
        let _lock = store.lock()?;
        store.load()?
    };
    for attachment in &state.attachments {
        if datapath.netns_lives(attachment) {
            continue;
        }
        let failed = undo(datapath, store, attachment);
        if failed.is_empty() {
            undone
                .push(format!("{}/{} on {}", attachment.container_id, attachment.ifname, attachment.network));
        }
        errors.extend(failed);
    }
    {
        let _lock = store.lock()?;
        for name in store.network_names()? {
            let keep = store.network(&name)?.is_some_and(|network| network.keep);
            if !keep && !store.has_others(&name, "")? {
                errors.extend(drop_network(datapath, store, &name)?);
                undone.push(format!("network {name}"));
            }
        }
        datapath.restore(&|| store.load())?;
        errors.extend(end_changes(datapath, store).err());
        store.prune_claims()?;
    }
    CniError::collect(errors).map(|()| undone)
}

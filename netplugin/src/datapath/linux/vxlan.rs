//! The links of a stretched network.

use super::link::Link;
use super::netlink::Route;
use crate::datapath::DatapathError;
use crate::network::Network;
use crate::vxlan::{Node, Vpc, VpcError};

/// Which node this host is, and the link its underlay address is on.
pub(super) fn local_node<'a>(route: &mut Route, vpc: &'a Vpc) -> Result<(&'a Node, Link), DatapathError> {
    let addresses = route.addresses()?;
    let ips: Vec<_> = addresses.iter().map(|(_, net)| net.addr()).collect();
    let node = vpc.local(&ips)?;
    let (index, _) = addresses
        .iter()
        .find(|(_, net)| net.addr() == node.address)
        .ok_or(VpcError::NotANode)?;
    let link = route.links()?.into_iter().find(|(_, link)| link.index == *index);
    let (_, link) = link.ok_or(VpcError::NotANode)?;
    Ok((node, link))
}

/// The names of the links this node must have.
pub(super) fn link_names(route: &mut Route, network: &Network) -> Result<Vec<String>, DatapathError> {
    let Some(vpc) = &network.vpc else { return Ok(Vec::new()) };
    let (node, _) = local_node(route, vpc)?;
    let plan = vpc.plan(&network.name, node)?;
    Ok(plan.links.into_iter().map(|link| link.name).collect())
}

/// Makes the links, where they are missing.
pub(super) fn ensure(_: &mut Route, network: &Network, _: &Link) -> Result<(), DatapathError> {
    if network.vpc.is_none() {
        return Ok(());
    }
    Err(DatapathError::Unsupported { what: "vxlan".to_owned(), why: "is not implemented yet".to_owned() })
}

/// Removes the links. Goes on after an error.
pub(super) fn remove(route: &mut Route, network: &Network) -> Vec<DatapathError> {
    network.links.iter().filter_map(|link| route.delete_link(link).err()).collect()
}

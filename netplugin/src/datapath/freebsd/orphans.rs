//! What has our names and is in no record.

use skep_ifnet::{Control, links};

use super::flood;
use super::pf::device::Pf;
use super::pf::load::pfctl;
use super::pf::network::{guard_anchor, net_anchor};
use super::pf::rules::List;
use super::pf::tree::{self, ROOT};
use crate::datapath::{DatapathError, Orphan};
use crate::network::{HostState, Network};

/// Interfaces of ours that no record has, and anchors of sandboxes and networks that no record has.
pub(super) fn find(pf: Option<&Pf>, state: &HostState) -> Result<Vec<Orphan>, DatapathError> {
    let mut found: Vec<Orphan> = links()?
        .into_iter()
        .filter(|link| {
            let name = &link.name;
            let is_id = |text: &str| text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let sandbox = |id: &str| state.attachments.iter().any(|one| one.id == id);
            let linked = || state.networks.iter().flat_map(|net| &net.links).any(|one| one.name == *name);
            ["skv", "ski"]
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix))
                .is_some_and(|id| is_id(id) && !sandbox(id))
                || name.strip_prefix("skx").is_some_and(|id| is_id(id) && !linked())
                || name.strip_prefix(flood::PREFIX).is_some_and(|id| {
                    let mut links = state.networks.iter().flat_map(|net| &net.links);
                    is_id(id) && !links.any(|link| flood::senders(link).any(|(one, _)| one == *name))
                })
                || name.strip_prefix("skb-").is_some_and(|network| {
                    link.mac == Some(Network::derive_mac(network).0)
                        && !state.networks.iter().any(|one| one.bridge == *name)
                })
        })
        .map(|link| Orphan::Interface(link.name))
        .collect();
    if pf.is_some_and(|pf| pf.count(ROOT, List::Filter).is_ok_and(|found| found.is_some())) {
        let networks: Vec<String> =
            state.networks.iter().flat_map(|network| [net_anchor(network), guard_anchor(network)]).collect();
        let of_network = |anchor: &str| {
            let rest = anchor.strip_prefix(ROOT);
            rest.is_some_and(|rest| rest.starts_with("/net/") || rest.starts_with("/guard/"))
        };
        let lost = |anchor: &str| match tree::sandbox_of(anchor) {
            // Rules of a living sandbox in another place are of an earlier version's making.
            Some(id) => {
                !state.attachments.iter().any(|one| one.id == id)
                    || ![tree::port_anchor(id), tree::map_anchor(id)].iter().any(|one| one == anchor)
            }
            None => of_network(anchor) && !networks.iter().any(|one| one == anchor),
        };
        // An anchor without children is no error worth telling.
        let listing = pfctl(&["-q", "-v", "-a", ROOT, "-s", "Anchors"], "").unwrap_or_default();
        let anchors = listing.lines().map(str::trim).filter(|anchor| lost(anchor));
        found.extend(anchors.map(|anchor| Orphan::Rules(anchor.to_owned())));
    }
    found.sort();
    Ok(found)
}

/// Removes them. Goes on after an error.
pub(super) fn remove(control: &Control, pf: Option<&Pf>, orphans: &[Orphan]) -> Vec<DatapathError> {
    let mut errors = Vec::new();
    for orphan in orphans {
        match (orphan, pf) {
            (Orphan::Interface(name), _) => {
                errors.extend(control.destroy(name).err().map(DatapathError::from));
            }
            (Orphan::Rules(anchor), Some(pf)) => errors.extend(pf.clear(anchor).err()),
            _ => {}
        }
    }
    errors
}

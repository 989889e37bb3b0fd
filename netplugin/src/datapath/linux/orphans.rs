//! What has our names and is in no record: left by a program that was killed, or by records that were lost.

use super::nft::{Batch, Family};
use super::{Host, rules};
use crate::datapath::linux::netlink::kernel;
use crate::datapath::{DatapathError, Orphan};
use crate::network::{HostState, Network};

/// Interfaces of ours that no record has, and chains of sandboxes and networks that no record has.
pub(super) fn find(host: &Host, state: &HostState) -> Result<Vec<Orphan>, DatapathError> {
    let mut found: Vec<Orphan> = host
        .route()
        .links()?
        .into_iter()
        .filter(|(name, link)| {
            let by_id = |prefix: &str, known: &dyn Fn(&str) -> bool| {
                name.strip_prefix(prefix).is_some_and(|id| is_id(id) && !known(id))
            };
            let sandbox = |id: &str| state.attachments.iter().any(|one| one.id == id);
            let linked =
                |_: &str| state.networks.iter().flat_map(|net| &net.links).any(|one| one.name == *name);
            match link.kind.as_str() {
                "veth" => by_id("skv", &sandbox),
                "ifb" => by_id("ski", &sandbox),
                "vxlan" => by_id("skx", &linked),
                // The name alone may be an administrator's; the address we derive is not.
                "bridge" => name.strip_prefix("skb-").is_some_and(|network| {
                    link.mac == Some(Network::derive_mac(network))
                        && !state.networks.iter().any(|one| one.bridge == *name)
                }),
                _ => false,
            }
        })
        .map(|(name, _)| Orphan::Interface(name))
        .collect();
    let chains = host
        .nft
        .chains(Family::Inet, rules::TABLE)
        .map_err(|error| kernel("list our packet filter chains", error))?;
    let networks: Vec<String> = state.networks.iter().map(Network::id).collect();
    for chain in chains {
        let mut parts = chain.split('_');
        let orphaned = match (parts.next(), parts.next()) {
            (Some("box"), Some(id)) => !state.attachments.iter().any(|one| one.id == id),
            (Some("net"), Some(id)) => !networks.iter().any(|known| known == id),
            _ => false,
        };
        if orphaned {
            found.push(Orphan::Rules(chain));
        }
    }
    found.sort();
    Ok(found)
}

/// The twelve hexadecimal digits that our names end in.
fn is_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Removes interfaces; makes all rules anew from the records where some are in none, in one transaction.
pub(super) fn remove(host: &Host, orphans: &[Orphan], state: &HostState) -> Vec<DatapathError> {
    let mut errors = Vec::new();
    for orphan in orphans {
        if let Orphan::Interface(name) = orphan {
            errors.extend(host.route().delete_link(name).err());
        }
    }
    if orphans.iter().any(|orphan| matches!(orphan, Orphan::Rules(_))) {
        errors.extend(renew(host, state).err());
    }
    errors
}

/// Elements of a lost sandbox are in sets that live ones share: nothing but making them anew finds them all.
fn renew(host: &Host, state: &HostState) -> Result<(), DatapathError> {
    let mut batch = Batch::new(rules::TABLE);
    for (family, there) in [Family::Bridge, Family::Inet].into_iter().zip(host.tables()?) {
        if there.is_some() {
            batch.family(family).delete_table();
        }
    }
    if !state.networks.is_empty() {
        rules::create_all(&mut batch, state);
    }
    Ok(host.nft.commit(batch)?)
}

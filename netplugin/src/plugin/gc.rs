//! GC.

use super::live::end_changes;
use super::{Plugin, drop_network, rebuild, undo};
use crate::cni::CniError;
use crate::datapath::Datapath;
use crate::ipam::IpamConfig;

impl<D: Datapath> Plugin<'_, D> {
    /// GC: detaches everything that is not on the runtime's list, brings the address file into line with what is
    /// left, and puts back rules that somebody removed.
    pub fn gc(&self) -> Result<(), CniError> {
        let mut errors = Vec::new();
        for attachment in self.store.attachments(&self.conf.name)? {
            let keep = match &self.conf.valid_attachments {
                Some(valid) => valid.iter().any(|(container, ifname)| {
                    *container == attachment.container_id && *ifname == attachment.ifname
                }),
                // The specification wants a list. cnitool gives none: what lives is then not garbage.
                None => self.datapath.netns_lives(&attachment),
            };
            if !keep {
                errors.extend(undo(self.datapath, &self.store, &attachment));
            }
        }
        errors.extend(self.tidy().err());
        errors.extend(self.delegated("GC").err());
        CniError::collect(errors)
    }

    /// Undoes what is left of containers, of any network, whose namespace is gone and took their interface with it; true if
    /// there was something.
    pub(super) fn undo_the_dead(&self) -> Result<bool, CniError> {
        let state = {
            let _lock = self.store.lock()?;
            self.store.load()?
        };
        let mut undone = false;
        for one in &state.attachments {
            // Another client may have its namespaces where we do not see them: that the interface is gone is seen by all.
            if !self.datapath.netns_lives(one) && self.datapath.mac(&one.host_ifname)?.is_none() {
                undone |= undo(self.datapath, &self.store, one).is_empty();
            }
        }
        Ok(undone)
    }

    fn tidy(&self) -> Result<(), CniError> {
        let _lock = self.store.lock()?;
        let name = &self.conf.name;
        let Some(network) = self.store.network(name)? else { return Ok(()) };
        if !network.keep && !self.store.has_others(name, "")? {
            return CniError::collect(drop_network(self.datapath, &self.store, name)?);
        }
        if let IpamConfig::Own(own) = &self.conf.ipam {
            let used = self.store.used(name)?;
            self.store.save_used(name, &rebuild(&self.store, name, own, &used)?)?;
        }
        self.store.prune_claims()?;
        self.datapath.restore(&|| self.store.load())?;
        end_changes(self.datapath, &self.store)
    }
}

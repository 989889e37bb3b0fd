//! DEL.

use super::{Plugin, sweep, undo};
use crate::cni::{Attach, CniError};
use crate::datapath::Datapath;
use crate::mac::Mac;
use crate::network::{Attachment, Kind};

impl<D: Datapath> Plugin<'_, D> {
    /// DEL: detaches a container. Whatever is missing counts as done.
    pub fn del(&self, attach: &Attach) -> Result<(), CniError> {
        let id = Attachment::id_of(&self.conf.name, &attach.container_id, &attach.ifname);
        let mut errors = Vec::new();
        // A lease is given back by the interface it is for, so while that is there.
        let asked = self.conf.ipam.asks_on_the_interface() && !self.asks_itself();
        if asked {
            errors.extend(self.delegated("DEL").err());
        }
        let failed = errors.len();
        match self.store.attachment(&self.conf.name, &id) {
            Ok(Some(attachment)) => errors.extend(undo(self.datapath, &self.store, &attachment)),
            // Never made, or made by a call whose records are lost: what has our names is ours.
            Ok(None)
                if self.conf.prev_result.is_none() || self.conf.ipam != crate::ipam::IpamConfig::None =>
            {
                let remains = self
                    .datapath
                    .detach(None, &nameless(self.conf.name.clone(), attach, id, &self.conf.bridge));
                errors.extend(remains.into_iter().map(CniError::from));
            }
            Ok(None) => {}
            Err(error) => errors.push(error.into()),
        }
        // A call that was killed may have left a network without attachments.
        errors.extend(sweep(self.datapath, &self.store, &self.conf.name).unwrap_or_else(|error| vec![error]));
        // Not before the interface is gone: the address would be another's while it is still in use.
        if !asked && errors.len() == failed {
            errors.extend(self.delegated("DEL").err());
        }
        CniError::collect(errors)
    }
}

/// What an attachment without a record would have been called.
fn nameless(network: String, attach: &Attach, id: String, bridge: &str) -> Attachment {
    Attachment {
        version: Attachment::VERSION,
        host_ifname: Attachment::host_ifname_of(&id),
        mac: Mac::derive(&[&network, &attach.container_id, &attach.ifname]),
        id,
        container_id: attach.container_id.clone(),
        ifname: attach.ifname.clone(),
        network,
        netns: attach.netns.clone().unwrap_or_default(),
        netns_cookie: None,
        // Whatever it would have been, its name on the host is the same.
        kind: Kind::Veth,
        bridge: bridge.to_owned(),
        mtu: 0,
        addresses: Vec::new(),
        routes: Vec::new(),
        policy: crate::policy::Policy::default(),
        group: None,
        ports: Vec::new(),
        bandwidth: None,
        given: None,
        own_ipam: false,
        dhcp: false,
        lapsed: false,
    }
}

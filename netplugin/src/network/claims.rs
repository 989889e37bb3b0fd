//! Who has an address of a bridge, or a port of the host: a symbolic link for each, to the record of the attachment that
//! has it. So one look finds the owner, however many attachments there are.
//!
//! A claim lives and dies with the record it leads to: one that leads nowhere is nobody's, whatever a crash left.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::files::{create_dir, io, list, read, remove};
use super::{Attachment, StateError, Store};
use crate::cni::PortMapping;

const CLAIMS: &str = "claims";
const ADDRESSES: &str = "addresses";
const PORTS: &str = "ports";
/// What a port of every address of the host is called.
const ANY: &str = "any";

fn address_claim(bridge: &str, ip: IpAddr) -> PathBuf {
    Path::new(ADDRESSES).join(bridge).join(ip.to_string())
}

fn port_dir(port: &PortMapping) -> PathBuf {
    Path::new(PORTS).join(format!("{}-{}", port.protocol, port.host_port))
}

fn port_claim(port: &PortMapping) -> PathBuf {
    port_dir(port).join(port.host_ip.map_or_else(|| ANY.to_owned(), |ip| ip.to_string()))
}

/// Everything an attachment has to itself.
fn claims_of(attachment: &Attachment) -> impl Iterator<Item = PathBuf> {
    let addresses = attachment.ips().map(|ip| address_claim(&attachment.bridge, ip));
    addresses.chain(attachment.ports.iter().map(port_claim))
}

impl Store {
    fn claims(&self) -> PathBuf {
        self.dir().join(CLAIMS)
    }

    /// Makes the directory of claims, from the records of a program that made none. The lock is held.
    pub(super) fn ensure_claims(&self) -> Result<(), StateError> {
        let dir = self.claims();
        if dir.is_dir() {
            return Ok(());
        }
        let unfinished = dir.with_extension(super::files::UNFINISHED);
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io("remove", &unfinished)(error));
            }
            _ => {}
        }
        create_dir(&unfinished)?;
        for attachment in self.load()?.attachments {
            claim_in(&unfinished, &attachment)?;
        }
        fs::rename(&unfinished, &dir).map_err(io("rename", &unfinished))
    }

    /// The attachment other than `except` that has the address `ip` on `bridge`. The lock is held.
    pub(crate) fn owner_of_address(
        &self,
        bridge: &str,
        ip: IpAddr,
        except: &str,
    ) -> Result<Option<Attachment>, StateError> {
        let owner: Option<Attachment> = read(&self.claims().join(address_claim(bridge, ip)))?;
        // The claim of a record that was written anew since, without the address, is void.
        Ok(owner.filter(|owner| owner.id != except && owner.ips().any(|own| own == ip)))
    }

    /// An attachment other than `except` that has a port which collides with `port`. The lock is held.
    pub(crate) fn owner_of_port(
        &self,
        port: &PortMapping,
        except: &str,
    ) -> Result<Option<Attachment>, StateError> {
        let dir = self.claims().join(port_dir(port));
        for name in list(&dir)? {
            let owner: Option<Attachment> = read(&dir.join(name?))?;
            if let Some(owner) = owner
                && owner.id != except
                && owner.ports.iter().any(|taken| taken.collides(port))
            {
                return Ok(Some(owner));
            }
        }
        Ok(None)
    }

    /// Claims all that an attachment has, of which nobody else may have any. Before its record is written: until then
    /// the claims lead nowhere. The lock is held.
    pub(crate) fn claim(&self, attachment: &Attachment) -> Result<(), StateError> {
        claim_in(&self.claims(), attachment)
    }

    /// Gives up what an attachment had, after its record was removed. The lock is held.
    pub(crate) fn unclaim(&self, attachment: &Attachment) -> Result<(), StateError> {
        let target = target_of(attachment);
        for claim in claims_of(attachment) {
            let path = self.claims().join(claim);
            if fs::read_link(&path).is_ok_and(|known| known == target) {
                remove(&path)?;
                remove_if_empty(&path)?;
            }
        }
        Ok(())
    }

    /// Gives up the addresses alone, of an attachment that has lost them. The lock is held.
    pub(crate) fn unclaim_addresses(&self, attachment: &Attachment) -> Result<(), StateError> {
        self.unclaim(&Attachment { ports: Vec::new(), ..attachment.clone() })
    }

    /// Removes claims that lead nowhere. The lock is held.
    pub(crate) fn prune_claims(&self) -> Result<(), StateError> {
        for kind in [ADDRESSES, PORTS] {
            let kind = self.claims().join(kind);
            for dir in list(&kind)? {
                let dir = kind.join(dir?);
                for name in list(&dir)? {
                    let path = dir.join(name?);
                    if !path.exists() {
                        remove(&path)?;
                    }
                }
                remove_if_empty(&dir.join(ANY))?;
            }
        }
        Ok(())
    }
}

/// Where a claim leads: all are at the same depth.
fn target_of(attachment: &Attachment) -> PathBuf {
    Path::new("../../../attachments").join(&attachment.network).join(format!("{}.json", attachment.id))
}

fn claim_in(claims: &Path, attachment: &Attachment) -> Result<(), StateError> {
    let target = target_of(attachment);
    for claim in claims_of(attachment) {
        let path = claims.join(claim);
        if let Some(dir) = path.parent()
            && !dir.is_dir()
        {
            create_dir(dir)?;
        }
        // Whatever is there is nobody's: the caller has looked.
        remove(&path)?;
        symlink(&target, &path).map_err(io("create", &path))?;
    }
    Ok(())
}

/// Removes the directory a claim was in, if that was the last.
fn remove_if_empty(claim: &Path) -> Result<(), StateError> {
    let Some(dir) = claim.parent() else { return Ok(()) };
    match fs::remove_dir(dir) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
            Err(io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attachment(id: &str, ip: &str, ports: &serde_json::Value) -> Attachment {
        serde_json::from_value(json!({
            "version": 1, "id": id, "container_id": format!("c-{id}"), "ifname": "eth0", "network": "pods",
            "netns": "", "kind": "veth", "host_ifname": "", "bridge": "br0", "mac": "02:00:00:00:00:01",
            "mtu": 1500, "addresses": [{"address": ip, "gateway": null}], "routes": [], "policy": {},
            "group": null, "ports": ports, "bandwidth": null, "own_ipam": false}))
        .unwrap()
    }

    fn port(host_ip: Option<&str>) -> serde_json::Value {
        let mut port = json!({"hostPort": 80, "containerPort": 8080, "protocol": "tcp"});
        if let Some(ip) = host_ip {
            port["hostIP"] = json!(ip);
        }
        json!([port])
    }

    fn attach(store: &Store, attachment: &Attachment) {
        store.claim(attachment).unwrap();
        store.save_attachment(attachment).unwrap();
    }

    #[test]
    fn a_claim_is_as_good_as_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let _lock = store.lock().unwrap();
        let a = attachment("a", "10.0.0.5/24", &port(Some("192.0.2.1")));
        let ip = a.addresses[0].address.addr();
        let owner = || store.owner_of_address("br0", ip, "b").unwrap().map(|owner| owner.container_id);
        store.claim(&a).unwrap();
        assert_eq!(owner(), None, "the record was never written");
        store.save_attachment(&a).unwrap();
        assert_eq!(owner().as_deref(), Some("c-a"));
        assert_eq!(store.owner_of_address("br1", ip, "b").unwrap(), None);
        assert_eq!(store.owner_of_address("br0", ip, "a").unwrap(), None, "its own");
        store.remove_attachment("pods", "a").unwrap();
        assert_eq!(owner(), None, "killed between removing the record and its claims");
        // The next one takes it over, and the first does not take it back.
        let b = attachment("b", "10.0.0.5/24", &json!([]));
        attach(&store, &b);
        store.unclaim(&a).unwrap();
        assert_eq!(
            store.owner_of_address("br0", ip, "a").unwrap().map(|owner| owner.id).as_deref(),
            Some("b")
        );
        store.remove_attachment("pods", "b").unwrap();
        store.unclaim(&b).unwrap();
        attach(&store, &a);
        fs::remove_file(store.attachment_path("pods", "a")).unwrap();
        store.prune_claims().unwrap();
        assert_eq!(list(&store.claims().join(ADDRESSES)).unwrap().count(), 0);
        assert_eq!(list(&store.claims().join(PORTS)).unwrap().count(), 0);
    }

    #[test]
    fn a_port_of_all_addresses_collides_with_that_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let _lock = store.lock().unwrap();
        attach(&store, &attachment("a", "10.0.0.5/24", &port(Some("192.0.2.1"))));
        let owner = |host_ip| {
            let wanted = attachment("b", "10.0.0.6/24", &port(host_ip)).ports.remove(0);
            store.owner_of_port(&wanted, "b").unwrap().map(|owner| owner.id)
        };
        assert_eq!(owner(None).as_deref(), Some("a"));
        assert_eq!(owner(Some("192.0.2.1")).as_deref(), Some("a"));
        assert_eq!(owner(Some("192.0.2.2")), None);
    }

    #[test]
    fn records_without_claims_are_given_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let a = attachment("a", "10.0.0.5/24", &json!([]));
        {
            let _lock = store.lock().unwrap();
            fs::write(store.dir().join("networks/pods.json"), "{}").unwrap();
            store.save_attachment(&a).unwrap();
            fs::remove_dir(store.claims()).unwrap();
            // A network's record is needed for its attachments to be found.
            let network = json!({"version": 1, "name": "pods", "bridge": "br0", "owns_bridge": true,
                "mac": "02:00:00:00:00:01", "mtu": 1500, "gateways": [], "ip_masq": false, "policy": {}, "nic": null,
                "vpc": null, "keep": false, "peer_bridges": [], "links": [], "groups": []});
            fs::write(store.dir().join("networks/pods.json"), network.to_string()).unwrap();
            fs::create_dir_all(store.dir().join("claims.new/addresses/br0/10.0.0.9")).unwrap();
        }
        let _lock = store.lock().unwrap();
        let ip = a.addresses[0].address.addr();
        assert!(store.owner_of_address("br0", ip, "b").unwrap().is_some());
        assert!(!store.dir().join("claims.new").exists());
    }
}

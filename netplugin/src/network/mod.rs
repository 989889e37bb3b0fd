//! What a network is, what an attachment to it is, and the files that remember both.

mod attachment;
mod claims;
mod files;
mod live_policy;
mod lock;
mod store;

pub use attachment::{Address, Attachment, Kind};
pub use files::StateError;
pub(crate) use files::{Opened, create_dir, io, names, remove};
pub use lock::Lock;
pub(crate) use lock::LockFile;
pub use store::{HostState, Store};

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::mac::Mac;
use crate::policy::{GroupName, NetworkPolicy};
use crate::vxlan::{Link, Vpc};

/// A network on this host: one bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the configuration, with its name")]
pub struct Network {
    /// Format of the record.
    pub version: u32,
    /// Its name.
    pub name: String,
    /// Its bridge.
    pub bridge: String,
    /// Whether the bridge is ours: made by us, to be removed by us.
    pub owns_bridge: bool,
    /// The bridge's Ethernet address, the gateway's. The same on every node of a stretched network, so that a
    /// sandbox's gateway is always the node it runs on.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// The gateway's addresses, on the bridge.
    pub gateways: Vec<IpNet>,
    /// Whether what leaves for other networks gets the host's address.
    pub ip_masq: bool,
    /// What holds for every sandbox.
    pub policy: NetworkPolicy,
    /// A network card of the host on the bridge.
    pub nic: Option<String>,
    /// Whether sandboxes hear the IPv6 routers behind that card.
    #[serde(default)]
    pub accept_ra: bool,
    /// The other hosts.
    pub vpc: Option<Vpc>,
    /// Whether the bridge stays without sandboxes.
    pub keep: bool,
    /// The bridges of the networks that the policy names as peers.
    pub peer_bridges: BTreeSet<String>,
    /// The VXLAN links of this node.
    pub links: Vec<Link>,
    /// Every group that was named by a rule or had a member.
    pub groups: BTreeSet<GroupName>,
}

impl Network {
    /// The version this code writes.
    pub const VERSION: u32 = 1;

    /// The bridge's address for a network of this name.
    pub fn derive_mac(name: &str) -> Mac {
        Mac::derive(&["gateway", name])
    }

    /// A short name for kernel objects of this network: 12 hexadecimal digits.
    pub fn id(&self) -> String {
        crate::mac::digest_hex(&["network", &self.name], 6)
    }

    /// The bridge's ports that lead to other hosts.
    pub fn uplinks(&self) -> Vec<String> {
        self.nic.iter().chain(self.links.iter().map(|link| &link.name)).cloned().collect()
    }

    /// The subnets that are on its bridge and nowhere else: those that the host routes to. Behind a card of the host's is the
    /// network outside.
    pub fn subnets_inside(&self) -> Vec<IpNet> {
        let gateways: &[IpNet] = if self.nic.is_none() { &self.gateways } else { &[] };
        IpNet::aggregate(&gateways.iter().map(IpNet::trunc).collect())
    }

    /// Whether every flow of its addresses is seen on its bridge, and there are so few that each address can be noted: not
    /// where the bridge is not ours or has the network outside behind a card.
    pub fn notes_addresses(&self) -> bool {
        self.owns_bridge && self.nic.is_none()
    }

    /// Takes over what an earlier configuration or another sandbox's address brought to the network.
    pub fn absorb(&mut self, earlier: &Network) {
        for gateway in &earlier.gateways {
            if !self.gateways.contains(gateway) {
                self.gateways.push(*gateway);
            }
        }
        self.owns_bridge = earlier.owns_bridge;
        self.groups.extend(earlier.groups.iter().cloned());
        self.keep |= earlier.keep;
    }
}

impl files::Record for Network {
    const VERSION: u32 = Self::VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

impl files::Record for Attachment {
    const VERSION: u32 = Self::VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

impl files::Record for crate::dhcp::Lease {
    const VERSION: u32 = Self::VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

impl files::Record for crate::ipam::Used {
    const VERSION: u32 = Self::VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

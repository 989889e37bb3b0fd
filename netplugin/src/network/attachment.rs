//! One interface of one container.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::cni::{Bandwidth, PortMapping, Route};
use crate::mac::{Mac, digest_hex};
use crate::policy::{GroupName, Policy};

/// What the host's end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A pair (veth, on FreeBSD epair), the other end in the container's network namespace or vnet jail.
    Veth,
    /// A tap on the host (FreeBSD), for a VM.
    Tap,
    /// An interface made by another plugin of the chain: we filter it and leave it.
    Chained,
}

/// An address of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// With its prefix.
    pub address: IpNet,
    /// The gateway.
    pub gateway: Option<IpAddr>,
}

/// The journal's record of an attachment: everything that must be known to undo it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// Format of the record.
    pub version: u32,
    /// Short name for kernel objects, 12 hexadecimal digits.
    pub id: String,
    /// The container.
    pub container_id: String,
    /// The interface's name in it.
    pub ifname: String,
    /// The network.
    pub network: String,
    /// The container's network namespace.
    pub netns: String,
    /// What tells that namespace from another that comes by the same path later, where the system says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_cookie: Option<u64>,
    /// What the host's end is.
    pub kind: Kind,
    /// The host's end.
    pub host_ifname: String,
    /// The bridge it is on.
    pub bridge: String,
    /// The container's Ethernet address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// The container's addresses.
    pub addresses: Vec<Address>,
    /// The container's routes.
    pub routes: Vec<Route>,
    /// What this sandbox may do besides what its network says.
    pub policy: Policy,
    /// The group it belongs to.
    pub group: Option<GroupName>,
    /// Ports of the host that lead here.
    pub ports: Vec<PortMapping>,
    /// Limits on what it carries.
    pub bandwidth: Option<Bandwidth>,
    /// A tap of the runtime's that becomes the host's end, under another name. Known to the ADD it is given to only: when
    /// that fails, the runtime has it back.
    #[serde(skip)]
    pub given: Option<String>,
    /// Whether its addresses are our own allocator's.
    pub own_ipam: bool,
    /// Whether its addresses are asked for by DHCP, on the interface itself.
    #[serde(default)]
    pub dhcp: bool,
    /// Whether the lease of its address is lost, so that it has none for the time being. Known from the lease's record.
    #[serde(skip)]
    pub lapsed: bool,
}

impl Attachment {
    /// The version this code writes.
    pub const VERSION: u32 = 1;

    /// The short name of an interface of a container on a network.
    pub fn id_of(network: &str, container_id: &str, ifname: &str) -> String {
        digest_hex(&["attachment", network, container_id, ifname], 6)
    }

    /// The name of the host's end of the veth pair.
    pub fn host_ifname_of(id: &str) -> String {
        format!("skv{id}")
    }

    /// The name of the device by which the sandbox's traffic is limited: on Linux what shapes what it sends, on FreeBSD the
    /// interface behind the port.
    pub fn shaper_of(id: &str) -> String {
        format!("ski{id}")
    }

    /// Whether there are limits on what it carries.
    pub fn is_limited(&self) -> bool {
        self.bandwidth.is_some_and(|limit| limit.ingress_rate > 0 || limit.egress_rate > 0)
    }

    /// The sandbox's addresses, without their prefixes.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|address| address.address.addr())
    }

    /// Every address it may send from: those it was given, and with IPv6 the link-local one of its Ethernet address. None
    /// while the lease of its address is lost.
    pub fn senders(&self) -> Vec<IpAddr> {
        if self.lapsed {
            return Vec::new();
        }
        let mut all: Vec<IpAddr> = self.ips().collect();
        if all.iter().any(IpAddr::is_ipv6) {
            all.push(self.mac.link_local().into());
        }
        all
    }

    /// Whether a member of `group` among `attachments` sends from `ip`.
    pub(crate) fn any_sends<'a>(
        attachments: impl IntoIterator<Item = &'a Self>,
        group: &GroupName,
        ip: IpAddr,
    ) -> bool {
        attachments.into_iter().any(|one| one.group.as_ref() == Some(group) && one.senders().contains(&ip))
    }
}

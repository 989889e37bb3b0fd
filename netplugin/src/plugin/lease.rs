//! Leases of addresses, where it is us who ask for them: had at ADD, given back at DEL ([`super::renew`] has what is
//! between).
//!
//! A lease is on record before anything has its address.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use super::Plugin;
use crate::cni::{AddResult, Attach, CniError, Dns, IpConfig, Route};
use crate::datapath::Datapath;
use crate::dhcp::{Client, DhcpConfig, DhcpError, Lease, Offered, Outcome, exchange, now, number};
use crate::network::{Attachment, Network, Store};

impl<D: Datapath> Plugin<'_, D> {
    /// Whether an address can be asked for, as far as that is known before.
    pub(super) fn check_dhcp(&self, network: &Network) -> Result<(), CniError> {
        DhcpConfig::parse(&self.conf.raw)?;
        if network.nic.is_none() {
            return Err(DhcpError::NoUplink.into());
        }
        Ok(())
    }

    /// Asks for an address, for an attachment that is made and has none.
    pub(super) fn lease_address(
        &self,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<AddResult, CniError> {
        let config = DhcpConfig::parse(&self.conf.raw)?;
        let missing = || CniError::NotReady("there is no container to ask for".to_owned());
        let attach: &Attach = self.call.attach.as_ref().ok_or_else(missing)?;
        let identity = config.identity(&network.name, attach, attachment.mac)?;
        let mut line = self.datapath.dhcp_line(network, attachment)?;
        let begun = now();
        let outcome = exchange(Client::acquire(identity, None, number()), attachment.mac, line.as_mut());
        match outcome.map_err(|error| DhcpError::Line { nic: nic_of(network), error })? {
            Outcome::Bound(mut lease, offered) => {
                // What the configuration or the runtime says of resolvers comes first.
                lease.names_resolvers = self.conf.dns == Dns::default() && self.conf.runtime.dns.is_none();
                lease.has = Some(offered.clone());
                {
                    let _lock = self.store.lock()?;
                    self.store.save_lease(&network.name, &attachment.id, &lease)?;
                }
                Ok(result_of(&lease, offered, config.priority))
            }
            Outcome::Refused(server, why) => Err(DhcpError::Refused { server, why }.into()),
            Outcome::Taken(server, claim) => Err(DhcpError::Taken { server, claim }.into()),
            Outcome::Silent => Err(DhcpError::Silent { nic: nic_of(network), seconds: now() - begun }.into()),
        }
    }
}

pub(super) fn nic_of(network: &Network) -> String {
    network.nic.clone().unwrap_or_default()
}

/// The router by which everything is reached that no other route is for.
pub(super) fn gateway_of(offered: &Offered) -> Option<Ipv4Addr> {
    offered.routes.iter().find(|(net, _)| net.prefix_len() == 0).and_then(|(_, by)| *by)
}

/// What a server said of routes, as the sandbox of a lease gets them.
pub(super) fn routes_of(lease: &Lease, offered: &Offered, priority: Option<u32>) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for (net, by) in &offered.routes {
        // A router that is not in the subnet is on the link all the same.
        if let Some(by) = by.filter(|by| !lease.address.contains(by)) {
            let host = Route::on_link(IpAddr::V4(by).into());
            if !routes.contains(&host) {
                routes.push(host);
            }
        }
        // The subnet itself is on the link by its address.
        match by {
            Some(by) => {
                routes.push(Route { priority, ..Route::new((*net).into(), Some(IpAddr::V4(*by))) });
            }
            None if *net == lease.address.trunc() => {}
            None => routes.push(Route { priority, ..Route::on_link((*net).into()) }),
        }
    }
    routes
}

/// What a plugin of its own would have printed.
fn result_of(lease: &Lease, offered: Offered, priority: Option<u32>) -> AddResult {
    AddResult {
        interfaces: Vec::new(),
        ips: vec![IpConfig {
            address: lease.address.into(),
            gateway: gateway_of(&offered).map(IpAddr::V4),
            interface: None,
        }],
        routes: routes_of(lease, &offered, priority),
        dns: Dns {
            nameservers: offered.dns.iter().map(ToString::to_string).collect(),
            domain: offered.domain,
            ..Dns::default()
        },
    }
}

/// What is wrong with the lease of an attachment, or will soon be, and what its sandbox does not have that the server says.
pub(super) fn problems(store: &Store, attachment: &Attachment) -> Result<Vec<String>, CniError> {
    let Some(lease) = lease_of(store, attachment)? else { return Ok(Vec::new()) };
    let mut found: Vec<String> = lease.problem(now()).map(|(told, _)| told).into_iter().collect();
    found.extend(unheeded(&lease, attachment));
    Ok(found)
}

/// Why an attachment has no address.
pub(super) fn lost(store: &Store, attachment: &Attachment) -> Result<Option<String>, CniError> {
    let told = lease_of(store, attachment)?.and_then(|lease| lease.problem(now()));
    Ok(told.filter(|(_, lost)| *lost).map(|(told, _)| told))
}

fn lease_of(store: &Store, attachment: &Attachment) -> Result<Option<Lease>, CniError> {
    if !attachment.dhcp {
        return Ok(None);
    }
    Ok(store.lease(&attachment.network, &attachment.id)?)
}

/// What the server of a lease said since the sandbox was attached that the sandbox does not know.
pub(super) fn unheeded(lease: &Lease, attachment: &Attachment) -> Vec<String> {
    let mut found = Vec::new();
    let mut tell = |what: String| {
        let server = lease.server;
        found.push(format!(
            "DHCP server {server} says {what} now: the sandbox has what it was told at its ADD"
        ));
    };
    if let Some(says) = lease.has_other_routes() {
        let mut told = String::new();
        for (net, by) in &says.routes {
            let by = by.map_or_else(|| "on the link".to_owned(), |by| format!("by {by}"));
            let _ = write!(told, "{}{net} {by}", if told.is_empty() { "" } else { ", " });
        }
        tell(format!("other routes ({})", if told.is_empty() { "none" } else { &told }));
    }
    if let Some(says) = lease.has_other_resolvers() {
        let all: Vec<String> = says.dns.iter().map(ToString::to_string).chain(says.domain.clone()).collect();
        tell(format!(
            "other resolvers ({})",
            if all.is_empty() { "none".to_owned() } else { all.join(", ") }
        ));
    }
    if let Some(has) = attachment.addresses.first().filter(|has| has.address != lease.address.into()) {
        tell(format!("{} in place of {}", lease.address, has.address));
    }
    found
}

/// Gives the lease of an attachment back, if it has one.
pub(super) fn release<D: Datapath>(
    datapath: &D,
    store: &Store,
    network: &Network,
    attachment: &Attachment,
) -> Result<(), CniError> {
    if !(attachment.dhcp && datapath.is_dhcp_client()) {
        return Ok(());
    }
    let Some(lease) = store.lease(&network.name, &attachment.id)?.filter(|lease| lease.lost.is_none()) else {
        return Ok(());
    };
    // Without the interface there is no way to the server; for it the lease ends in its time.
    if datapath.carried(&attachment.host_ifname)?.is_none() {
        return Ok(());
    }
    let mut line = datapath.dhcp_line(network, attachment)?;
    let sent = line.send(&Client::release(&lease, number()));
    Ok(sent.map_err(|error| DhcpError::Line { nic: nic_of(network), error })?)
}

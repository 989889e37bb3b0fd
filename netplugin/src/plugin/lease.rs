//! Leases of addresses, where it is us who ask for them: had at ADD, renewed by `watch`, given back at DEL.
//!
//! A lease is on record before anything has its address. When it is lost (its time is over, or a server says no), that
//! too is written down first; then the sandbox's rules let nothing pass, until a server gives it the same address again.

use std::net::IpAddr;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use super::Plugin;
use crate::cni::{AddResult, Attach, CniError, Dns, IpConfig, Route};
use crate::datapath::Datapath;
use crate::dhcp::{Client, DhcpConfig, DhcpError, Due, Lease, Line, Offered, Outcome, exchange, now, number};
use crate::network::{Attachment, Network, Store};

/// How many leases are asked for at a time.
const AT_ONCE: usize = 16;
/// How long `watch` may sleep at most.
const LONGEST: Duration = Duration::from_secs(3600);

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
            Outcome::Bound(lease, offered) => {
                {
                    let _lock = self.store.lock()?;
                    self.store.save_lease(&network.name, &attachment.id, &lease)?;
                }
                Ok(result_of(&lease, offered, config.priority))
            }
            Outcome::Refused(server, why) => Err(DhcpError::Refused { server, why }.into()),
            Outcome::Silent => Err(DhcpError::Silent { nic: nic_of(network), seconds: now() - begun }.into()),
        }
    }
}

fn nic_of(network: &Network) -> String {
    network.nic.clone().unwrap_or_default()
}

/// What a plugin of its own would have printed.
fn result_of(lease: &Lease, offered: Offered, priority: Option<u32>) -> AddResult {
    let mut routes: Vec<Route> = Vec::new();
    let gateway = offered.routes.iter().find(|(net, _)| net.prefix_len() == 0).and_then(|(_, by)| *by);
    for (net, by) in offered.routes {
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
                routes.push(Route { priority, ..Route::new(net.into(), Some(IpAddr::V4(by))) });
            }
            None if net == lease.address.trunc() => {}
            None => routes.push(Route { priority, ..Route::on_link(net.into()) }),
        }
    }
    AddResult {
        interfaces: Vec::new(),
        ips: vec![IpConfig {
            address: lease.address.into(),
            gateway: gateway.map(IpAddr::V4),
            interface: None,
        }],
        routes,
        dns: Dns {
            nameservers: offered.dns.iter().map(ToString::to_string).collect(),
            domain: offered.domain,
            ..Dns::default()
        },
    }
}

/// What is wrong with the lease of an attachment, or will soon be.
pub(super) fn problem(store: &Store, attachment: &Attachment) -> Result<Option<String>, CniError> {
    Ok(told(store, attachment)?.map(|(told, _)| told))
}

/// Why an attachment has no address.
pub(super) fn lost(store: &Store, attachment: &Attachment) -> Result<Option<String>, CniError> {
    Ok(told(store, attachment)?.filter(|(_, lost)| *lost).map(|(told, _)| told))
}

fn told(store: &Store, attachment: &Attachment) -> Result<Option<(String, bool)>, CniError> {
    if !attachment.dhcp {
        return Ok(None);
    }
    Ok(store.lease(&attachment.network, &attachment.id)?.and_then(|lease| lease.problem(now())))
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

/// One that is to be asked about.
struct Asking {
    network: Network,
    attachment: Attachment,
    lease: Lease,
    due: Due,
}

/// Renews the leases that are to be renewed by now, takes their addresses from those whose time is over, and asks for those
/// again. Goes on after an error. Gives the time until there is something to do again, and the errors.
pub fn renew_leases<D: Datapath>(datapath: &D, store: &Store) -> (Duration, Vec<CniError>) {
    let mut errors = Vec::new();
    let due = match find_due(datapath, store, &mut errors) {
        Ok(due) => due,
        Err(error) => {
            errors.push(error);
            return (LONGEST, errors);
        }
    };
    for some in due.chunks(AT_ONCE) {
        let lines: Vec<_> =
            some.iter().map(|one| (one, datapath.dhcp_line(&one.network, &one.attachment))).collect();
        let answers: Vec<_> = thread::scope(|scope| {
            let running: Vec<_> = lines
                .into_iter()
                .map(|(one, line)| (one, line.map(|mut line| scope.spawn(move || ask(one, line.as_mut())))))
                .collect();
            running.into_iter().map(|(one, thread)| (one, thread.map(ScopedJoinHandle::join))).collect()
        });
        for (one, answer) in answers {
            let outcome = match answer {
                Ok(Ok(Ok(outcome))) => outcome,
                // As good as no answer, but somebody should know.
                Ok(Ok(Err(error))) => {
                    errors.push(DhcpError::Line { nic: nic_of(&one.network), error }.into());
                    Outcome::Silent
                }
                Ok(Err(_)) => Outcome::Silent,
                Err(error) => {
                    errors.push(error.into());
                    Outcome::Silent
                }
            };
            errors.extend(conclude(datapath, store, one, outcome).err());
        }
    }
    match next(store) {
        Ok(next) => (next, errors),
        Err(error) => {
            errors.push(error);
            (LONGEST, errors)
        }
    }
}

fn ask(one: &Asking, line: &mut dyn Line) -> std::io::Result<Outcome> {
    let client = match one.due {
        Due::Acquire => Client::acquire(one.lease.identity.clone(), Some(one.lease.address.addr()), number()),
        due => Client::extend(&one.lease, due == Due::Rebind, number()),
    };
    exchange(client, one.attachment.mac, line)
}

/// Every attachment whose address is leased by us, with its lease.
fn leased(store: &Store) -> Result<Vec<(Attachment, Lease)>, CniError> {
    let mut all = Vec::new();
    for attachment in store.load()?.attachments.into_iter().filter(|one| one.dhcp) {
        if let Some(lease) = store.lease(&attachment.network, &attachment.id)? {
            all.push((attachment, lease));
        }
    }
    Ok(all)
}

/// Those that are to be asked about. Those whose time is over lose their address at once.
fn find_due<D: Datapath>(
    datapath: &D,
    store: &Store,
    errors: &mut Vec<CniError>,
) -> Result<Vec<Asking>, CniError> {
    let mut due = Vec::new();
    if !datapath.is_dhcp_client() {
        return Ok(due);
    }
    let _lock = store.lock()?;
    for (attachment, lease) in leased(store)? {
        let Some(network) = store.network(&attachment.network)? else { continue };
        // Between the lease and the record of its address an ADD is at work.
        if attachment.addresses.is_empty() {
            continue;
        }
        match lease.due(now()) {
            Due::At(_) | Due::Never => {}
            Due::Expire => {
                let why = "the lease ended and no server renewed it".to_owned();
                errors.extend(lose(datapath, store, &network, &attachment, lease, why).err());
            }
            one => due.push(Asking { network, attachment, lease, due: one }),
        }
    }
    Ok(due)
}

/// The time until there is something to do.
fn next(store: &Store) -> Result<Duration, CniError> {
    let now = now();
    let times = leased(store)?.into_iter().map(|(_, lease)| match lease.due(now) {
        Due::At(then) => Duration::from_secs(then - now),
        Due::Never => LONGEST,
        _ => Duration::ZERO,
    });
    Ok(times.min().unwrap_or(LONGEST).min(LONGEST))
}

/// Writes down what a server said, and has the rules follow.
fn conclude<D: Datapath>(
    datapath: &D,
    store: &Store,
    asked: &Asking,
    outcome: Outcome,
) -> Result<(), CniError> {
    let Asking { network, attachment, lease, .. } = asked;
    let _lock = store.lock()?;
    // A DEL, or another watch, may have been faster.
    if store.attachment(&network.name, &attachment.id)?.is_none()
        || store.lease(&network.name, &attachment.id)?.as_ref() != Some(lease)
    {
        return Ok(());
    }
    match outcome {
        Outcome::Bound(new, _) if lease.lost.is_none() => {
            Ok(store.save_lease(&network.name, &attachment.id, &new)?)
        }
        Outcome::Bound(new, _) => regain(datapath, store, network, attachment, lease, &new),
        Outcome::Refused(server, why) if lease.lost.is_none() => {
            let why = format!("DHCP server {server} took it back: {why}");
            lose(datapath, store, network, attachment, lease.clone(), why)
        }
        Outcome::Refused(..) | Outcome::Silent => {
            let mut lease = lease.clone();
            lease.put_off(now());
            store.save_lease(&network.name, &attachment.id, &lease)?;
            // Should it have been cut short when it was lost.
            if lease.lost.is_some() {
                let attachment = Attachment { lapsed: true, ..attachment.clone() };
                datapath.follow_lease(network, &attachment)?;
            }
            Ok(())
        }
    }
}

/// The sandbox does not have its address any longer. The lock is held.
fn lose<D: Datapath>(
    datapath: &D,
    store: &Store,
    network: &Network,
    attachment: &Attachment,
    mut lease: Lease,
    why: String,
) -> Result<(), CniError> {
    lease.lose(why, now());
    store.save_lease(&network.name, &attachment.id, &lease)?;
    datapath.follow_lease(network, &Attachment { lapsed: true, ..attachment.clone() })?;
    // It may be another sandbox's next. The ports stay its own.
    Ok(store.unclaim_addresses(attachment)?)
}

/// The sandbox has its address again, if no other sandbox has it. The lock is held.
fn regain<D: Datapath>(
    datapath: &D,
    store: &Store,
    network: &Network,
    attachment: &Attachment,
    lost: &Lease,
    new: &Lease,
) -> Result<(), CniError> {
    for ip in attachment.ips() {
        if store.owner_of_address(&attachment.bridge, ip, &attachment.id)?.is_some() {
            let mut lost = lost.clone();
            lost.put_off(now());
            return Ok(store.save_lease(&network.name, &attachment.id, &lost)?);
        }
    }
    store.claim(attachment)?;
    // The rules first: were it the other way round, a kill between would leave it without rules that let it be.
    datapath.follow_lease(network, &Attachment { lapsed: false, ..attachment.clone() })?;
    Ok(store.save_lease(&network.name, &attachment.id, new)?)
}

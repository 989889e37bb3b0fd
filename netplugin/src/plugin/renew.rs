//! Leases of addresses while their sandboxes live: renewed by `watch`, lost, and had again.
//!
//! When one is lost (its time is over, or a server says no), that is written down first; then the sandbox's rules let nothing
//! pass, until a server gives it the same address again. What a server says of routes follows its lease where it can.

use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use super::lease::{gateway_of, nic_of, routes_of, unheeded};
use crate::cni::CniError;
use crate::datapath::Datapath;
use crate::dhcp::{Client, DhcpError, Due, Lease, Line, Outcome, exchange, now, number};
use crate::network::{Attachment, Network, Store};

/// How many leases are asked for at a time.
const AT_ONCE: usize = 16;
/// How long `watch` may sleep at most.
const LONGEST: Duration = Duration::from_secs(3600);

/// One that is to be asked about.
struct Asking {
    network: Network,
    attachment: Attachment,
    lease: Lease,
    due: Due,
}

/// What became of leases.
#[derive(Debug)]
pub struct Renewal {
    /// The time until there is something to do again.
    pub next: Duration,
    /// What an administrator may want to know.
    pub notes: Vec<String>,
    /// What failed.
    pub errors: Vec<CniError>,
}

/// Renews the leases that are to be renewed by now, takes their addresses from those whose time is over, and asks for those
/// again. Goes on after an error.
pub fn renew_leases<D: Datapath>(datapath: &D, store: &Store) -> Renewal {
    let (mut notes, mut errors) = (Vec::new(), Vec::new());
    let due = match find_due(datapath, store, &mut errors) {
        Ok(due) => due,
        Err(error) => {
            errors.push(error);
            return Renewal { next: LONGEST, notes, errors };
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
            errors.extend(conclude(datapath, store, one, outcome, &mut notes).err());
        }
    }
    let next = next(store).unwrap_or_else(|error| {
        errors.push(error);
        LONGEST
    });
    Renewal { next, notes, errors }
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

/// Writes down what a server said, and has rules and routes follow.
fn conclude<D: Datapath>(
    datapath: &D,
    store: &Store,
    asked: &Asking,
    outcome: Outcome,
    notes: &mut Vec<String>,
) -> Result<(), CniError> {
    let lease = &asked.lease;
    let _lock = store.lock()?;
    // As they are now: a policy may have changed meanwhile, and a DEL, or another watch, may have been faster.
    let (name, id) = (&asked.network.name, &asked.attachment.id);
    let (Some(network), Some(attachment)) = (store.network(name)?, store.attachment(name, id)?) else {
        return Ok(());
    };
    if store.lease(name, id)?.as_ref() != Some(lease) {
        return Ok(());
    }
    let (network, attachment) = (&network, &attachment);
    match outcome {
        Outcome::Bound(mut new, offered) => {
            new.follow(lease, offered);
            if lease.lost.is_some() && !regain(datapath, store, network, attachment, lease, &new)? {
                return Ok(());
            }
            heed(datapath, store, attachment, lease, *new, notes)
        }
        Outcome::Refused(server, why) if lease.lost.is_none() => {
            let why = format!("DHCP server {server} took it back: {why}");
            lose(datapath, store, network, attachment, lease.clone(), why)
        }
        Outcome::Refused(..) | Outcome::Silent | Outcome::Taken(..) => {
            let mut lease = lease.clone();
            if let Outcome::Taken(_, by) = outcome {
                lease.lost = Some(format!("{} has it now", by.mac));
            }
            lease.put_off(now());
            store.save_lease(name, id, &lease)?;
            // Should it have been cut short when it was lost.
            if lease.lost.is_some() {
                let attachment = Attachment { lapsed: true, ..attachment.clone() };
                datapath.follow_lease(network, &attachment)?;
            }
            Ok(())
        }
    }
}

/// Writes a lease down that is in the place of `earlier`, and gives the sandbox the routes that the server says with it, where
/// that can be done; notes what is new. The lock is held.
fn heed<D: Datapath>(
    datapath: &D,
    store: &Store,
    attachment: &Attachment,
    earlier: &Lease,
    mut new: Lease,
    notes: &mut Vec<String>,
) -> Result<(), CniError> {
    let (name, id) = (&attachment.network, &attachment.id);
    // First, so that it is renewed whatever else fails.
    store.save_lease(name, id, &new)?;
    if let Some(says) = new.has_other_routes() {
        let priority = attachment.routes.iter().find_map(|route| route.priority);
        let routes = routes_of(&new, says, priority);
        // Done anew where it is cut short: the record says what there was before until all is done.
        if datapath.change_routes(attachment, &routes)? {
            let gateway = gateway_of(says).map(Into::into);
            let mut attachment = Attachment { routes, ..attachment.clone() };
            for address in &mut attachment.addresses {
                address.gateway = gateway;
            }
            store.save_attachment(&attachment)?;
            new.took_routes();
            store.save_lease(name, id, &new)?;
            notes.push(format!(
                "{}/{} on {name}: its routes are those that DHCP server {} says now",
                attachment.container_id, attachment.ifname, new.server
            ));
        }
    }
    if new.says != earlier.says || new.address != earlier.address {
        let told = unheeded(&new, attachment);
        let whose = format!("{}/{} on {name}", attachment.container_id, attachment.ifname);
        notes.extend(told.into_iter().map(|told| format!("{whose}: {told}")));
    }
    Ok(())
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

/// The sandbox has its address again, if no other sandbox has it: whether that is so. The lock is held.
fn regain<D: Datapath>(
    datapath: &D,
    store: &Store,
    network: &Network,
    attachment: &Attachment,
    lost: &Lease,
    new: &Lease,
) -> Result<bool, CniError> {
    for ip in attachment.ips() {
        if store.owner_of_address(&attachment.bridge, ip, &attachment.id)?.is_some() {
            let mut lost = lost.clone();
            lost.put_off(now());
            store.save_lease(&network.name, &attachment.id, &lost)?;
            return Ok(false);
        }
    }
    store.claim(attachment)?;
    // The rules first: were it the other way round, a kill between would leave it without rules that let it be.
    datapath.follow_lease(network, &Attachment { lapsed: false, ..attachment.clone() })?;
    store.save_lease(&network.name, &attachment.id, new)?;
    Ok(true)
}

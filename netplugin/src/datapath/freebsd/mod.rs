//! FreeBSD: not there yet. Everything says so instead of pretending.

use std::net::IpAddr;
use std::time::Duration;

use super::{Counters, Datapath, DatapathError, Existing, Orphan};
use crate::cni::Interface;
use crate::network::{Attachment, HostState, Network, StateError};
use crate::policy::GroupName;

/// This host.
#[derive(Debug, Default)]
pub struct Host;

impl Host {
    /// This host.
    pub fn new() -> Result<Self, DatapathError> {
        Ok(Self)
    }

    /// Hears of rules being removed, by whomever.
    pub fn watch() -> Result<Watch, DatapathError> {
        missing("watching the packet filter")
    }
}

/// Hears of rules being removed.
#[derive(Debug)]
pub struct Watch;

impl Watch {
    /// Waits until rules are removed; false if none were in time.
    pub fn wait(&self, _: Duration) -> Result<bool, DatapathError> {
        missing("watching the packet filter")
    }
}

fn missing<T>(what: &str) -> Result<T, DatapathError> {
    Err(DatapathError::Unsupported {
        what: what.to_owned(),
        why: "the datapath for this operating system is not implemented yet".to_owned(),
    })
}

impl Datapath for Host {
    fn ready(&self) -> Result<(), DatapathError> {
        missing("STATUS")
    }

    fn prepare(&self, _: &mut Network) -> Result<(), DatapathError> {
        missing("making a network")
    }

    fn validate(&self, _: &Network, _: &Attachment) -> Result<(), DatapathError> {
        missing("attaching a sandbox")
    }

    fn find_existing(&self, _: &[Interface], _: &str, _: &str) -> Result<Existing, DatapathError> {
        missing("filtering another plugin's interface")
    }

    fn ensure_network(
        &self,
        _: &Network,
        _: Option<&Network>,
        _: &dyn Fn() -> Result<HostState, StateError>,
    ) -> Result<(), DatapathError> {
        missing("making a network")
    }

    fn restore(&self, _: &dyn Fn() -> Result<HostState, StateError>) -> Result<bool, DatapathError> {
        missing("restoring rules")
    }

    fn remove_network(&self, _: &Network, _: bool) -> Vec<DatapathError> {
        missing::<()>("removing a network").err().into_iter().collect()
    }

    fn attach(&self, _: &Network, _: &Attachment) -> Result<(), DatapathError> {
        missing("attaching a sandbox")
    }

    fn detach(&self, _: Option<&Network>, _: &Attachment) -> Vec<DatapathError> {
        missing::<()>("detaching a sandbox").err().into_iter().collect()
    }

    fn check(&self, _: &Network, _: &Attachment) -> Result<Vec<String>, DatapathError> {
        missing("CHECK")
    }

    fn update_policy(
        &self,
        _: &Network,
        _: &Attachment,
        _: &dyn Fn(&GroupName, IpAddr) -> bool,
    ) -> Result<(), DatapathError> {
        missing("changing a policy")
    }

    fn orphans(&self, _: &HostState) -> Result<Vec<Orphan>, DatapathError> {
        missing("looking for what no record speaks of")
    }

    fn remove_orphans(&self, _: &[Orphan], _: &HostState) -> Vec<DatapathError> {
        missing::<()>("removing what no record speaks of").err().into_iter().collect()
    }

    fn counters(&self, _: &Attachment) -> Result<Counters, DatapathError> {
        missing("counters")
    }
}

//! The interfaces of one sandbox that CNI plugins make.

use std::sync::OnceLock;

use skep_cni::cni::AddResult;
use skep_protocol::api;

use super::NetworkError;
use super::cni::{self, Resolver};
use super::plan::Device;
use crate::journal::{CniAttachment, Journal};

/// What plugins are to make, and what they have made.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    wanted: Vec<CniAttachment>,
    made: OnceLock<Vec<AddResult>>,
}

impl Attachments {
    /// Nothing is made yet.
    pub(super) fn new(wanted: Vec<CniAttachment>) -> Self {
        Self { wanted, made: OnceLock::new() }
    }

    /// Calls ADD for each, in their order; whether there are any. To be called once.
    pub(super) async fn add(&self, journal: &Journal) -> Result<bool, NetworkError> {
        let mut made = Vec::new();
        for attachment in &self.wanted {
            made.push(cni::add(attachment.clone(), journal).await?);
        }
        // That somebody was first would be a call too many.
        let _ = self.made.set(made);
        Ok(!self.wanted.is_empty())
    }

    fn made(&self) -> &[AddResult] {
        self.made.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// What the guest is told of each, where nothing but the results says what they are.
    #[cfg_attr(target_os = "linux", expect(dead_code, reason = "a namespace says more than a result"))]
    pub(super) fn interfaces(&self, devices: &[Device]) -> Vec<api::Interface> {
        let hears = |list| cni::NetworkList::read(list).is_ok_and(|list| list.hears_routers());
        let all = self.made().iter().zip(&self.wanted).zip(devices);
        all.map(|((result, wanted), device)| {
            cni::interface(result, &wanted.ifname, device.mac().0, hears(wanted.list.clone()))
        })
        .collect()
    }

    /// resolv.conf(5) for the sandbox's containers, if the networks say anything about names.
    pub(super) fn resolver(&self) -> Option<String> {
        let mut resolver = Resolver::default();
        for result in self.made() {
            resolver.add(&result.dns);
        }
        resolver.file()
    }
}

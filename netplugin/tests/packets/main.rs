//! What arrives and what does not: policy, port maps, isolation, live flows.
#![cfg(target_os = "linux")]
#![allow(unreachable_pub, missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, clippy::missing_panics_doc, reason = "tests")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod flows;
mod lists;
mod ports;
mod rules;
mod uplink;

use serde_json::{Value, json};
use skep_cni::network::Store;
use skep_cni::plugin;
use support::{Container, Host};

pub fn own(host: &Host, id: &str, conf: &Value, own: Value) -> Container {
    let mut conf = conf.clone();
    support::merge(
        &mut conf,
        json!({"policy": {"annotations": true}, "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"network.skep.org/policy": own.to_string()}}}),
    );
    host.add(id, &conf)
}

/// Changes a live sandbox's policy, in the host's namespace.
pub fn set_policy(host: &Host, id: &str, policy: &Value) {
    let store = Store::new(host.data_dir());
    let policy = serde_json::from_value(policy.clone()).unwrap();
    host.ns.run(|| {
        let datapath = skep_cni::datapath::Host::new().unwrap();
        plugin::set_policy(&datapath, &store, "pods", id, "eth0", policy).unwrap();
    });
}

//! Networks stretched over several hosts.
#![cfg(target_os = "linux")]
#![allow(unreachable_pub, missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, clippy::missing_panics_doc, reason = "tests")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod groups;
mod nodes;
mod paths;
mod trust;
mod wireguard;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;

//! FreeBSD: if_bridge, epair and tap, vxlan, netgraph for frames, pf for packets.
//!
//! What a sandbox sends passes a BPF program between its port and the bridge, which lets nothing through that is not the
//! sandbox's own ([`frames`]); then pf, on the port and, where the host routes it, on the bridge ([`pf`]).

#![allow(clippy::doc_markdown, reason = "names of drivers and headers")]
#![cfg_attr(
    target_os = "freebsd",
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_ptr_alignment,
        reason = "lengths of structures that requests are made of; addresses of the C library are aligned for their family"
    )
)]
#![cfg_attr(not(target_os = "freebsd"), allow(dead_code, reason = "elsewhere only its tests run"))]

#[cfg(target_os = "freebsd")]
mod attach;
#[cfg(target_os = "freebsd")]
mod bridge;
#[cfg(target_os = "freebsd")]
mod cut;
#[cfg(target_os = "freebsd")]
mod dhcp;
mod flood;
mod frames;
#[cfg(target_os = "freebsd")]
mod host;
#[cfg(target_os = "freebsd")]
mod loopback;
#[cfg(target_os = "freebsd")]
mod orphans;
mod pf;
#[cfg(target_os = "freebsd")]
mod shape;
#[cfg(target_os = "freebsd")]
mod vxlan;

#[cfg(target_os = "freebsd")]
pub use host::{Host, Watch};

/// A failure of the kernel at doing `what`.
#[cfg(target_os = "freebsd")]
fn kernel(what: impl Into<String>, error: std::io::Error) -> super::DatapathError {
    super::DatapathError::Kernel { what: what.into(), error }
}

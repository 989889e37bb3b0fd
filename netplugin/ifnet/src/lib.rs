//! What plugin and runtime ask of FreeBSD's network: interfaces (netintro(4)), their addresses, routes (route(4)),
//! netgraph(4) nodes, and work inside of vnet jails. On other systems there is only [`Insn`].

#![cfg_attr(
    target_os = "freebsd",
    allow(
        clippy::doc_markdown,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_ptr_alignment,
        reason = "names of drivers and headers; lengths of structures that requests are made of; addresses of the C \
                  library are aligned for their family"
    )
)]

mod insn;

#[cfg(target_os = "freebsd")]
mod address;
#[cfg(target_os = "freebsd")]
mod bridge;
#[cfg(target_os = "freebsd")]
mod error;
#[cfg(target_os = "freebsd")]
mod interface;
#[cfg(target_os = "freebsd")]
mod jail;
#[cfg(target_os = "freebsd")]
mod netgraph;
#[cfg(target_os = "freebsd")]
pub mod route;
#[cfg(target_os = "freebsd")]
pub mod sys;
// Reading it needs no kernel, nor reading what is heard.
#[cfg(any(target_os = "freebsd", test))]
#[cfg_attr(not(target_os = "freebsd"), allow(unreachable_pub, reason = "only its tests are built here"))]
mod capture;
#[cfg(any(target_os = "freebsd", test))]
#[cfg_attr(not(target_os = "freebsd"), allow(unreachable_pub, reason = "only its tests are built here"))]
mod table;

pub use insn::Insn;

#[cfg(target_os = "freebsd")]
pub use {
    bridge::{DISCOVERS, LEARNS, PRIVATE},
    capture::Capture,
    error::Error,
    interface::{Control, Link, find, links, name_of, need},
    jail::Jail,
    netgraph::{Injector, Limits, Netgraph, Rate},
};

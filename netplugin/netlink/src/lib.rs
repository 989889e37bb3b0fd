//! What the network plugin, the runtime and the guest's agent ask of Linux's network, each for its own ends: rtnetlink
//! as questions and answers, network namespaces, and redirects from one link to another.

#![cfg(target_os = "linux")]

mod netns;
mod redirect;
mod route;
mod sysctl;

pub use netns::{Netns, NetnsError};
pub use redirect::{ingress, redirect, redirect_at};
pub use route::{Route, allow};
pub use sysctl::{set_sysctl, sysctl};

//! Runs OCI containers in microVMs: all that the host does.
//!
//! From the bottom up; nothing imports upwards:
//!
//! - [`os`]: what differs between Linux and FreeBSD, behind one interface;
//! - [`cgroup`]: where the host counts and limits what a sandbox costs;
//! - [`config`]: the configuration file and what a pod may choose by annotation;
//! - [`guest`]: the artefact a VM boots, and whether it fits this host;
//! - [`journal`]: every host resource that a sandbox holds, on disk, so that whoever comes can undo it;
//! - [`hypervisor`]: one interface over QEMU and bhyve;
//! - [`network`]: taking over what the caller made in a network namespace;
//! - [`sandbox`]: one microVM with its host resources;
//! - [`share`]: what of the host a guest sees;
//! - [`stand_in`]: the process of this host whose pid is a container's;
//! - [`container`]: OCI containers and processes in a sandbox;
//! - [`doctor`]: what a host lacks to run them.

pub mod cgroup;
pub mod config;
pub mod container;
pub mod doctor;
pub mod guest;
pub mod hypervisor;
pub mod journal;
pub mod network;
pub mod os;
pub mod sandbox;
pub mod share;
pub mod stand_in;

/// This release of Skep.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

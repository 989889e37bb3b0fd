//! CNI plugin of Skep and the library behind it.
//!
//! A sandbox gets an interface on its network's bridge, an address, and a packet-filter policy of its own
//! that denies what nobody allowed. The layers, top down:
//!
//! - [`cni`]: the protocol. Environment, configuration, results, error codes.
//! - [`plugin`]: what each CNI command does, and the journal it does it by.
//! - [`policy`]: what a sandbox may send and receive, free of any packet filter's language.
//! - [`ipam`]: who has which address; our own allocator, or a delegated plugin.
//! - [`dhcp`]: a client that asks for addresses where the system has no plugin for it.
//! - [`network`]: what a network and an attachment are, and the files that remember them.
//! - [`vpc`]: networks declared once for several hosts, their files, and carrying them there.
//! - [`vxlan`]: which links and entries each node of a stretched network must have.
//! - [`datapath`]: the operating system's part; netlink and nftables on Linux, pf on FreeBSD.
//!
//! [`cli`] is what administrators type. Everything but [`datapath`] is free of the operating system's networking and is tested without root.

pub mod cli;
pub mod cni;
pub mod datapath;
pub mod dhcp;
pub mod ipam;
pub mod mac;
pub mod network;
pub mod plugin;
pub mod policy;
pub mod vpc;
pub mod vxlan;

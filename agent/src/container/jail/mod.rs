//! Containers of a FreeBSD guest: jails.
//!
//! A container is a jail whose root is the directory that the host shares. It shares host name, network and IPC with the
//! guest, as the containers of a pod do, and has processes, mounts and devices of its own.

pub(super) mod group;
pub(super) mod head;
pub(super) mod join;
mod limits;
pub(super) mod make;
mod members;
mod mounts;
pub(super) mod names;
pub(super) mod oom;
mod params;
pub(super) mod pod;
mod process;
pub(super) mod rootfs;
mod settings;
pub(super) mod stats;
pub(super) mod update;

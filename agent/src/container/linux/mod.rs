//! Containers of a Linux guest, made by libcontainer.

mod capabilities;
mod devices;
pub(super) mod group;
pub(super) mod head;
pub(crate) mod idmap;
pub(super) mod join;
pub(super) mod make;
mod masks;
pub(super) mod names;
mod null;
pub(super) mod oom;
mod payload;
pub(crate) mod pod;
pub(super) mod rootfs;
mod spec;
pub(super) mod stats;
pub(super) mod update;

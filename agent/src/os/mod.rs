//! What differs between the systems that a guest can have, behind one interface: each has the same modules with the
//! same functions.

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "freebsd")]
pub(crate) use freebsd::{
    children, console, descriptors, machine, mounts, network, port, settings, share, vsock,
};
#[cfg(target_os = "linux")]
pub(crate) use linux::{children, console, descriptors, machine, network, port, settings, share, vsock};

/// Bytes of entropy that a kernel takes in one call.
pub(crate) const ENTROPY_MAX: usize = 512;

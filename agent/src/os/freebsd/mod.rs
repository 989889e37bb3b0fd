//! FreeBSD.

pub(crate) mod children;
pub(crate) mod console;
pub(crate) mod descriptors;
pub(crate) mod machine;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod port;
pub(crate) mod settings;
pub(crate) mod share;
pub(crate) mod vsock;

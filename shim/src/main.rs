//! containerd shim of Skep.
fn main() {}

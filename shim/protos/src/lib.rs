//! Bindings of the containerd services that a shim serves and calls.

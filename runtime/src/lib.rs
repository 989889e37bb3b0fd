//! Runs OCI containers in microVMs.

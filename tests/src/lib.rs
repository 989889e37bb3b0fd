//! End-to-end tests, fixtures and benchmarks of Skep.

#[cfg(all(feature = "bench", target_os = "linux"))]
pub mod bench;
pub mod census;
pub mod cnitool;
pub mod containerd;
pub mod containerd_versions;
pub mod cri;
pub mod ctr;
mod debian;
pub mod elf;
pub mod events;
pub mod figures;
pub mod go;
#[cfg(feature = "bench")]
pub mod guest_bench;
pub mod image;
pub mod init;
pub mod nerdctl;
pub mod netns;
pub mod process;
pub mod suite;
pub mod task_api;
pub mod vsock;

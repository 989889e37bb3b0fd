//! End-to-end tests, fixtures and benchmarks of Skep.

pub mod elf;
pub mod image;

//! End-to-end tests, fixtures and benchmarks of Skep.

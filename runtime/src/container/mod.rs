//! Containers and their processes in a sandbox: rewriting specifications, stdio, life cycle.

mod create;
mod error;
mod guest;
mod instance;
mod process;
pub mod spec;
pub mod stdio;

pub use create::{CreateRequest, guest_dir};
pub use error::{ContainerError, ErrorKind};
pub use guest::Guest;
pub use instance::Container;
pub use process::{Exit, KILLED, Process, ProcessState};
pub use spec::GuestSpec;

#[cfg(test)]
mod tests;

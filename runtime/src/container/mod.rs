//! Containers and their processes in a sandbox: rewriting specifications, stdio, life cycle.

mod error;
mod instance;
mod process;
pub mod spec;
pub mod stdio;

pub use error::{ContainerError, ErrorKind};
pub use instance::{Container, CreateRequest, guest_dir};
pub use process::{Exit, KILLED, Process, ProcessState};
pub use spec::GuestSpec;

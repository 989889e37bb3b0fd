//! Containers and their processes in a sandbox: rewriting specifications, stdio, life cycle.

mod create;
mod delete;
mod error;
mod exec;
mod guest;
mod hooks;
mod instance;
mod mounting;
mod oom;
mod placeholder;
mod process;
mod resources;
mod signal;
pub mod spec;
mod stand_in;
pub mod stdio;
mod watch;

pub use create::{CreateRequest, guest_dir};
pub use error::{ContainerError, ErrorKind, of_network};
pub use guest::{Guest, GuestEnd, Size};

pub use hooks::{HookError, HostHooks};
pub use instance::Container;
pub use process::{Exit, KILLED, Process, ProcessState};
pub use skep_protocol::api::{ContainerStatsResponse as ContainerStats, IoStats};
pub use spec::GuestSpec;

#[cfg(test)]
mod tests;

//! containerd's shim for Skep: `containerd-shim-skep-v2`, the runtime `io.containerd.skep.v2`.
//!
//! containerd runs `start` for each container. The first of a pod starts a process that serves the task API (versions
//! 2 and 3 on one socket) and looks after one sandbox until its last task is gone; the others are sent there.
//! `delete` cleans up after a process that is gone.

mod bundle;
mod cli;
mod convert;
mod delete;
mod events;
mod info;
mod input;
mod lingering;
mod log;
mod metrics;
mod pod;
mod poststop;
mod sandbox;
mod serve;
mod service;
mod socket;
mod start;
mod streaming;
mod task;

use std::process::ExitCode;

use cli::Action;

fn main() -> ExitCode {
    if let Some(code) = skep::stand_in::main() {
        return code;
    }
    let done =
        cli::parse(std::env::args_os().skip(1)).map_err(anyhow::Error::from).and_then(|(action, args)| {
            match action {
                Action::Start => start::run(&args),
                Action::Delete => delete::run(&args),
                Action::Serve => serve::run(&args),
                Action::Info => info::run(),
                Action::Version => {
                    info::version();
                    Ok(())
                }
            }
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-skep-v2: {}", convert::chain(&error));
            ExitCode::FAILURE
        }
    }
}

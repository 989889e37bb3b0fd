//! The agent of a Skep guest: PID 1 of the microVM.
//!
//! It mounts what a guest needs, opens the channel to the host, and serves the calls of `agent.proto`:
//! containers are made in short-lived helper processes, so that PID 1 stays one small thread that only waits,
//! reaps and copies bytes. In a Linux guest youki's libcontainer makes them, in a FreeBSD one they are jails.
//! What differs is in `boot`, `container` and `os`, in modules named after the system.
//!
//! `agent/Cargo.toml` says how the static binary for the initramfs is built.

mod boot;
mod clock;
mod container;
mod error;
mod fatal;
mod fdio;
mod forward;
mod helper;
mod limits;
mod log;
mod os;
mod power;
mod reaper;
mod sandbox;
mod serve;
mod service;
mod stdio;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    container::keep_pod(std::env::args_os().next().as_deref());
    #[cfg(target_os = "linux")]
    if let Some(done) = container::map_ids(std::env::args()) {
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("skep-agent: mapping ids: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if std::env::args().nth(1).as_deref() == Some("--version") {
        println!("skep-agent {} (protocol {})", env!("CARGO_PKG_VERSION"), skep_protocol::PROTOCOL_VERSION);
        return ExitCode::SUCCESS;
    }
    if std::process::id() == 1 {
        serve::run();
    }
    eprintln!("skep-agent: runs only as process 1 of a Skep guest");
    ExitCode::from(2)
}

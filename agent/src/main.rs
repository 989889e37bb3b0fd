//! The agent of a Skep guest: PID 1 of the microVM, alone in its initramfs.
//!
//! It mounts what a Linux needs, opens the channel to the host, and serves the calls of `agent.proto`:
//! containers are made by youki's libcontainer, in short-lived helper processes, so that PID 1 stays one
//! small thread that only waits, reaps and copies bytes.
//!
//! `agent/Cargo.toml` says how the static binary for the initramfs is built.

#[cfg(target_os = "linux")]
mod boot;
#[cfg(target_os = "linux")]
mod clock;
#[cfg(target_os = "linux")]
mod container;
#[cfg(target_os = "linux")]
mod error;
#[cfg(target_os = "linux")]
mod fatal;
#[cfg(target_os = "linux")]
mod fdio;
#[cfg(target_os = "linux")]
mod helper;
#[cfg(target_os = "linux")]
mod log;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod port;
#[cfg(target_os = "linux")]
mod power;
#[cfg(target_os = "linux")]
mod reaper;
#[cfg(target_os = "linux")]
mod sandbox;
#[cfg(target_os = "linux")]
mod serve;
#[cfg(target_os = "linux")]
mod service;
#[cfg(target_os = "linux")]
mod stdio;
#[cfg(target_os = "linux")]
mod vsock;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        println!("skep-agent {} (protocol {})", env!("CARGO_PKG_VERSION"), skep_protocol::PROTOCOL_VERSION);
        return ExitCode::SUCCESS;
    }
    #[cfg(target_os = "linux")]
    if std::process::id() == 1 {
        serve::run();
    }
    eprintln!("skep-agent: runs only as process 1 of a Skep guest's Linux");
    ExitCode::from(2)
}

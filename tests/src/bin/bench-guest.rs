//! Measures sandboxes by themselves: `bench-guest [ROUNDS]`, with the guest that the environment names. A figure is a line.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use skep_tests::{guest_bench, process, suite};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    process::catch_interrupts()?;
    let rounds = std::env::args().nth(1).map_or(Ok(5), |text| text.parse()).context("ROUNDS is a number")?;
    let guest = std::env::var_os(suite::GUEST_VARIABLE)
        .with_context(|| format!("{} is not set", suite::GUEST_VARIABLE))?;
    guest_bench::run(guest.as_ref(), rounds, &mut |figure| println!("{figure}"))
}

//! Developer tasks of Skep, as a library so that their parts can be tested.

mod apt;
mod cache;
mod check;
mod command;
mod demo;
mod elf;
mod freebsd;
mod guest;
mod initramfs;
mod kconfig;
mod kernel;
mod phases;
mod progress;
mod setup;
mod workspace;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The command line of `cargo xtask`.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer tasks of Skep", disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run a container in a microVM, with all that it takes set up, and clean up after it
    Demo {
        /// What to run in the container [default: uname -a]
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Run every test, end-to-end ones included
    Test {
        /// Arguments of the test programs: a filter, for one
        #[arg(last = true, value_name = "ARGUMENTS")]
        arguments: Vec<String>,
    },
    /// Measure boot, create and output beside runc
    Bench {
        /// Arguments of the benchmark
        #[arg(last = true, value_name = "ARGUMENTS")]
        arguments: Vec<String>,
    },
    /// Build the guest: kernel, agent and manifest in one directory
    Guest {
        /// Architecture of the guest
        #[arg(long, default_value = std::env::consts::ARCH)]
        arch: String,
        /// Where to put it [default: target/guest/ARCH]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// What FreeBSD hosts need
    #[command(subcommand)]
    Freebsd(Freebsd),
    /// Check format, clippy, documentation, FreeBSD and dependencies
    Lint,
    /// Check dependencies for known vulnerabilities, from the database of `RustSec`
    Audit,
}

#[derive(Debug, Subcommand)]
enum Freebsd {
    /// Build, lint and document every host crate for FreeBSD
    Check,
    /// Assemble the guest for FreeBSD images: kernel, agent and manifest in one directory
    Guest {
        /// A kernel made from packaging/guest/freebsd/SKEPGUEST
        #[arg(long, value_name = "FILE")]
        kernel: PathBuf,
        /// A directory with a FreeBSD's lib and libexec, which the agent needs [on FreeBSD: /]
        #[arg(long, value_name = "DIR")]
        base: PathBuf,
        /// The agent, if it is built already
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
        /// Where to put it [default: target/guest/freebsd]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Run unit, plugin and end-to-end tests in a FreeBSD that QEMU boots from a disk image, which is not written
    ///
    /// The image must let root log in on its first serial port without a password, and have virtio disks, 1 GiB of free
    /// space, and the base system's bhyve, pf and netgraph. FreeBSD's own VM images are like that; bhyve in them takes
    /// --accel kvm and nested virtualisation, since QEMU's software emulation lacks what FreeBSD asks of an AMD processor.
    Test(freebsd::harness::Options),
    /// Measure sandboxes under bhyve in such a machine, beside the same guest under QEMU on this host
    Bench(freebsd::harness::BenchOptions),
}

/// Runs the task.
pub fn run(cli: &Cli) -> Result<()> {
    skep_tests::process::catch_interrupts()?;
    let cache = cache::Cache::open()?;
    match &cli.task {
        Task::Demo { command } => demo::run(command, &cache),
        Task::Test { arguments } => check::test(arguments, &cache),
        Task::Bench { arguments } => check::bench(arguments, &cache),
        Task::Guest { arch, out } => {
            let dir = guest::build(arch, out.as_deref(), &cache)?;
            for line in guest::describe(&dir)? {
                progress::line(&line);
            }
            println!("{}", dir.display());
            Ok(())
        }
        Task::Freebsd(Freebsd::Check) => freebsd::check(&cache),
        Task::Freebsd(Freebsd::Guest { kernel, base, agent, out }) => {
            let parts = freebsd::guest::Parts { kernel, base, agent: agent.as_deref(), out: out.as_deref() };
            println!("{}", freebsd::guest::build(&parts, &cache)?.display());
            Ok(())
        }
        Task::Freebsd(Freebsd::Test(options)) => freebsd::harness::test(options, &cache),
        Task::Freebsd(Freebsd::Bench(options)) => freebsd::harness::bench(options, &cache),
        Task::Lint => check::lint(&cache),
        Task::Audit => check::audit(&cache),
    }
}

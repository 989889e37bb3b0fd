//! `cargo xtask freebsd test`: the end-to-end cases inside a FreeBSD that QEMU boots from a disk image.
//!
//! The image is never written: QEMU keeps what the guest writes in a file that ends with it. What the cases need is a
//! tar archive on a second disk, logs come back on a third. The serial console is for logging in and for what the kernel
//! says; what the tests say comes over a second serial port into a file, so that nothing else is mixed into it.

mod bench;
mod console;
mod containerd;
mod image;
mod machine;
mod payload;
mod results;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::cache::Cache;
use crate::progress::{Step, heading, line};
use crate::{apt, workspace};

pub(crate) use self::bench::{BenchOptions, bench};
use self::console::Console;
use self::machine::Machine;
use self::payload::{Contents, Group};
use self::results::Results;

/// How long the system may take from power-on to the login prompt.
const BOOT: Duration = Duration::from_secs(900);
/// How long the programs and assets may take to be copied in.
const UNPACK: Duration = Duration::from_secs(600);

/// Which FreeBSD, and what runs it.
#[derive(Clone, Debug, Args)]
pub(crate) struct Host {
    /// Disk image with FreeBSD 14 or 15: qcow2 or raw, or either with .xz, as FreeBSD publishes them
    #[arg(long, value_name = "PATH")]
    image: PathBuf,
    /// QEMU [default: qemu-system-x86_64 from PATH]
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// What runs the image's processor
    #[arg(long, value_enum, default_value_t = Accelerator::Tcg)]
    accel: Accelerator,
    /// Memory of the machine, MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    memory: u32,
}

/// Which tests, and where.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    host: Host,
    /// Build without optimisation: sooner there, slower to run
    #[arg(long)]
    dev: bool,
    /// Run these groups only: unit, cni, e2e, cni-bench
    #[arg(long, value_name = "GROUPS", value_delimiter = ',')]
    only: Vec<Group>,
    /// A directory with a FreeBSD guest, as `freebsd guest` makes it: containers of FreeBSD images run, too
    #[arg(long, value_name = "DIR")]
    freebsd_guest: Option<PathBuf>,
    /// Arguments of the end-to-end tests' and the benchmark's program: a filter, for one
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

/// What runs the virtual processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Accelerator {
    /// Software emulation, anywhere
    Tcg,
    /// The host's virtualisation, which has to be nested for bhyve to run
    Kvm,
}

/// Boots the image, runs the tests and says what came of them; an error unless all passed.
pub(crate) fn test(options: &Options, cache: &Cache) -> Result<()> {
    let contents = Contents {
        groups: if options.only.is_empty() { Group::ALL.to_vec() } else { options.only.clone() },
        arguments: options.arguments.clone(),
        rounds: None,
        freebsd_guest: options.freebsd_guest.clone(),
        dev: options.dev,
    };
    let results = run(&options.host, &contents, cache, || Ok(()))?;
    println!("\n{results}");
    ensure!(results.passed_all(), "not all passed");
    Ok(())
}

/// Runs `contents` in a machine booted from the image. `meanwhile` runs when all is built and the machine does not run
/// yet.
fn run(
    host: &Host,
    contents: &Contents,
    cache: &Cache,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Results> {
    apt::ensure(&[apt::COMPILER, apt::KERNEL, apt::AGENT, apt::PYTHON], cache)?;
    let qemu = machine::qemu(host.qemu.as_deref(), host.accel)?;
    let disk = image::prepare(&host.image, cache)?;
    heading("What goes into the machine");
    let payload = payload::build(contents, cache)?;
    meanwhile()?;
    heading("FreeBSD");
    let directory = workspace::target_dir().join("freebsd-harness");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let mut machine = Machine::start(&qemu, &disk, &payload, host, &directory)?;
    line(&format!("its console and all logs: {}", directory.display()));
    let step = Step::start("booting");
    let mut console = Console::open(&machine)?;
    console.log_in(&mut machine, BOOT)?;
    step.done("");
    let step = Step::start("copying everything in");
    // What the programs print on the terminal of the second port is for no terminal: no echo, no change of bytes.
    let prepare = "mkdir -p /skep && tar -xf /dev/vtbd1 -C /skep && stty -f /dev/cuau1.init raw -echo";
    let (status, said) = console.run(&mut machine, prepare, UNPACK)?;
    ensure!(status == 0, "the image took nothing in from its second disk (status {status}): {}", said.trim());
    step.done("");
    heading("Tests");
    console.start("sh /skep/runner.sh >/dev/cuau1 2>&1 </dev/null")?;
    let outcome = Results::follow(&mut machine);
    console.shut_down(&mut machine);
    let logs = machine.logs();
    match &logs {
        Ok(path) => line(&format!("logs of the machine: {}", path.display())),
        Err(error) => line(&format!("no logs came back: {error:#}")),
    }
    outcome
}

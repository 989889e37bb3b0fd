//! Boots a FreeBSD guest with an agent under QEMU and drives it as a host does: a developer's bench for jails.
//!
//! ```text
//! cargo run -p skep-agent --example jails -- KERNEL AGENT WORLD [CASE…]
//! ```
//!
//! KERNEL is a FreeBSD kernel as `packaging/guest/freebsd/SKEPGUEST` makes it, AGENT the agent built for FreeBSD, WORLD a
//! directory with a FreeBSD's /bin, /lib and /libexec. The guest's own tree and the container's root are made of them.
//! `SKEP_QEMU` names another QEMU. Software emulation is enough and is what is used.

mod cases;
mod tree;
mod vm;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use skep_protocol::api::Empty;

use self::vm::Vm;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, agent, world, wanted @ ..] = args.as_slice() else {
        anyhow::bail!("usage: jails KERNEL AGENT WORLD [CASE…]");
    };
    let (kernel, agent, world) = (Path::new(kernel), Path::new(agent), Path::new(world));
    let mut failed = 0;
    for name in ["hello", "stdio", "exec", "faults", "signals", "terminal", "pause", "limits", "clean"] {
        if !wanted.is_empty() && !wanted.iter().any(|one| one == name) {
            continue;
        }
        let from = Instant::now();
        let mut vm = Vm::boot(kernel, agent, world).await.with_context(|| format!("{name}: boot"))?;
        let ready = from.elapsed();
        let result = match name {
            "hello" => cases::hello(&vm).await,
            "stdio" => cases::stdio(&vm).await,
            "exec" => cases::exec(&vm).await,
            "faults" => cases::faults(&vm).await,
            "signals" => cases::signals(&vm).await,
            "terminal" => cases::terminal(&vm).await,
            "pause" => cases::pause(&vm).await,
            "limits" => cases::limits(&vm).await,
            _ => cases::clean(&vm).await,
        };
        // The answer may be lost with the guest.
        let _ = vm.agent().with_timeout(Duration::from_secs(5)).shutdown(&Empty::new()).await;
        let ended = tokio::time::timeout(Duration::from_secs(20), vm.qemu.wait()).await;
        let result = result.and(ended.context("the guest does not power off").map(drop));
        match result {
            Ok(()) => println!("{name}: ok, session after {ready:.1?}, all of it {:.1?}", from.elapsed()),
            Err(error) => {
                failed += 1;
                println!("{name}: {error:#}\n--- console\n{}---", vm.console());
            }
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! Boots a guest with an agent under QEMU and drives it as a host does: a developer's bench for the agent.
//!
//! ```text
//! cargo run -p skep-agent --example guest -- KERNEL AGENT [BUSYBOX] [--times N] [--streams] [CASE…]
//! ```
//!
//! KERNEL is a guest kernel (a PVH vmlinux), AGENT the static agent (`agent/Cargo.toml` says how it is built),
//! BUSYBOX a static busybox. Without cases all of them run; `--times N` measures N boots instead,
//! `--streams` what a process's streams cost. Software emulation is enough and is what is used.

mod cases;
mod spec;
mod streams;
mod timing;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut files = Vec::new();
    let mut wanted = Vec::new();
    let mut times = 0_usize;
    let mut streams = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--times" => times = args.next().context("--times: how many?")?.parse()?,
            "--streams" => streams = true,
            path if path.contains('/') => files.push(PathBuf::from(path)),
            case if case == "fatal" || cases::ALL.iter().any(|(name, _)| *name == case) => {
                wanted.push(case.to_owned());
            }
            unknown => anyhow::bail!("{unknown:?} is neither a file's path nor a case"),
        }
    }
    let [kernel, agent, rest @ ..] = files.as_slice() else {
        anyhow::bail!("usage: guest KERNEL AGENT [BUSYBOX] [--times N] [--streams] [CASE…]");
    };
    let busybox = rest.first().cloned().unwrap_or_else(|| PathBuf::from("/bin/busybox"));
    let image = vm::Image { kernel: kernel.clone(), agent: agent.clone(), busybox };
    if times > 0 {
        measure(&image, times).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if streams {
        let vm = vm::Vm::boot(&image, "").await?;
        streams::measure(&vm).await?;
        vm.end().await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut failed = 0;
    for (name, case) in cases::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        let from = Instant::now();
        let vm = vm::Vm::boot(&image, "").await.with_context(|| format!("{name}: boot"))?;
        let result = case(&vm).await;
        let console = vm.end().await?;
        match result {
            Ok(()) => println!("ok      {name} ({:.2} s)", from.elapsed().as_secs_f64()),
            Err(error) => {
                failed += 1;
                println!("FAILED  {name}: {error:#}\n--- console\n{console}---");
            }
        }
    }
    if wanted.is_empty() || wanted.iter().any(|w| w == "fatal") {
        for (append, wanted) in cases::FATAL {
            let console = vm::Machine::start(&image, append)?.ended().await?;
            let told = console.contains(wanted);
            failed += usize::from(!told);
            println!(
                "{} fatal {append}{}",
                if told { "ok     " } else { "FAILED " },
                if told { "" } else { &console }
            );
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The phases of one run after the other: each run and the medians, on the clock and of the processor.
async fn measure(image: &vm::Image, times: usize) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for _ in 0..times {
        let vm = vm::Vm::boot(image, "").await?;
        let row = timing::timed(&vm).await?;
        vm.end().await?;
        println!("{row:8.1?}");
        rows.push(row);
    }
    for (at, phase) in timing::PHASES.iter().enumerate() {
        let mut column: Vec<f64> = rows.iter().map(|row| row[at]).collect();
        column.sort_by(f64::total_cmp);
        println!("{phase:>28} {:8.1}", column[column.len() / 2]);
    }
    Ok(())
}

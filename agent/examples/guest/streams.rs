//! What the streams of a process cost: rates, the processor time of QEMU, and what the guest's kernel counted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use skep_protocol::api::Stdio;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::spec::sh;
use crate::vm::{Vm, process, start};

/// Bytes that go each way.
const AMOUNT: usize = 32 << 20;
/// What the process reads or writes at once.
const BLOCK: usize = 64 << 10;
/// What the host writes at once: as little as a client that fills a FIFO page by page, and as much as the shim reads.
const PIECES: [usize; 2] = [4 << 10, 32 << 10];

/// Context switches and interrupts since the boot.
const COUNTS: &str = "count() { busybox awk '/^ctxt/ {c=$2} /^intr/ {i=$2} END {print c, i}' /proc/stat; }; ";

/// Moves bytes each way and prints what it took, per MiB where it adds up.
pub(crate) async fn measure(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    println!("{:>24} {:>8} {:>12} {:>10} {:>12}", "", "MB/s", "cpu ms/MiB", "switches", "interrupts");
    let script =
        format!("{COUNTS} count; dd if=/dev/zero bs={BLOCK} count={} 2>/dev/null; count", AMOUNT / BLOCK);
    let (took, spent, counts) = output(vm, &script).await?;
    tell("output", took, spent, counts);
    for piece in PIECES {
        let (took, spent, counts) = input(vm, piece).await?;
        tell(&format!("input by {} KiB", piece >> 10), took, spent, counts);
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)]
fn tell(name: &str, took: Duration, spent: Duration, counts: [u64; 2]) {
    let mib = (AMOUNT >> 20) as f64;
    let [switches, interrupts] = counts.map(|count| count as f64 / mib);
    let rate = AMOUNT as f64 / 1e6 / took.as_secs_f64();
    let spent = spent.as_secs_f64() * 1e3 / mib;
    println!("{name:>24} {rate:8.1} {spent:12.1} {switches:10.1} {interrupts:12.1}");
}

/// What was counted between two lines of `COUNTS`.
fn between(before: &str, after: &str) -> anyhow::Result<[u64; 2]> {
    let numbers = |line: &str| -> anyhow::Result<Vec<u64>> {
        line.split_whitespace().map(|word| word.parse().with_context(|| format!("{line:?}"))).collect()
    };
    let (before, after) = (numbers(before)?, numbers(after)?);
    ensure!(before.len() == 2 && after.len() == 2, "{before:?} and {after:?}");
    Ok([after[0] - before[0], after[1] - before[1]])
}

async fn output(vm: &Vm, script: &str) -> anyhow::Result<(Duration, Duration, [u64; 2])> {
    let token = vm.session.draw_token();
    let mut stdout = vm.session.open_stdio(token).await?;
    vm.create("out", &sh(script), Stdio { stdout: token, ..Stdio::new() }, false).await?;
    vm.agent().start_process(&start("out", "")).await?;
    let before = line(&mut stdout).await?;
    let from = vm.times();
    let mut buffer = vec![0; 1 << 20];
    let mut left = AMOUNT;
    while left > 0 {
        let room = left.min(buffer.len());
        let count = stdout.read(&mut buffer[..room]).await?;
        ensure!(count > 0, "the output ended {left} bytes too early");
        left -= count;
    }
    let to = vm.times();
    let after = line(&mut stdout).await?;
    done(vm, "out").await?;
    Ok((to.0.saturating_sub(from.0), to.1.saturating_sub(from.1), between(&before, &after)?))
}

async fn input(vm: &Vm, piece: usize) -> anyhow::Result<(Duration, Duration, [u64; 2])> {
    let script = format!(
        "{COUNTS} count; dd of=/dev/null bs={BLOCK} count={} iflag=fullblock 2>/dev/null; count",
        AMOUNT / BLOCK
    );
    let (tin, tout) = (vm.session.draw_token(), vm.session.draw_token());
    let (mut stdin, mut stdout) = (vm.session.open_stdio(tin).await?, vm.session.open_stdio(tout).await?);
    vm.create("in", &sh(&script), Stdio { stdin: tin, stdout: tout, ..Stdio::new() }, false).await?;
    vm.agent().start_process(&start("in", "")).await?;
    let before = line(&mut stdout).await?;
    let (from, begin) = (vm.times(), Instant::now());
    let bytes = vec![b'x'; piece];
    for _ in 0..AMOUNT / piece {
        stdin.write_all(&bytes).await?;
    }
    let after = line(&mut stdout).await?;
    let (took, to) = (begin.elapsed(), vm.times());
    done(vm, "in").await?;
    Ok((took, to.1.saturating_sub(from.1), between(&before, &after)?))
}

async fn line(stdout: &mut skep_protocol::StdioStream) -> anyhow::Result<String> {
    let mut text = String::new();
    loop {
        match stdout.read_u8().await? {
            b'\n' => return Ok(text),
            byte => text.push(char::from(byte)),
        }
        ensure!(text.len() < 100, "no end of {text:?}");
    }
}

async fn done(vm: &Vm, id: &str) -> anyhow::Result<()> {
    let which = process(id, "");
    vm.agent().wait_process(&which).await?;
    vm.agent().delete_process(&which).await?;
    Ok(())
}

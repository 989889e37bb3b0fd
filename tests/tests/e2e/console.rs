//! The channel to the guest when it has much to carry: both ways at once, with a reader that stops, and with a host that
//! dies in the midst and another that takes over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use skep_protocol::api::{ExecProcessRequest, ProcessRequest, StartProcessRequest, Stdio};
use skep_protocol::{Endpoint, Session};
use skep_tests::figures::tell;
use skep_tests::process::{Running, wait_for};
use skep_tests::suite::Lease;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::Case;
use crate::failures::{is_shim_of, member};

pub(crate) const CASES: &[Case] = &[
    Case::skep("console_both_ways", both_ways).on_freebsd(),
    Case::skep("console_reader_stops", reader_stops).on_freebsd(),
    Case::skep("console_host_dies", host_dies).on_freebsd(),
];

const MIB: usize = 1 << 20;
/// MiB each way through one sandbox, where the environment does not say otherwise.
const SIZE_VARIABLE: &str = "SKEP_CONSOLE_MIB";
const SIZE: usize = if cfg!(target_os = "linux") { 16 } else { 20 };
/// Through how many sandboxes, one after another: 100 MiB each way on FreeBSD. Emulated twice, no guest is sure to live for
/// as long as all of that takes.
const SANDBOXES: usize = if cfg!(target_os = "linux") { 1 } else { 5 };
/// How long they may take: software emulation within software emulation carries less than a MiB per second.
const TRANSFER: Duration = Duration::from_secs(1200);
/// Makes a MiB of lines that are all different, and stays.
const PREPARE: &str =
    "seq 1 200000 | head -c 1048576 >/dev/shm/block; touch /dev/shm/ready; while :; do sleep 1; done";
const UNTIL_READY: &str = "until test -e /dev/shm/ready; do sleep 0.1; done";

/// What the guest writes by [`writer`]: every MiB begins with its number.
fn expected(count: usize) -> Vec<u8> {
    let mut block: Vec<u8> = (1..=200_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    block.truncate(MIB);
    (0..count).flat_map(|n| [format!("block {n}\n").into_bytes(), block.clone()].concat()).collect()
}

fn writer(count: usize) -> String {
    format!("i=0; while test $i -lt {count}; do echo block $i; cat /dev/shm/block; i=$((i + 1)); done")
}

fn start(lease: &Lease, id: &str) -> Result<()> {
    let subject = lease.subject();
    subject.run(id).flags(["--null-io"]).sh(PREPARE).detached()?;
    subject.exec(id, "ready").sh(UNTIL_READY).output()?.succeeded().map(drop)
}

/// As many as there is time for, each with its own output and its own end.
fn execs(lease: &Lease, id: &str, enough: impl Fn(usize) -> bool) -> Result<usize> {
    let mut count = 0;
    while !enough(count) {
        let script = format!("echo {count}; exit {}", count % 100);
        let output = lease.subject().exec(id, &format!("small-{count}")).sh(&script).output()?;
        ensure!(
            output.out() == format!("{count}\n") && output.code() == i32::try_from(count % 100)?,
            "{}",
            output.describe()
        );
        count += 1;
    }
    Ok(count)
}

fn both_ways(lease: &mut Lease) -> Result<()> {
    let count = match std::env::var(SIZE_VARIABLE) {
        Ok(text) => text.parse().with_context(|| format!("{SIZE_VARIABLE}={text}"))?,
        Err(_) => SIZE,
    };
    for sandbox in 0..SANDBOXES {
        both_ways_in(lease, &format!("loaded-{sandbox}"), count)
            .with_context(|| format!("sandbox {sandbox}"))?;
    }
    Ok(())
}

fn both_ways_in(lease: &Lease, id: &str, count: usize) -> Result<()> {
    start(lease, id)?;
    let subject = lease.subject();
    let sent = expected(count);
    let digest = hex::encode(Sha256::digest(&sent));
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    let output = subject.exec(id, "out").sh(&writer(count)).start()?;
    let input = subject.exec(id, "in").sh("echo ready >&2; sha256sum").stdin(sent.clone()).start()?;
    let (written, read, execs) = thread::scope(|scope| {
        let timed =
            |running: Running| move || Ok::<_, anyhow::Error>((running.wait(TRANSFER)?, begin.elapsed()));
        let written = scope.spawn(timed(output));
        let read = scope.spawn(timed(input));
        let small = scope.spawn(|| execs(lease, id, |_| over.load(Ordering::Relaxed)));
        let panicked = |_| anyhow!("a thread panicked");
        let both = (written.join().map_err(panicked), read.join().map_err(panicked));
        over.store(true, Ordering::Relaxed);
        anyhow::Ok((both.0??, both.1??, small.join().map_err(panicked)??))
    })?;
    for ((_, took), way) in [(&written, "from"), (&read, "to")] {
        let rate = f64::from(u32::try_from(count)?) / took.as_secs_f64();
        tell(format!("console, {count} MiB each way at once: {way} the guest"), rate, "MiB/s");
    }
    tell("console: execs meanwhile", f64::from(u32::try_from(execs)?), "");
    written.0.succeeded()?;
    ensure!(written.0.stdout == sent, "{} of {} bytes, or others", written.0.stdout.len(), sent.len());
    ensure!(read.0.text()? == format!("{digest}  -"), "{}", read.0.describe());
    ensure!(execs > 0, "nothing else ran meanwhile");
    subject.remove(id)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("{signal} to {pid}"))
}

/// Who does not read holds up itself alone; and when nobody reads the guest's channel, it waits and loses nothing.
fn reader_stops(lease: &mut Lease) -> Result<()> {
    const COUNT: usize = 6;
    const AWAY: Duration = Duration::from_secs(5);
    start(lease, "patient")?;
    let subject = lease.subject();
    let slow = subject.exec("patient", "slow").sh(&writer(COUNT)).start()?;
    wait_for("the first bytes", TRANSFER, || Ok(slow.first_output()))?;
    signal(slow.id(), Signal::SIGSTOP)?;
    execs(lease, "patient", |count| count == 5).context("while one client is stopped")?;
    let quick = subject.exec("patient", "quick").sh(&writer(1)).output()?;
    ensure!(quick.stdout == expected(1), "while another is stopped: {} bytes", quick.stdout.len());

    let running = subject.exec("patient", "running").sh(&writer(COUNT)).start()?;
    wait_for("the first bytes", TRANSFER, || Ok(running.first_output()))?;
    let shim = member(lease, "the shim", is_shim_of("patient"))?;
    kill(shim, Signal::SIGSTOP).context("stopping the shim")?;
    thread::sleep(AWAY);
    kill(shim, Signal::SIGCONT).context("waking the shim")?;
    signal(slow.id(), Signal::SIGCONT)?;
    for running in [slow, running] {
        let output = running.wait(TRANSFER)?;
        ensure!(output.code() == 0 && output.stdout == expected(COUNT), "{} bytes", output.stdout.len());
    }
    subject.remove("patient")
}

/// A shim is killed while the channel is full. Its guest waits for another host, however often that happens, and what
/// was under way does not get into the next session.
fn host_dies(lease: &mut Lease) -> Result<()> {
    start(lease, "waits")?;
    let subject = lease.subject();
    let socket = subject.sandbox("waits")?.join("agent.sock");
    let endless = format!("while :; do {}; done", writer(100));
    let attached = subject.exec("waits", "endless").sh(&endless).start()?;
    wait_for("the first bytes", TRANSFER, || Ok(attached.first_output()))?;
    // containerd would have the sandbox undone.
    signal(lease.containerd.pid(), Signal::SIGSTOP)?;
    let outcome = (|| {
        kill(member(lease, "the shim", is_shim_of("waits"))?, Signal::SIGKILL).context("killing the shim")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        for round in 0..3 {
            // Dropped with all that runs in it: a host that dies says no farewell.
            let endpoint = Endpoint::Console(socket.clone());
            let bounded = async { tokio::time::timeout(TRANSFER, take_over(&endpoint, round)).await };
            runtime.block_on(bounded)?.with_context(|| format!("host {}", round + 2))?;
        }
        Ok(())
    })();
    signal(lease.containerd.pid(), Signal::SIGCONT)?;
    drop(attached);
    outcome.and_then(|()| {
        wait_for("the task to be gone or stopped", TRANSFER, || {
            Ok(subject.task("waits")?.is_none_or(|task| task.status != "RUNNING").then_some(()))
        })?;
        subject.remove("waits")
    })
}

/// A new host: has a process copy what it is sent, and leaves another writing.
async fn take_over(endpoint: &Endpoint, round: usize) -> Result<()> {
    let session = Session::connect(endpoint, TRANSFER).await.context("connecting")?;
    let sent = expected(1);
    let (input, token) = (session.draw_token(), session.draw_token());
    let (mut stdin, mut stdout) = (session.open_stdio(input).await?, session.open_stdio(token).await?);
    let tokens = Stdio { stdin: input, stdout: token, ..Stdio::new() };
    let copy = spawn(&session, &format!("copy-{round}"), "cat", tokens).await?;
    let feed = async {
        stdin.write_all(&sent).await?;
        stdin.shutdown().await
    };
    let mut got = Vec::new();
    let (sent_all, read) = tokio::join!(feed, stdout.read_to_end(&mut got));
    sent_all.context("writing")?;
    read.context("reading")?;
    ensure!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
    let exit = session.agent().wait_process(&copy).await?;
    ensure!(exit.exit_status == 0, "{exit:?}");
    session.agent().delete_process(&copy).await?;

    let token = session.draw_token();
    let mut stdout = session.open_stdio(token).await?;
    let tokens = Stdio { stdout: token, ..Stdio::new() };
    spawn(&session, &format!("endless-{round}"), "while :; do cat /dev/shm/block; done", tokens).await?;
    stdout.read_exact(&mut vec![0; MIB]).await.context("reading what never ends")?;
    Ok(())
}

async fn spawn(session: &Session, id: &str, script: &str, tokens: Stdio) -> Result<ProcessRequest> {
    let process = json!({
        "args": ["/bin/sh", "-c", script], "cwd": "/", "user": { "uid": 0, "gid": 0 },
        "env": [skep_tests::image::PATH],
    });
    let (container_id, exec_id) = ("waits".to_owned(), id.to_owned());
    let exec = ExecProcessRequest {
        container_id: container_id.clone(),
        exec_id: exec_id.clone(),
        process: serde_json::to_vec(&process)?,
        stdio: Some(tokens).into(),
        ..ExecProcessRequest::new()
    };
    session.agent().exec_process(&exec).await.with_context(|| format!("adding {id}"))?;
    let start = StartProcessRequest {
        container_id: container_id.clone(),
        exec_id: exec_id.clone(),
        ..StartProcessRequest::new()
    };
    session.agent().start_process(&start).await.with_context(|| format!("starting {id}"))?;
    Ok(ProcessRequest { container_id, exec_id, ..ProcessRequest::new() })
}

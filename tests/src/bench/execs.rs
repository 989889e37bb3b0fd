//! Processes that are added to a running container: their round trip, their streams, and what many of them leave.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use super::sample::{Sample, megabytes_per_second, memory, milliseconds, per_mib, processor_time};
use crate::census;
use crate::ctr::Runtime;
use crate::process::LIMIT;
use crate::suite::Lease;
use crate::task_api::{NewProcess, Refusal, Shim};

const ID: &str = "bench";
/// Round trips of which one run takes the mean.
const TRIPS: usize = 20;
/// Bytes that go over a stream.
pub(super) const AMOUNT: usize = 32 << 20;
/// The same over a terminal, which is slower.
const TERMINAL_AMOUNT: usize = 4 << 20;
/// What the process in the container reads or writes at once.
pub(super) const BLOCK: usize = 64 << 10;

fn refused((code, text): Refusal) -> anyhow::Error {
    anyhow!("the shim refused: {text} ({code:?})")
}

/// Adds, starts, awaits and deletes a process that does nothing.
fn trip(shim: &Shim, exec: &str) -> Result<()> {
    shim.add(ID, &NewProcess { exec, args: &["true"], ..NewProcess::default() }).map_err(refused)?;
    shim.start(ID, exec).map_err(refused)?;
    let status = shim.wait(ID, exec).map_err(refused)?;
    ensure!(status == 0, "status {status}");
    shim.delete(ID, exec).map_err(refused)
}

/// Round trips and streams of one container.
pub(super) fn take(lease: &Lease, runtime: Runtime) -> Result<Sample> {
    with_container(lease, runtime, |shim| {
        let mut sample = Sample::new();
        trip(shim, "first")?;
        let vmm = vmm(lease)?;
        let before = vmm.map(processor_time).transpose()?;
        let begin = Instant::now();
        for number in 0..TRIPS {
            trip(shim, &format!("e{number}"))?;
        }
        let per_trip = |total: f64| total / f64::from(u32::try_from(TRIPS).unwrap_or(u32::MAX));
        sample.push(("exec round trip".to_owned(), per_trip(milliseconds(begin.elapsed()))));
        if let (Some(vmm), Some(before)) = (vmm, before) {
            let spent = per_trip(processor_time(vmm)? - before);
            sample.push(("exec round trip: VMM's processor time".to_owned(), spent));
        }
        let of = |pid: Option<i32>| pid.map(processor_time).transpose();
        let shim_pid = shim_process(lease)?;
        for (way, move_bytes) in [("output", output as Mover), ("input", input)] {
            for (name, terminal, amount) in
                [("of a process", false, AMOUNT), ("of a terminal", true, TERMINAL_AMOUNT)]
            {
                let (vmm_before, shim_before) = (of(vmm)?, of(Some(shim_pid))?);
                let rate = move_bytes(shim, &Fifos::new(lease)?, terminal, amount)?;
                sample.push((format!("throughput of {way} {name}"), rate));
                for (whose, before, after) in
                    [("VMM", vmm_before, of(vmm)?), ("shim", shim_before, of(Some(shim_pid))?)]
                {
                    if let (Some(before), Some(after)) = (before, after) {
                        let spent = per_mib(after - before, amount)?;
                        sample.push((format!("each MiB of {way} {name}: {whose}'s processor time"), spent));
                    }
                }
            }
        }
        Ok(sample)
    })
}

/// Moves so many bytes one way, by a terminal or by pipes; MB/s.
type Mover = fn(&Shim, &Fifos, bool, usize) -> Result<f64>;

fn shim_process(lease: &Lease) -> Result<i32> {
    let all = census::processes(&lease.containerd.scope())?;
    let shim = all.into_iter().find(|member| member.program().starts_with("containerd-shim"));
    shim.map(|member| member.pid).context("no shim runs")
}

/// The shim's memory before and after so many execs.
pub(super) fn many(lease: &Lease, count: usize) -> Result<Sample> {
    with_container(lease, Runtime::Skep, |shim| {
        let pid = shim_process(lease)?;
        // As many as it takes for every buffer to be there.
        for number in 0..TRIPS {
            trip(shim, &format!("w{number}"))?;
        }
        let before = memory(pid)?;
        for number in 0..count {
            trip(shim, &format!("m{number}"))?;
        }
        let named = |when: String, sizes: Sample| {
            sizes.into_iter().map(move |(name, size)| (format!("after {when} execs: shim {name}"), size))
        };
        let after = named(format!("{count} more"), memory(pid)?);
        Ok(named(TRIPS.to_string(), before).chain(after).collect())
    })
}

fn with_container(
    lease: &Lease,
    runtime: Runtime,
    measure: impl FnOnce(&Shim) -> Result<Sample>,
) -> Result<Sample> {
    let subject = lease.with(runtime);
    subject.run(ID).flags(["--null-io"]).args(["sleep", "100000"]).detached()?;
    let sample = Shim::of(&lease.containerd, ID).and_then(|shim| measure(&shim));
    subject.remove(ID)?;
    sample
}

fn vmm(lease: &Lease) -> Result<Option<i32>> {
    let all = census::processes(&lease.containerd.scope())?;
    Ok(all.into_iter().find(|member| member.program().starts_with("qemu-system")).map(|member| member.pid))
}

/// Named pipes as containerd's clients make them, for one process: who reads them for one that has ended may go on.
struct Fifos {
    stdin: PathBuf,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Fifos {
    fn new(lease: &Lease) -> Result<Self> {
        let directory = lease.scratch("bench-fifos")?;
        let fifo = |name: &str| -> Result<PathBuf> {
            let path = directory.join(name);
            nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600))?;
            Ok(path)
        };
        Ok(Self { stdin: fifo("stdin")?, stdout: fifo("stdout")?, stderr: fifo("stderr")? })
    }
}

fn open(path: &Path) -> Result<File> {
    // For reading and writing, so that opening waits for nobody.
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Runs `script` with its streams on `fifos`; MB/s from the first byte that `work` sees to its end.
fn run(
    shim: &Shim,
    fifos: &Fifos,
    process: NewProcess<'_>,
    work: impl FnOnce(&Fifos) -> Result<(Instant, usize)> + Send,
) -> Result<f64> {
    let exec = process.exec;
    let stderr = (!process.terminal).then_some(fifos.stderr.as_path());
    let process = NewProcess { stdin: Some(&fifos.stdin), stdout: Some(&fifos.stdout), stderr, ..process };
    // containerd's own shim waits for somebody at the other ends.
    let _ends = [&fifos.stdin, &fifos.stdout, &fifos.stderr].map(|path| open(path));
    thread::scope(|scope| {
        let working = scope.spawn(|| work(fifos));
        shim.add(ID, &process).map_err(refused)?;
        shim.start(ID, exec).map_err(refused)?;
        let (begin, bytes) = working.join().map_err(|_| anyhow!("the other end of a stream panicked"))??;
        let took = begin.elapsed();
        shim.wait(ID, exec).map_err(refused)?;
        shim.delete(ID, exec).map_err(refused)?;
        megabytes_per_second(bytes, took)
    })
}

fn output(shim: &Shim, fifos: &Fifos, terminal: bool, amount: usize) -> Result<f64> {
    // Large blocks: busybox's head and cat would be measured instead, which move single bytes and small ones.
    let count = format!("count={}", amount / BLOCK);
    let block = format!("bs={BLOCK}");
    let args = ["dd", "if=/dev/zero", &block, &count];
    let process = NewProcess { exec: "out", args: &args, terminal, ..Default::default() };
    run(shim, fifos, process, |fifos| {
        let mut file = open(&fifos.stdout)?;
        let mut buffer = vec![0; 1 << 20];
        let mut begin = None;
        let mut seen = 0;
        while seen < amount {
            wait(&file, PollFlags::POLLIN)?;
            seen += file.read(&mut buffer)?;
            begin.get_or_insert_with(Instant::now);
        }
        Ok((begin.unwrap_or_else(Instant::now), seen))
    })
}

fn input(shim: &Shim, fifos: &Fifos, terminal: bool, amount: usize) -> Result<f64> {
    let count = amount / BLOCK;
    // A terminal that is not raw would take no line of that length.
    let raw = if terminal { "stty raw -echo; " } else { "" };
    let script = format!(
        "{raw}echo ready; dd of=/dev/null bs={BLOCK} count={count} iflag=fullblock 2>/dev/null; echo done"
    );
    let args = ["sh", "-c", &script];
    let process = NewProcess { exec: "in", args: &args, terminal, ..Default::default() };
    run(shim, fifos, process, |fifos| {
        let (mut to, mut from) = (open(&fifos.stdin)?, open(&fifos.stdout)?);
        let mut said = String::new();
        let mut expect = |word: &str| -> Result<()> {
            let mut buffer = [0; 256];
            while !said.contains(word) {
                wait(&from, PollFlags::POLLIN)?;
                let count = from.read(&mut buffer)?;
                said.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            Ok(())
        };
        expect("ready")?;
        let begin = Instant::now();
        // As much as there is room for, as over the bare port.
        fcntl(&to, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let block = vec![b'x'; BLOCK];
        let mut left = amount;
        while left > 0 {
            wait(&to, PollFlags::POLLOUT)?;
            match to.write(&block[..left.min(BLOCK)]) {
                Ok(count) => left -= count,
                // Less than what cannot be divided: a pipe is ready when a page of it is.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        expect("done")?;
        Ok((begin, amount))
    })
}

/// Waits until a pipe can be read or written, with a limit.
fn wait(pipe: &File, what: PollFlags) -> Result<()> {
    let mut all = [PollFd::new(pipe.as_fd(), what)];
    let ready = poll(&mut all, PollTimeout::try_from(LIMIT)?)?;
    ensure!(ready > 0, "nothing has moved on a stream for {LIMIT:?}");
    Ok(())
}

/// Containers made and removed: `count` one after another, then as many by `at_once` users. Milliseconds for each.
pub(super) fn containers(lease: &Lease, runtime: Runtime, count: usize, at_once: usize) -> Result<Sample> {
    let one = |number: usize| {
        let subject = lease.with(runtime);
        let output = subject.run(&format!("many-{number}")).args(["echo", "there"]).output()?;
        ensure!(output.text()? == "there", "{}", output.describe());
        Ok(())
    };
    let each =
        |begin: Instant| milliseconds(begin.elapsed()) / f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let begin = Instant::now();
    (0..count).try_for_each(one)?;
    let mut sample = vec![(format!("each of {count} containers, one after another"), each(begin))];
    let begin = Instant::now();
    thread::scope(|scope| {
        let users: Vec<_> = (0..at_once)
            .map(|user| scope.spawn(move || (user..count).step_by(at_once).try_for_each(one)))
            .collect();
        users.into_iter().try_for_each(|user| user.join().map_err(|_| anyhow!("a user panicked"))?)
    })?;
    sample.push((format!("each of {count} containers, {at_once} at a time"), each(begin)));
    Ok(sample)
}

//! One container from `ctr run` to its removal, with the time of each step.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use skep::sandbox::TimingsFile;

use crate::census;
use crate::ctr::{Runtime, Subject};
use crate::events::Recorder;
use crate::process::{LIMIT, wait_for};
use crate::suite::Lease;

/// Name and value of each figure of one run, in the order of the report. Times are in milliseconds, sizes in bytes.
pub(super) type Sample = Vec<(String, f64)>;

/// Runs one container that says something, and ends it by SIGKILL when it has been looked at.
pub(super) fn take(lease: &Lease, runtime: Runtime) -> Result<Sample> {
    let subject = lease.with(runtime);
    let recorder = Recorder::start(&lease.containerd)?;
    let mut sample = Sample::new();
    let begin = SystemTime::now();
    let running = subject.run("bench").sh("echo first; sleep 1000").start()?;
    let first = wait_for("the first output", LIMIT, || {
        ensure!(!running.has_ended(), "ctr ended before there was output");
        Ok(running.first_output())
    });
    let first = match first {
        Ok(first) => first,
        Err(error) => {
            let output = running.stop(nix::sys::signal::Signal::SIGKILL)?;
            return Err(error.context(output.describe()));
        }
    };
    recorder.wait("bench", "start")?;
    if runtime == Runtime::Skep {
        let vmm = census::processes(&lease.containerd.scope())?
            .into_iter()
            .find(|member| member.program().starts_with("qemu-system"))
            .context("no VMM runs")?;
        sample.push(("ctr run to first output: VMM's processor time".to_owned(), processor_time(vmm.pid)?));
        guest(&subject, begin, first, &mut sample)?;
    }
    resident(lease, &mut sample)?;
    let killed = SystemTime::now();
    subject.kill("bench", "SIGKILL")?.succeeded()?;
    let output = running.wait(LIMIT)?;
    let end = SystemTime::now();
    ensure!(output.code() == 137, "{}", output.describe());
    recorder.wait("bench", "delete")?;

    let at = |summary: &str| recorder.wait("bench", summary).map(|event| event.at);
    let steps = [
        ("ctr run to created", begin, at("create")?),
        ("created to started", at("create")?, at("start")?),
        ("ctr run to first output", begin, first),
        ("kill to exit", killed, at("exit")?),
        ("exit to deleted", at("exit")?, at("delete")?),
        ("kill to end of ctr run", killed, end),
    ];
    for (name, from, to) in steps {
        sample.push((name.to_owned(), between(from, to)));
    }
    Ok(sample)
}

/// The phases that the sandbox itself has written down.
fn guest(subject: &Subject<'_>, begin: SystemTime, first: SystemTime, sample: &mut Sample) -> Result<()> {
    let directory = subject.sandbox("bench")?;
    let file = directory.join("timings.json");
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    // The start is counted when it has been answered, which may be just after its event.
    let timings: TimingsFile = wait_for("timings.json to tell of the start", LIMIT, || {
        let timings: TimingsFile = serde_json::from_slice(&read(&file)?)?;
        Ok(timings.marks.iter().any(|mark| mark.name == "container-started").then_some(timings))
    })?;
    let mark = |name: &str| {
        let mark = timings.marks.iter().find(|mark| mark.name == name);
        mark.map(|mark| mark.at_us).with_context(|| format!("timings.json has no mark {name}"))
    };
    let booting = mark("agent-answered")? - mark("directory")?;
    sample.push(("boot to agent-ready".to_owned(), thousandth(booting)));
    // When the sandbox was asked for is not written down as a time of day; but its record is written just before the
    // mark "directory".
    let recorded = directory.join("sandbox.json").metadata()?.modified()?;
    let ready = recorded + Duration::from_micros(booting);
    sample.push(("agent-ready to first output".to_owned(), between(ready, first)));
    sample.push(("ctr run to sandbox".to_owned(), between(begin, recorded)));
    let mut before = 0;
    for mark in &timings.marks {
        sample.push((format!("phase: {}", mark.name), thousandth(mark.at_us - before)));
        before = mark.at_us;
    }
    sample.push((
        "round trips from Create to Start".to_owned(),
        f64::from(u32::try_from(timings.round_trips)?),
    ));
    Ok(())
}

/// The agent's resident size in bytes, which it tells on the console where it is asked to tell much. That takes time,
/// so it is asked in a sandbox of its own.
pub(super) fn agent(lease: &Lease) -> Result<f64> {
    const SOON: Duration = Duration::from_secs(10);
    lease.configure(|configuration| "[agent]\nlog = \"debug\"\n".clone_into(&mut configuration.more))?;
    let subject = lease.with(Runtime::Skep);
    subject.run("bench").flags(["--null-io"]).sh("sleep 1000").detached()?;
    let console = subject.sandbox("bench")?.join("console.log");
    let size = wait_for("the agent to tell its size", SOON, || {
        let text = fs::read(&console).with_context(|| format!("reading {}", console.display()))?;
        Ok(agent_resident(&String::from_utf8_lossy(&text)))
    });
    subject.remove("bench")?;
    size
}

/// Resident sizes of the shim and of what it runs on the host.
pub(super) fn resident(lease: &Lease, sample: &mut Sample) -> Result<()> {
    for member in census::processes(&lease.containerd.scope())? {
        let name = match member.program() {
            program if program.starts_with("containerd-shim") => "shim resident",
            program if program.starts_with("qemu-system") => "VMM resident",
            _ => continue,
        };
        let status = procfs::process::Process::new(member.pid)?.status()?;
        let kib = status.vmrss.with_context(|| format!("process {} has no VmRSS", member.pid))?;
        sample.push((name.to_owned(), f64::from(u32::try_from(kib)?) * 1024.0));
    }
    Ok(())
}

/// Memory of a process in bytes: all that is resident, its proportional share of that, and what is its alone and changed.
pub(super) fn memory(pid: i32) -> Result<Sample> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    ["Rss", "Pss", "Private_Dirty"]
        .map(|name| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u32>().ok());
            let kib = kib.with_context(|| format!("{path} has no {name}"))?;
            Ok((name.to_owned(), f64::from(kib) * 1024.0))
        })
        .into_iter()
        .collect()
}

/// What the agent says of itself on the console: `resident_kib=` and a number, the last one.
fn agent_resident(console: &str) -> Option<f64> {
    let (_, rest) = console.rsplit_once("resident_kib=")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(f64::from(digits.parse::<u32>().ok()?) * 1024.0)
}

/// The processor time that a process and its threads have taken, in milliseconds. Other load on the machine does not
/// change it much, as it does times.
pub(super) fn processor_time(pid: i32) -> Result<f64> {
    let stat = procfs::process::Process::new(pid)?.stat()?;
    Ok(milliseconds(Duration::from_secs(stat.utime + stat.stime))
        / f64::from(u32::try_from(procfs::ticks_per_second())?))
}

/// So many bytes in that time.
pub(super) fn megabytes_per_second(bytes: usize, took: Duration) -> Result<f64> {
    Ok(f64::from(u32::try_from(bytes)?) / 1e6 / took.as_secs_f64())
}

/// Something that `bytes` bytes took, for each MiB of them.
pub(super) fn per_mib(total: f64, bytes: usize) -> Result<f64> {
    Ok(total / (f64::from(u32::try_from(bytes)?) / f64::from(1 << 20)))
}

/// A duration in milliseconds.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Microseconds in milliseconds.
fn thousandth(microseconds: u64) -> f64 {
    milliseconds(Duration::from_micros(microseconds))
}

/// Milliseconds from one time to another, negative if they are the other way round.
fn between(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(forth) => milliseconds(forth),
        Err(back) => -milliseconds(back.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_last_word_on_its_size_counts() {
        assert_eq!(agent_resident("a resident_kib=1\nb resident_kib=20 c\n"), Some(20.0 * 1024.0));
        assert_eq!(agent_resident("nothing"), None);
    }

    #[test]
    fn times_may_be_the_other_way_round() {
        let now = SystemTime::now();
        let later = now + Duration::from_millis(5);
        assert!((between(now, later) - 5.0).abs() < 1e-9 && (between(later, now) + 5.0).abs() < 1e-9);
    }
}

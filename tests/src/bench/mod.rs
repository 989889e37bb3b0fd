//! The benchmark: what a container in a microVM costs, beside the same container by runc in the same run.

mod bare;
mod execs;
mod report;
mod sample;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use report::{Figure, Report, Series};

use crate::containerd_versions::Line;
use crate::ctr::Runtime;
use crate::suite::{Build, Lease, SHIM, Suite};

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often each is run.
    pub runs: usize,
    /// Under which containerd.
    pub line: Line,
    /// How many processes are added to one container, to see what they leave.
    pub execs: usize,
    /// How many containers are run one after another, and again some at a time.
    pub containers: usize,
}

/// Containers that run at a time where many do.
const AT_ONCE: usize = 10;

/// Measures everything. `progress` is told what goes on.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    ensure!(options.runs > 0, "0 runs measure nothing");
    let build = Build::from_environment()?;
    let mut report = Report::default();
    sizes(&build, &mut report)?;
    let suite = Suite::default();
    suite.case(options.line, Runtime::Skep, |lease| {
        report.host = host(lease)?;
        // The first of each is not counted: it reads what the later ones find in the page cache.
        for round in 0..=options.runs {
            progress(&format!("round {round} of {}", options.runs));
            let mut bare = bare::boot(&build)?;
            bare.extend(bare::channel(&build)?);
            let mut skep = sample::take(lease, Runtime::Skep)?;
            let mut runc = sample::take(lease, Runtime::Runc)?;
            skep.extend(execs::take(lease, Runtime::Skep)?);
            runc.extend(execs::take(lease, Runtime::Runc)?);
            if round > 0 {
                for (runtime, sample) in [(Runtime::Skep, bare), (Runtime::Skep, skep), (Runtime::Runc, runc)]
                {
                    report.add_all(runtime, sample);
                }
            }
        }
        if options.execs > 0 {
            progress("many execs");
            report.add_all(Runtime::Skep, execs::many(lease, options.execs)?);
        }
        if options.containers > 0 {
            for runtime in [Runtime::Skep, Runtime::Runc] {
                progress(&format!("many containers with {runtime}"));
                report.add_all(runtime, execs::containers(lease, runtime, options.containers, AT_ONCE)?);
            }
        }
        progress("the agent's size");
        match sample::agent(lease) {
            Ok(size) => report.add("agent resident", Runtime::Skep, size),
            Err(error) => progress(&format!("no figure for the agent's size: {error:#}")),
        }
        Ok(())
    })?;
    report.compare();
    Ok(report)
}

/// Sizes on disk, in bytes.
fn sizes(build: &Build, report: &mut Report) -> Result<()> {
    let manifest = build.guest.join("manifest.json");
    let manifest: Value =
        serde_json::from_slice(&fs::read(&manifest)?).context("reading the guest's manifest")?;
    for (part, name) in [("kernel", "kernel on disk"), ("initramfs", "agent's initramfs on disk")] {
        let file =
            manifest["files"][part]["name"].as_str().with_context(|| format!("the guest has no {part}"))?;
        report.add_size(name, size(&build.guest.join(file))?);
    }
    report.add_size("shim on disk", size(&build.bin.join(SHIM))?);
    Ok(())
}

fn size(path: &Path) -> Result<u64> {
    Ok(path.metadata().with_context(|| format!("looking at {}", path.display()))?.len())
}

/// What the figures depend on.
fn host(lease: &Lease) -> Result<BTreeMap<String, String>> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let cpus = read("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let build = lease.build()?;
    let manifest: Value = serde_json::from_slice(&fs::read(build.guest.join("manifest.json"))?)?;
    let facts = [
        ("host kernel", read("/proc/sys/kernel/osrelease")?.trim().to_owned()),
        ("guest kernel", manifest["kernel_release"].as_str().unwrap_or_default().to_owned()),
        ("processor", model.trim_start_matches([' ', '\t', ':']).to_owned()),
        ("processors", std::thread::available_parallelism()?.to_string()),
        ("load at the beginning", read("/proc/loadavg")?.split(' ').next().unwrap_or_default().to_owned()),
        ("containerd", lease.containerd.installation().version.clone()),
    ];
    Ok(facts.map(|(name, value)| (name.to_owned(), value)).into())
}

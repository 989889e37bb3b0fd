//! What a sandbox costs by itself, without containers and without containerd: the same on every system, by that system's
//! hypervisor. `cargo xtask freebsd bench` runs it on both.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use skep::config::{Config, PodOptions};
use skep::guest::GuestOs;
use skep::hypervisor::bhyve::vmmapi::{VmName, VmmApi};
use skep::journal::Entry;
use skep::network::NetworkRequest;
use skep::sandbox::{GuestSettings, Sandbox, SandboxRequest};

use crate::figures::Figure;
use crate::process::run as output;

/// How long it stays stopped.
const STOPPED: Duration = Duration::from_secs(1);
const MIB: f64 = 1_048_576.0;

/// Boots, stops, wakes and ends `rounds` sandboxes of the guest in `guest`, after one that does not count.
pub fn run(guest: &Path, rounds: usize, tell: &mut dyn FnMut(Figure)) -> Result<()> {
    ensure!(rounds > 0, "0 rounds measure nothing");
    let state = tempfile::Builder::new().prefix("skep-g-").tempdir_in("/tmp")?;
    let text = format!(
        "state_dir = {:?}\n[guest]\ndir = {:?}\n[timeouts]\nboot_s = 300\n",
        state.path().join("s").to_string_lossy(),
        guest.to_string_lossy()
    );
    let config = Config::parse(&text, "the benchmark's")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // What is read for the first time comes from the disk.
        round(&config, &mut |_| {}).await?;
        for _ in 0..rounds {
            round(&config, tell).await?;
        }
        Ok(())
    })
}

async fn create(config: &Config) -> Result<Sandbox> {
    let request = SandboxRequest {
        namespace: "bench".into(),
        id: "bench".into(),
        os: GuestOs::Linux,
        hostname: None,
        options: PodOptions::defaults(config),
        network: NetworkRequest::Own,
        settings: GuestSettings::default(),
        cgroup: None,
    };
    Sandbox::create(config, request).await.context("booting a sandbox")
}

async fn round(config: &Config, tell: &mut dyn FnMut(Figure)) -> Result<()> {
    let sandbox = create(config).await?;
    let outcome = look(&sandbox, tell).await;
    sandbox.destroy().await?;
    outcome
}

async fn look(sandbox: &Sandbox, tell: &mut dyn FnMut(Figure)) -> Result<()> {
    let vm = sandbox.journal().entries().into_iter().find_map(|(_, entry)| match entry {
        Entry::Vm { name } => Some(name),
        _ => None,
    });
    // First of all, as the guest goes on.
    let counters = match &vm {
        Some(name) => VmmApi::load()?.open(&VmName::new(name)?)?.statistics()?,
        None => Vec::new(),
    };
    let marks = sandbox.timings().marks();
    let at = |name: &str| marks.iter().find(|mark| mark.name == name).map(|mark| mark.at_us);
    for (name, from, to) in [
        ("VM made", "directory", "vm-made"),
        ("loader: guest memory filled", "vm-made", "vm-loaded"),
        ("VMM executed to its sockets", "vmm-executed", "vmm-started"),
        ("VMM executed to agent ready", "vmm-executed", "agent-answered"),
        ("sandbox asked for to agent ready", "directory", "agent-answered"),
    ] {
        if let (Some(from), Some(to)) = (at(from), at(to)) {
            tell(Figure::new(name, milliseconds(Duration::from_micros(to.saturating_sub(from))), "ms"));
        }
    }
    for (name, count) in counters {
        // Of the first processor until the agent has answered: sys/amd64/vmm/vmm_stat.c names them.
        let exit = name.contains("exit") || name.contains("intercepted");
        if exit && count > 0 {
            tell(Figure::new(format!("exits until ready: {name}"), f64::from(u32::try_from(count)?), ""));
        }
    }
    let pid = sandbox.vmm_pid();
    let (vmm, helpers) = resident(pid)?;
    tell(Figure::new("VMM resident", vmm / MIB, "MiB"));
    if helpers > 0.0 {
        tell(Figure::new("VMM's helpers resident", helpers / MIB, "MiB"));
    }
    let all = sandbox.cost()?.resident_bytes;
    tell(Figure::new("sandbox resident: VMM and guest", f64::from(u32::try_from(all)?) / MIB, "MiB"));

    let asked = Instant::now();
    sandbox.pause().await?;
    tell(Figure::new("pause", milliseconds(asked.elapsed()), "ms"));
    tokio::time::sleep(STOPPED).await;
    let asked = Instant::now();
    sandbox.resume().await?;
    tell(Figure::new("resume, with the guest's clock set", milliseconds(asked.elapsed()), "ms"));
    Ok(())
}

/// Resident bytes of a process and of its children.
fn resident(pid: u32) -> Result<(f64, f64)> {
    let mut ps = Command::new("ps");
    ps.args(["-ax", "-o", "pid=", "-o", "ppid=", "-o", "rss="]);
    let text = output(ps)?.text()?;
    let (mut own, mut children) = (None, 0.0);
    for line in text.lines() {
        let numbers: Vec<u32> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [process, parent, kib] = numbers.as_slice() else { continue };
        let bytes = f64::from(*kib) * 1024.0;
        if *process == pid {
            own = Some(bytes);
        } else if *parent == pid {
            children += bytes;
        }
    }
    Ok((own.with_context(|| format!("process {pid} is gone"))?, children))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

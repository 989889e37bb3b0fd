//! What a sandbox costs by itself, without containers and without containerd: the same on every system, by that system's
//! hypervisor. `cargo xtask freebsd bench` runs it on both.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use skep::config::{Config, PodOptions};
use skep::guest::GuestOs;
use skep::hypervisor::bhyve::vmmapi::{VmName, VmmApi};
use skep::journal::Entry;
use skep::network::NetworkRequest;
use skep::sandbox::{GuestSettings, Sandbox, SandboxRequest};
use skep_protocol::api::SetClockRequest;

use crate::figures::Figure;
use crate::process::run as output;

/// How long it stays stopped.
const STOPPED: Duration = Duration::from_secs(1);
const MIB: f64 = 1_048_576.0;
/// The counter of all exits: `sys/amd64/vmm/vmm_stat.c`.
const EXITS: &str = "total number of vm exits";

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
    // An emulator's memory is slow to write where it has held a guest's code, so by itself the loader is measured before
    // and after guests ran.
    #[cfg(target_os = "freebsd")]
    loads(guest, rounds, "before any guest ran", tell)?;
    runtime.block_on(async {
        // What is read for the first time comes from the disk.
        round(&config, &mut |_| {}).await?;
        for _ in 0..rounds {
            round(&config, tell).await?;
        }
        anyhow::Ok(())
    })?;
    #[cfg(target_os = "freebsd")]
    loads(guest, rounds, "after guests ran", tell)?;
    Ok(())
}

/// Makes and loads VMs that nobody runs: what the loader takes by itself, in time, processor time and page faults.
#[cfg(target_os = "freebsd")]
fn loads(guest: &Path, rounds: usize, when: &str, tell: &mut dyn FnMut(Figure)) -> Result<()> {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike as _;
    use skep::guest::Guest;
    use skep::hypervisor::bhyve::{self, boot_files::BootFiles};

    let guest = Guest::load(guest, GuestOs::Linux)?;
    let (kernel, initramfs) = (guest.kernel(), guest.initramfs());
    let boot = BootFiles {
        kernel: &kernel,
        initramfs: initramfs.as_deref(),
        command_line: "quiet",
        memory: 256 << 20,
    };
    let (api, name) = (VmmApi::load()?, format!("skep-bench-{}", std::process::id()));
    let vm = VmName::new(&name)?;
    for round in 0..=rounds {
        let before = getrusage(UsageWho::RUSAGE_THREAD)?;
        let loaded = boot.load(&api, &vm);
        let after = getrusage(UsageWho::RUSAGE_THREAD)?;
        bhyve::destroy(&name)?;
        let [made, filled] = loaded?;
        // The first of all reads from the disk. The first after guests ran is given the memory that they had.
        let first = if round == 0 { "the first " } else { "" };
        let processor = |of: fn(&nix::sys::resource::Usage) -> nix::sys::time::TimeVal| {
            let microseconds = (of(&after) - of(&before)).num_microseconds();
            anyhow::Ok(f64::from(u32::try_from(microseconds)?) / 1000.0)
        };
        let faults = after.minor_page_faults() - before.minor_page_faults();
        for (what, value, unit) in [
            ("guest memory filled", milliseconds(filled.at - made.at), "ms"),
            ("processor time, kernel", processor(nix::sys::resource::Usage::system_time)?, "ms"),
            ("processor time, own", processor(nix::sys::resource::Usage::user_time)?, "ms"),
            ("page faults", f64::from(u32::try_from(faults)?), ""),
        ] {
            tell(Figure::new(format!("loader alone, {first}{when}: {what}"), value, unit));
        }
    }
    Ok(())
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
    let first = match &vm {
        Some(name) => counters(name)?,
        None => Vec::new(),
    };
    let exits = || -> Result<Option<u64>> {
        let Some(name) = &vm else { return Ok(None) };
        Ok(counters(name)?.into_iter().find_map(|(name, count)| (name == EXITS).then_some(count)))
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
    for (name, count) in first {
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

    for name in ["a call, the first after that", "a call"] {
        let before = exits()?;
        let asked = Instant::now();
        // What resuming does once the guest runs.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let request =
            SetClockRequest { realtime_ns: i64::try_from(now.as_nanos())?, ..SetClockRequest::default() };
        sandbox.session().agent().set_clock(&request).await?;
        tell(Figure::new(name, milliseconds(asked.elapsed()), "ms"));
        tell_exits(name, before, exits()?, tell)?;
    }
    let asked = Instant::now();
    sandbox.pause().await?;
    tell(Figure::new("pause", milliseconds(asked.elapsed()), "ms"));
    tokio::time::sleep(STOPPED).await;
    let (name, before) = ("resume, with the guest's clock set", exits()?);
    let asked = Instant::now();
    sandbox.resume().await?;
    tell(Figure::new(name, milliseconds(asked.elapsed()), "ms"));
    tell_exits(name, before, exits()?, tell)
}

/// What bhyve counts for the VM's first processor.
fn counters(vm: &str) -> Result<Vec<(String, u64)>> {
    Ok(VmmApi::load()?.open(&VmName::new(vm)?)?.statistics()?)
}

/// How often the guest was left meanwhile, where it is counted.
fn tell_exits(
    what: &str,
    before: Option<u64>,
    after: Option<u64>,
    tell: &mut dyn FnMut(Figure),
) -> Result<()> {
    if let (Some(before), Some(after)) = (before, after) {
        let count = u32::try_from(after.saturating_sub(before))?;
        tell(Figure::new(format!("{what}: exits"), f64::from(count), ""));
    }
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

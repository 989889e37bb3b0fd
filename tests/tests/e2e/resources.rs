//! What containers use and may use: metrics, limits and their changes, and what happens to who wants more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_tests::ctr::{Runtime, Subject};
use skep_tests::events::Recorder;
use skep_tests::process::{LIMIT, Output, wait_for};
use skep_tests::suite::Lease;
use skep_tests::task_api::Shim;
use ttrpc::Code;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    Case::both("metrics", metrics).on_freebsd().everywhere(),
    Case::both("room_for_its_limits", room_for_its_limits),
    Case::both("update", update).on_freebsd(),
    Case::skep("update_beyond_the_vm", update_beyond_the_vm).on_freebsd(),
    Case::both("cpu_set", cpu_set).on_freebsd(),
    Case::skep("cpu_set_beyond_the_vm", cpu_set_beyond_the_vm).on_freebsd(),
    Case::skep("cost_of_a_vm", cost_of_a_vm).on_freebsd(),
    Case::both("oom", oom).on_freebsd().everywhere(),
    Case::both("oom_of_a_child", oom_of_a_child).on_freebsd(),
    Case::both("oom_of_an_exec", oom_of_an_exec).on_freebsd(),
];

const MIB: u64 = 1 << 20;

/// Figures of a task, whatever its runtime and its host's cgroups call them.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) memory: u64,
    pub(crate) memory_limit: u64,
    pub(crate) cpu: Duration,
    periods: u64,
    pub(crate) pids: u64,
    pub(crate) pids_limit: u64,
    pub(crate) oom_kills: u64,
}

impl Figures {
    pub(crate) fn of(subject: &Subject<'_>, id: &str) -> Result<Self> {
        let text = subject.ctr(["task", "metrics", "--format", "json", id])?.text()?;
        let all: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        let get = |path: &str| all.pointer(path).and_then(Value::as_u64).unwrap_or_default();
        let v2 = all.pointer("/memory/usage").is_some_and(Value::is_u64);
        Ok(if v2 {
            Self {
                memory: get("/memory/usage"),
                memory_limit: get("/memory/usage_limit"),
                cpu: Duration::from_micros(get("/cpu/usage_usec")),
                periods: get("/cpu/nr_periods"),
                pids: get("/pids/current"),
                pids_limit: get("/pids/limit"),
                oom_kills: get("/memory_events/oom_kill"),
            }
        } else {
            Self {
                memory: get("/memory/usage/usage"),
                memory_limit: get("/memory/usage/limit"),
                cpu: Duration::from_nanos(get("/cpu/usage/total")),
                periods: get("/cpu/throttling/periods"),
                pids: get("/pids/current"),
                pids_limit: get("/pids/limit"),
                oom_kills: get("/memory_oom_control/oom_kill"),
            }
        })
    }
}

/// Memory that is in use, two processes, and time that goes by with work.
const BUSY: &str =
    "dd if=/dev/zero of=/dev/shm/used bs=1M count=20 2>/dev/null; echo >/tmp/ready; while :; do :; done";

fn metrics(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let limit = 96 * MIB;
    let run = subject.run("busy").flags(["--null-io", "--memory-limit", &limit.to_string()]);
    run.sh(&format!("sleep 1000 & {BUSY}")).detached()?;
    subject.exec("busy", "e1").sh("until test -e /tmp/ready; do sleep 0.05; done").output()?.succeeded()?;
    let first = Figures::of(&subject, "busy")?;
    ensure!((20 * MIB..limit).contains(&first.memory), "{first:?}");
    ensure!(first.memory_limit == limit && first.oom_kills == 0, "{first:?}");
    ensure!(first.pids == 2 && first.cpu > Duration::ZERO, "{first:?}");
    let later = wait_for("processor time to go by", LIMIT, || {
        let later = Figures::of(&subject, "busy")?;
        Ok((later.cpu >= first.cpu + Duration::from_millis(300)).then_some(later))
    })?;
    ensure!(later.pids == 2, "{later:?}");
    subject.remove("busy")
}

/// More than a VM has where nothing is said: the container can use it all the same.
fn room_for_its_limits(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let script = "dd if=/dev/zero of=/dev/null bs=300M count=1 2>/dev/null && echo used; nproc";
    let mut spec = subject.spec("roomy", &lease.rootfs("root")?, ["/bin/sh", "-c", script])?;
    spec["linux"]["resources"]["memory"] = json!({ "limit": 384 * MIB });
    spec["linux"]["resources"]["cpu"] = json!({ "quota": 150_000, "period": 100_000 });
    let output = subject.run("roomy").spec(&spec)?.output()?;
    let text = output.text()?;
    let processors = text.strip_prefix("used\n").with_context(|| output.describe())?;
    if lease.runtime == Runtime::Skep {
        // Without a limit a VM has one.
        let most = std::thread::available_parallelism()?.get().min(2);
        ensure!(processors.trim_end() == most.to_string(), "{}", output.describe());
    }
    Ok(())
}

fn update(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let run = subject.run("changed").flags(["--null-io", "--memory-limit", &(96 * MIB).to_string()]);
    run.sh("while :; do :; done").detached()?;
    let shim = Shim::of(&lease.containerd, "changed")?;
    let update = |resources: Value| {
        shim.update("changed", &resources).map_err(|refused| anyhow::anyhow!("{resources}: {refused:?}"))
    };
    ensure!(Figures::of(&subject, "changed")?.periods == 0);
    update(json!({"memory": {"limit": 48 * MIB}}))?;
    update(json!({"pids": {"limit": 17}}))?;
    update(json!({"cpu": {"quota": 20_000, "period": 100_000, "shares": 512}}))?;
    let figures = wait_for("the quota to matter", LIMIT, || {
        let figures = Figures::of(&subject, "changed")?;
        Ok((figures.periods > 0).then_some(figures))
    })?;
    // What is not named stays.
    ensure!(figures.memory_limit == 48 * MIB && figures.pids_limit == 17, "{figures:?}");
    update(json!({"cpu": {"quota": -1}}))?;
    update(json!({"cpu": {"cpus": "0"}}))?;
    let allowed = subject.exec("changed", "e1").args(["grep", "Cpus_allowed_list", "/proc/self/status"]);
    let allowed = allowed.output()?.text()?;
    ensure!(allowed.split_whitespace().last() == Some("0"), "{allowed}");
    update(json!({"memory": {"limit": -1}}))?;
    let figures = Figures::of(&subject, "changed")?;
    ensure!(figures.memory_limit > 96 * MIB, "{figures:?}");
    subject.remove("changed")
}

fn update_beyond_the_vm(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let flags = ["--null-io", "--annotation", "org.skep.memory-mib=256", "--annotation", "org.skep.vcpus=1"];
    subject.run("bounded").flags(flags).args(["sleep", "1000"]).detached()?;
    let shim = Shim::of(&lease.containerd, "bounded")?;
    for (resources, words) in [
        (json!({"memory": {"limit": 512 * MIB}}), ["536870912", "256 MiB"]),
        (json!({"cpu": {"quota": 150_000, "period": 100_000}}), ["150000 us", "1 virtual CPU"]),
        (json!({"cpu": {"cpus": "0-1"}}), ["names 1", "has 1 virtual CPU"]),
        (json!({"cpu": {"mems": "1"}}), ["names 1", "has 1 memory node"]),
    ] {
        let Err((code, text)) = shim.update("bounded", &resources) else {
            anyhow::bail!("{resources} is not refused");
        };
        ensure!(code == Code::INVALID_ARGUMENT, "{resources}: {code:?} {text}");
        ensure!(words.iter().all(|word| text.contains(word)), "{resources}: {text}");
    }
    // Nothing of that was done.
    let figures = Figures::of(&subject, "bounded")?;
    ensure!(figures.memory_limit == 256 * MIB, "{figures:?}");
    subject.remove("bounded")
}

fn with_cpu(lease: &Lease, cpu: Value) -> Result<Output> {
    let subject = lease.subject();
    let list = ["grep", "Cpus_allowed_list", "/proc/self/status"];
    let mut spec = subject.spec("placed", &lease.rootfs("root")?, list)?;
    spec["linux"]["resources"]["cpu"] = cpu;
    subject.run("placed").spec(&spec)?.output()
}

/// Less than the two virtual CPUs that its quota is worth.
fn cpu_set(lease: &mut Lease) -> Result<()> {
    let cpu = json!({"cpus": "0", "mems": "0", "quota": 200_000, "period": 100_000});
    let output = with_cpu(lease, cpu)?;
    ensure!(output.text()?.split_whitespace().last() == Some("0"), "{}", output.describe());
    Ok(())
}

/// Not even a VM is made for it.
fn cpu_set_beyond_the_vm(lease: &mut Lease) -> Result<()> {
    for (cpu, words) in [
        (json!({"cpus": "0,4000"}), ["resources.cpu.cpus", "names 4000", "virtual CPUs, from 0 on"]),
        (json!({"mems": "0-1"}), ["resources.cpu.mems", "names 1", "has 1 memory nodes"]),
    ] {
        let output = with_cpu(lease, cpu)?;
        // containerd 2, which FreeBSD has, leaves the code's own words out.
        let coded = cfg!(target_os = "freebsd") || output.err().contains("invalid argument");
        ensure!(output.code() != 0 && coded, "{}", output.describe());
        ensure!(words.iter().all(|word| output.err().contains(word)), "{}", output.describe());
    }
    Ok(())
}

/// `skep list` tells what a VM costs this host, and it costs more when its guest works.
fn cost_of_a_vm(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    subject
        .run("costs")
        .flags(["--null-io"])
        .sh("while ! test -e /tmp/work; do sleep 0.1; done; while :; do :; done")
        .detached()?;
    let figures = || -> Result<(u64, u64)> {
        let text = lease.skep(&["list", "--json"])?.text()?;
        let all: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        let rows = all.as_array().context("no list")?;
        let row = rows.iter().find(|row| row["id"] == "costs").with_context(|| text.clone())?;
        let number = |name: &str| row["vmm"][name].as_u64().with_context(|| format!("no {name}: {row}"));
        Ok((number("processor_us")?, number("resident_bytes")?))
    };
    let (begin, memory) = figures()?;
    ensure!(begin > 0 && memory > 20 * MIB, "{begin} us, {memory} bytes");
    let fill = "dd if=/dev/zero of=/dev/shm/used bs=1M count=40 2>/dev/null; touch /tmp/work";
    subject.exec("costs", "e1").sh(fill).output()?.succeeded()?;
    wait_for("the VM to cost more", LIMIT, || {
        let (processor, now) = figures()?;
        Ok((processor > begin + 2_000_000 && now > memory + 30 * MIB).then_some(()))
    })?;
    let table = lease.skep(&["list"])?.text()?;
    ensure!(table.contains(" MEMORY") && table.contains(" MiB costs"), "{table}");
    subject.remove("costs")
}

/// Wants more memory than it may have: all of a block is allocated and written.
const GREEDY: [&str; 5] = ["dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1"];
const LITTLE: [&str; 2] = ["--memory-limit", "33554432"];

fn oom(lease: &mut Lease) -> Result<()> {
    let recorder = Recorder::start(&lease.containerd)?;
    let subject = lease.subject();
    subject.run("greedy").flags(["--null-io"]).flags(LITTLE).args(GREEDY).detached()?;
    let exit = recorder.wait("greedy", "exit")?;
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    recorder.wait("greedy", "oom")?;
    subject.wait_status("greedy", "STOPPED")?;
    if lease.runtime == Runtime::Skep {
        // Who hears of the exit knows the reason by then. containerd's own shim tells them in any order.
        let summaries = recorder.summaries("greedy");
        ensure!(summaries == ["create", "start", "oom", "exit"], "{summaries:?}");
    }
    ensure!(subject.delete_task("greedy")? == 137);
    subject.remove("greedy")
}

fn oom_of_a_child(lease: &mut Lease) -> Result<()> {
    let recorder = Recorder::start(&lease.containerd)?;
    let subject = lease.subject();
    let script = format!("{} 2>/dev/null; echo $? >/tmp/code; while :; do sleep 1; done", GREEDY.join(" "));
    subject.run("parent").flags(["--null-io"]).flags(LITTLE).sh(&script).detached()?;
    recorder.wait("parent", "oom")?;
    let code = subject.exec("parent", "e1").sh("until test -s /tmp/code; do sleep 0.05; done; cat /tmp/code");
    ensure!(code.output()?.text()? == "137");
    let task = subject.task("parent")?;
    ensure!(task.as_ref().is_some_and(|task| task.status == "RUNNING"), "{task:?}");
    if lease.runtime == Runtime::Skep {
        ensure!(Figures::of(&subject, "parent")?.oom_kills == 1);
    }
    subject.remove("parent")
}

fn oom_of_an_exec(lease: &mut Lease) -> Result<()> {
    let recorder = Recorder::start(&lease.containerd)?;
    let subject = lease.subject();
    subject.run("host").flags(["--null-io"]).flags(LITTLE).args(["sleep", "1000"]).detached()?;
    let output = subject.exec("host", "e1").args(GREEDY).output()?;
    ensure!(output.code() == 137, "{}", output.describe());
    recorder.wait("host", "oom")?;
    ensure!(subject.task("host")?.is_some_and(|task| task.status == "RUNNING"));
    subject.remove("host")
}

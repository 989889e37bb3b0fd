//! What CRI tells of containers and pods and changes of them, and its streams: with runc, and with Skep both ways.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_tests::cri::{Cri, Handler, NAMESPACE};
use skep_tests::process::{Input, LIMIT, Running, run, wait_for};
use skep_tests::suite::Lease;
use skep_tests::task_api::Shim;

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";
const MIB: u64 = 1 << 20;

pub(super) fn figures(lease: &mut Lease) -> Result<()> {
    all(lease, super::of(lease))
}

pub(super) fn all(lease: &mut Lease, handler: Handler) -> Result<()> {
    let cri = Cri::start(lease.build()?)?;
    let before = cri.census()?;
    let pod = cri.pod(handler, "figures", &json!({}))?;
    let container = pod.run(
        &cri,
        "c",
        FOREVER,
        &json!({ "linux": { "resources": { "memory_limit_in_bytes": 64 * MIB } } }),
    )?;
    killed_for_memory(&cri, &pod)?;
    updated(&cri, handler, &container)?;
    streams(&cri, &pod, &container)?;
    pod.remove(&cri)?;
    before.settle(&cri.containerd.scope())
}

pub(super) fn of_the_pod(lease: &mut Lease) -> Result<()> {
    of_a_pod(lease, super::of(lease))
}

/// containerd reads a pod's figures (`crictl statsp`, kubelet's) from the cgroup that kubelet made for it.
pub(super) fn of_a_pod(lease: &mut Lease, handler: Handler) -> Result<()> {
    let cri = Cri::start(lease.build()?)?;
    let parent = format!("{}-pods/pod1", cri.containerd.namespace());
    make(&parent)?;
    let before = cri.census()?;
    let pod = cri.pod(handler, "counted", &json!({ "linux": { "cgroup_parent": format!("/{parent}") } }))?;
    let script = "dd if=/dev/zero of=/dev/shm/used bs=1M count=20 2>/dev/null; while :; do :; done";
    pod.run(&cri, "busy", script, &json!({}))?;
    let figures = || -> Result<(u64, u64)> {
        let all: Value = serde_json::from_str(&cri.said(&format!("statsp --output json --id {}", pod.id))?)?;
        let number = |path: &str| {
            let value = all.pointer(path).and_then(Value::as_str).and_then(|text| text.parse::<u64>().ok());
            value.unwrap_or_default()
        };
        Ok((
            number("/stats/0/linux/cpu/usageCoreNanoSeconds/value"),
            number("/stats/0/linux/memory/workingSetBytes/value"),
        ))
    };
    let first = wait_for("the pod's memory to be counted", LIMIT, || {
        let first = figures()?;
        Ok((first.1 >= 20 * MIB && first.0 > 0).then_some(first))
    })?;
    wait_for("the pod's work to be counted", LIMIT, || {
        Ok((figures()?.0 >= first.0 + 1_000_000_000).then_some(()))
    })?;
    pod.remove(&cri)?;
    before.settle(&cri.containerd.scope())?;
    // Nothing of the pod is in it any more: else it could not be removed.
    remove(&parent)
}

/// In the hierarchies that containerd reads.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.procs").exists() {
        return vec![root.to_owned()];
    }
    let mut all: Vec<PathBuf> = ["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer"]
        .iter()
        .map(|name| root.join(name))
        .filter(|path| path.join("cgroup.procs").exists())
        .collect();
    all.sort_by_key(|path| path.canonicalize().ok());
    all.dedup_by_key(|path| path.canonicalize().ok());
    all
}

/// As kubelet makes it.
pub(super) fn make(below: &str) -> Result<()> {
    for root in hierarchies() {
        let mut place = root.clone();
        for part in Path::new(below) {
            if root == Path::new("/sys/fs/cgroup") {
                fs::write(place.join("cgroup.subtree_control"), "+cpu +memory")?;
            }
            let parent = place.clone();
            place.push(part);
            fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
            for name in ["cpuset.cpus", "cpuset.mems"].iter().filter(|name| root.join(name).exists()) {
                fs::write(place.join(name), fs::read_to_string(parent.join(name))?)?;
            }
        }
    }
    Ok(())
}

pub(super) fn remove(below: &str) -> Result<()> {
    for place in crate::host_cgroup::places(below) {
        for place in [place.as_path(), place.parent().context("a root")?] {
            fs::remove_dir(place).with_context(|| format!("removing {}", place.display()))?;
        }
    }
    Ok(())
}

fn inspect(cri: &Cri, container: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cri.said(&format!("inspect {container}"))?)?)
}

fn killed_for_memory(cri: &Cri, pod: &skep_tests::cri::Pod) -> Result<()> {
    let little = json!({ "linux": { "resources": { "memory_limit_in_bytes": 32 * MIB } } });
    let script = "exec dd if=/dev/zero of=/dev/null bs=128M count=1";
    let greedy = pod.run(cri, "greedy", script, &little)?;
    wait_for("the end of who wants too much", LIMIT, || {
        let status = &inspect(cri, &greedy)?["status"];
        if status["state"] != "CONTAINER_EXITED" {
            return Ok(None);
        }
        ensure!(status["reason"] == "OOMKilled" && status["exitCode"] == 137, "{status}");
        Ok(Some(()))
    })
}

/// The limit of memory as the task's figures have it.
fn memory_limit(cri: &Cri, container: &str) -> Result<Option<u64>> {
    let mut command = cri.containerd.ctr_command_in(NAMESPACE, ["task", "metrics", "--format", "json"]);
    command.arg(container);
    let text = run(command)?.text()?;
    let all: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    Ok(all.pointer("/memory/usage_limit").or(all.pointer("/memory/usage/limit")).and_then(Value::as_u64))
}

fn updated(cri: &Cri, handler: Handler, container: &str) -> Result<()> {
    ensure!(memory_limit(cri, container)? == Some(64 * MIB));
    cri.said(&format!("update --memory {} --cpu-period 100000 --cpu-quota 50000 {container}", 48 * MIB))?;
    ensure!(memory_limit(cri, container)? == Some(48 * MIB));
    let told = inspect(cri, container)?["status"]["resources"]["linux"].clone();
    ensure!(told["memoryLimitInBytes"] == "50331648" && told["cpuQuota"] == "50000", "{told}");
    if handler != Handler::Runc {
        let output = cri.crictl(&format!("update --memory {} {container}", 1_u64 << 40))?;
        ensure!(
            output.code() != 0 && output.err().contains("MiB) that the sandbox's VM has"),
            "{}",
            output.describe()
        );
        ensure!(memory_limit(cri, container)? == Some(48 * MIB));
    }
    Ok(())
}

/// `crictl exec` and `crictl attach` without `--sync`: containerd's streaming server is between.
fn streams(cri: &Cri, pod: &skep_tests::cri::Pod, container: &str) -> Result<()> {
    let sent: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    let echo = cri.command(["exec", "-i", container, "cat"]);
    let output = Running::spawn(echo, Input::Piped(sent.clone()))?.wait(LIMIT)?;
    ensure!(
        output.code() == 0 && output.stdout == sent,
        "code {}, {} bytes",
        output.code(),
        output.stdout.len()
    );
    let failing = cri.command(["exec", "-i", container, "sh", "-c", "echo out; echo err >&2; exit 3"]);
    let output = Running::spawn(failing, Input::Empty)?.wait(LIMIT)?;
    ensure!(
        output.code() != 0
            && output.out() == "out\n"
            && output.err().contains("err\n")
            && output.err().contains("exit code 3"),
        "{}",
        output.describe()
    );
    let terminal =
        cri.command(["exec", "-it", container, "sh", "-c", "test -t 0 && test -t 1 && echo terminal"]);
    let output = Running::spawn_on_terminal(terminal)?.wait(LIMIT)?;
    ensure!(output.code() == 0 && output.out().contains("terminal\r\n"), "{}", output.describe());

    let attached = pod.run(
        cri,
        "attached",
        "while read line; do echo got $line; done; sleep 1; exit 5",
        &json!({ "stdin": true, "stdin_once": true }),
    )?;
    let attach = cri.command(["attach", "-i", &attached]);
    let output = Running::spawn(attach, Input::Piped(b"one\ntwo\n".to_vec()))?.wait(LIMIT)?;
    ensure!(output.out() == "got one\ngot two\n", "{}", output.describe());
    wait_for("the end of the container that was attached to", LIMIT, || {
        let status = &inspect(cri, &attached)?["status"];
        Ok((status["state"] == "CONTAINER_EXITED" && status["exitCode"] == 5).then_some(()))
    })
}

/// A pod's own container has what its VM costs the host beyond the others: with theirs it makes the whole.
pub(super) fn cost_of_a_pod(lease: &mut Lease) -> Result<()> {
    let cri = Cri::start(lease.build()?)?;
    let before = cri.census()?;
    let pod = cri.pod(Handler::Container, "costs", &json!({}))?;
    let script = "dd if=/dev/zero of=/dev/shm/used bs=1M count=20 2>/dev/null; while :; do :; done";
    let container = pod.run(&cri, "busy", script, &json!({}))?;
    let of_task = |id: &str| -> Result<(u64, u64)> {
        let mut command = cri.containerd.ctr_command_in(NAMESPACE, ["task", "metrics", "--format", "json"]);
        command.arg(id);
        let text = run(command)?.text()?;
        let all: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        // ctr leaves out what is 0.
        let number = |path: &str| all.pointer(path).and_then(Value::as_u64).unwrap_or_default();
        Ok((number("/cpu/usage_usec"), number("/memory/usage")))
    };
    let skep = lease.build()?.bin.join("skep");
    let of_vm = || -> Result<(u64, u64)> {
        let mut command = Command::new(&skep);
        command.args(["list", "--json"]).env("SKEP_CONFIG", cri.containerd.skep_config());
        let all: Value = serde_json::from_str(&run(command)?.text()?)?;
        let vmm = &all[0]["vmm"];
        let number = |name: &str| vmm[name].as_u64().with_context(|| format!("no {name}: {all}"));
        Ok((number("processor_us")?, number("resident_bytes")?))
    };
    wait_for("the memory to be used", LIMIT, || Ok((of_task(&container)?.1 >= 20 * MIB).then_some(())))?;
    // What the pod's interfaces carried is a figure of its own container: once, so that figures add up.
    let interfaces = |id: &str| -> Result<Vec<String>> {
        let network = Shim::at(&cri.containerd.bundle_in(NAMESPACE, id))?.metrics(id)?.network;
        Ok(network.into_iter().map(|one| one.name).collect())
    };
    ensure!(interfaces(&pod.id)? == ["eth0"] && interfaces(&container)?.is_empty());
    let (whole_before, _) = of_vm()?;
    let (own_before, _) = of_task(&container)?;
    let (rest, rest_memory) = of_task(&pod.id)?;
    let (own_after, own_memory) = of_task(&container)?;
    let (whole_after, whole_memory) = of_vm()?;
    ensure!(rest + own_after >= whole_before, "{rest} and {own_after} us are less than {whole_before}");
    // The guest's clock goes on while its processors wait for this host's.
    ensure!(
        rest == 0 || rest + own_before <= whole_after,
        "{rest} and {own_before} us are more than {whole_after}"
    );
    ensure!(own_memory >= 20 * MIB && rest_memory > 20 * MIB, "{own_memory}, {rest_memory}");
    ensure!(rest_memory < whole_memory, "{rest_memory} of {whole_memory}");
    // Its figure never goes down, and the whole goes on.
    wait_for("the guest's work to be seen", LIMIT, || {
        let (later, _) = of_task(&pod.id)?;
        ensure!(later >= rest, "{later} after {rest}");
        Ok((of_vm()?.0 > whole_after + 1_000_000).then_some(()))
    })?;
    pod.remove(&cri)?;
    before.settle(&cri.containerd.scope())
}

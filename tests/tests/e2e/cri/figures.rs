//! What CRI tells of containers and pods and changes of them, and its streams: with runc, and with Skep both ways.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_tests::cri::{Cri, Handler, NAMESPACE};
use skep_tests::ctr::Runtime;
use skep_tests::process::{Input, LIMIT, Running, run, wait_for};
use skep_tests::suite::Lease;

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";
const MIB: u64 = 1 << 20;

pub(super) fn figures(lease: &mut Lease) -> Result<()> {
    all(lease, if lease.runtime == Runtime::Runc { Handler::Runc } else { Handler::Container })
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

fn inspect(cri: &Cri, container: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cri.said(&format!("inspect {container}"))?)?)
}

fn killed_for_memory(cri: &Cri, pod: &skep_tests::cri::Pod) -> Result<()> {
    let little = json!({ "linux": { "resources": { "memory_limit_in_bytes": 32 * MIB } } });
    let script = "exec dd if=/dev/zero of=/dev/null bs=128M count=1";
    let greedy = pod.run(cri, "greedy", script, &little)?;
    wait_for("the end of who wants too much", Duration::from_secs(60), || {
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
    wait_for("the end of the container that was attached to", Duration::from_secs(60), || {
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
    wait_for("the memory to be used", Duration::from_secs(60), || {
        Ok((of_task(&container)?.1 >= 20 * MIB).then_some(()))
    })?;
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
    wait_for("the guest's work to be seen", Duration::from_secs(60), || {
        let (later, _) = of_task(&pod.id)?;
        ensure!(later >= rest, "{later} after {rest}");
        Ok((of_vm()?.0 > whole_after + 1_000_000).then_some(()))
    })?;
    pod.remove(&cri)?;
    before.settle(&cri.containerd.scope())
}

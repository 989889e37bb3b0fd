//! Pods as Kubernetes makes them: by containerd's CRI plugin, with runc, and with Skep both ways.

mod figures;
mod processors;

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use skep_tests::containerd_versions::Line;
use skep_tests::cri::{Cri, Handler, NAMESPACE};
use skep_tests::ctr::Runtime;
use skep_tests::process::{Input, LIMIT, Output, Running, run, wait_for};
use skep_tests::suite::Lease;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    on_2(Case::both("cri_pod", pod)),
    on_2(Case::skep("cri_sandbox_api", sandbox_api)),
    on_2(Case::both("cri_figures", figures::figures)),
    on_2(Case::skep("cri_figures_sandbox_api", |lease| figures::all(lease, Handler::Sandbox))),
    on_2(Case::skep("cri_cost_of_a_pod", figures::cost_of_a_pod)),
    on_2(Case::both("cri_pod_stats", figures::of_the_pod)),
    on_2(Case::skep("cri_pod_stats_sandbox_api", |lease| figures::of_a_pod(lease, Handler::Sandbox))),
    on_2(Case::both("cri_processors", |lease| processors::named(lease, of(lease)))),
    on_2(Case::skep("cri_processors_sandbox_api", |lease| processors::named(lease, Handler::Sandbox))),
    on_2(Case::skep("cri_losses", losses)),
    on_2(Case::skep("cri_refusals", refusals)),
];

/// The Sandbox API came with 2.0.
const fn on_2(mut case: Case) -> Case {
    case.lines = &[Line::V2];
    case
}

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";

/// What makes the pods of the runtime under test.
fn of(lease: &Lease) -> Handler {
    if lease.runtime == Runtime::Runc { Handler::Runc } else { Handler::Container }
}

fn pod(lease: &mut Lease) -> Result<()> {
    whole_pod(lease, of(lease))
}

fn sandbox_api(lease: &mut Lease) -> Result<()> {
    whole_pod(lease, Handler::Sandbox)
}

/// What every pod can do.
fn whole_pod(lease: &mut Lease, handler: Handler) -> Result<()> {
    let mut cri = Cri::start(lease.build()?)?;
    let before = cri.census()?;
    let volume = cri.containerd.directory().join("scratch/config");
    fs::create_dir_all(&volume)?;
    fs::write(volume.join("key"), "old\n")?;

    let settings = json!({ "linux": { "sysctls": { "net.ipv4.ip_unprivileged_port_start": "80" } } });
    let pod = cri.pod(handler, "web", &settings)?;
    let ip = pod.address(&cri)?;

    let script = "mkdir /www; echo served >/www/index.html; httpd -p 127.0.0.1:8080 -h /www; \
                  httpd -p 9090 -h /www; echo out; echo err >&2; trap 'exit 7' TERM; echo shared >/dev/shm/note; \
                  while :; do sleep 0.2; done";
    let mounts =
        json!({ "mounts": [{ "container_path": "/config", "host_path": volume, "readonly": true }] });
    let server = pod.run(&cri, "server", script, &mounts)?;
    let user = json!({ "linux": { "security_context": { "run_as_user": { "value": 1000 } } } });
    let client = pod.run(&cri, "client", FOREVER, &user)?;

    // Files, names, memory and parameters of the pod; both containers are in its network.
    let expect = |container: &str, script: &str, expected: &str| -> Result<()> {
        let output = cri.exec(container, script)?;
        // crictl adds a line's end.
        ensure!(
            output.code() == 0 && said(&output) == expected.trim_end(),
            "{script}: {}",
            output.describe()
        );
        Ok(())
    };
    // The server is as far as that when it has left its note.
    expect(&client, "until grep -q shared /dev/shm/note; do sleep 0.1; done", "")?;
    expect(&client, "hostname; cat /etc/hostname", "web-host\nweb-host\n")?;
    expect(&client, "cat /etc/resolv.conf", "search pods.test\nnameserver 10.9.8.7\noptions ndots:5\n")?;
    expect(&client, "grep -q localhost /etc/hosts && id -u", "1000\n")?;
    expect(&client, "df -m /dev/shm | awk 'END { print $2 }'; cat /dev/shm/note", "64\nshared\n")?;
    expect(&client, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "80\n")?;
    let fetch = "until wget -qO- http://127.0.0.1:8080/; do sleep 0.1; done";
    expect(&client, fetch, "served\n")?;
    let mut outside = cri.inside(skep_tests::image::installed_busybox()?);
    outside.args(["wget", "-qO-", &format!("http://{ip}:9090/")]);
    let fetched = Running::spawn(outside, Input::Empty)?.wait(LIMIT)?;
    ensure!(fetched.out() == "served\n", "{}", fetched.describe());

    // Exec's outcome, a change of the volume, logs, figures.
    let failed = cri.exec(&server, "echo to-out; echo to-err >&2; exit 3")?;
    ensure!(
        failed.code() != 0 && failed.err().contains("exited with 3") && failed.err().contains("to-err"),
        "{}",
        failed.describe()
    );
    fs::write(volume.join("new"), "new\n")?;
    fs::rename(volume.join("new"), volume.join("key"))?;
    expect(&server, "cat /config/key", "new\n")?;
    wait_for("both lines of the log", LIMIT, || {
        let logs = cri.crictl(&format!("logs {server}"))?;
        let whole = logs.out() == "out\n" && logs.err().contains("err\n");
        ensure!(whole || "out\n".starts_with(&logs.out()), "{}", logs.describe());
        Ok(whole.then_some(()))
    })?;
    let figures: Value = serde_json::from_str(&cri.said(&format!("stats -o json {server}"))?)?;
    let memory = &figures["stats"][0]["memory"]["workingSetBytes"]["value"];
    ensure!(memory.as_str().and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n > 0), "{figures}");
    forwarded_port(&cri, &pod.id)?;

    // In the pod's PID namespace what a container's first process leaves does not keep the container.
    let shared = json!({ "linux": { "security_context": { "namespace_options": { "pid": 0 } } } });
    let leaver = pod.run(&cri, "leaver", "sleep 1000 & exit 5", &shared)?;
    wait_for("the end of a container that leaves a process", LIMIT, || {
        let status: Value = serde_json::from_str(&cri.said(&format!("inspect {leaver}"))?)?;
        ensure!(status["status"]["exitCode"].as_i64().is_some_and(|code| code == 0 || code == 5), "{status}");
        Ok((status["status"]["state"] == "CONTAINER_EXITED").then_some(()))
    })?;

    // containerd restarts, and everything goes on.
    cri.containerd.restart(Signal::SIGKILL)?;
    // It has come back with another network namespace, and there has not been its bridge yet.
    let mut bridge = cri.inside("ip");
    bridge.args(["link", "add", "pods0", "type", "bridge"]);
    run(bridge)?.succeeded()?;
    let again = cri.exec(&client, "cat /dev/shm/note")?;
    ensure!(said(&again) == "shared", "{}", again.describe());
    let state = pod.inspect(&cri)?["status"]["state"].clone();
    ensure!(state == "SANDBOX_READY", "{state}");

    // A container's end in good order, and the pod's.
    cri.said(&format!("stop --timeout 90 {server}"))?;
    let status: Value = serde_json::from_str(&cri.said(&format!("inspect {server}"))?)?;
    ensure!(status["status"]["exitCode"] == 7, "{}", status["status"]);
    cri.said(&format!("rm {server}"))?;
    pod.remove(&cri)?;
    // The network's own records stay.
    before.settle(&cri.containerd.scope())
}

fn said(output: &Output) -> String {
    output.out().trim_end().to_owned()
}

/// `crictl port-forward`: to a port of the pod's loopback, and to one where nobody listens.
fn forwarded_port(cri: &Cri, pod: &str) -> Result<()> {
    let forward = Running::spawn(cri.command(["port-forward", pod, "18080:8080", "18081:81"]), Input::Empty)?;
    let get = |port: u16| -> Result<String> {
        let mut command = cri.inside(skep_tests::image::installed_busybox()?);
        command.args(["wget", "-qO-", &format!("http://127.0.0.1:{port}/")]);
        Ok(Running::spawn(command, Input::Empty)?.wait(LIMIT)?.out())
    };
    let served =
        wait_for("the forwarded port", LIMIT, || Ok(Some(get(18080)?).filter(|text| !text.is_empty())));
    let refused = get(18081);
    forward.stop(Signal::SIGKILL)?;
    ensure!(served? == "served\n");
    ensure!(refused?.is_empty());
    Ok(())
}

/// The VM dies, the shim dies, a container is paused: the pod can be removed.
fn losses(lease: &mut Lease) -> Result<()> {
    let cri = Cri::start(lease.build()?)?;
    let before = cri.census()?;
    for handler in [Handler::Container, Handler::Sandbox] {
        for (name, program) in [("lost-vm", "qemu-system-x86_64"), ("lost-shim", "containerd-shim-skep-v2")] {
            let pod = cri.pod(handler, name, &json!({}))?;
            let containers =
                [pod.run(&cri, "a", FOREVER, &json!({}))?, pod.run(&cri, "b", FOREVER, &json!({}))?];
            kill_process(&cri, program, &pod.id)?;
            for container in &containers {
                exited(&cri, container)?;
            }
            wait_for("the pod's end to be known", LIMIT, || {
                Ok((pod.inspect(&cri)?["status"]["state"] == "SANDBOX_NOTREADY").then_some(()))
            })?;
            pod.remove(&cri)?;
            before.settle(&cri.containerd.scope())?;
            // Whoever made something for a container takes it back by such a hook.
            for container in &containers {
                let ends = cri.ends(container)?;
                ensure!(
                    ends == 1,
                    "{name}, {handler:?}: {ends} poststop hooks ran for container {container}"
                );
            }
        }

        let pod = cri.pod(handler, "paused", &json!({}))?;
        let container = pod.run(&cri, "c", FOREVER, &json!({}))?;
        let mut pause = cri.containerd.ctr_command_in(NAMESPACE, ["task", "pause"]);
        pause.arg(&container);
        Running::spawn(pause, Input::Empty)?.wait(LIMIT)?.succeeded()?;
        pod.remove(&cri)?;
        before.settle(&cri.containerd.scope())?;
    }
    Ok(())
}

fn exited(cri: &Cri, container: &str) -> Result<()> {
    wait_for("the container's end to be known", LIMIT, || {
        let status: Value = serde_json::from_str(&cri.said(&format!("inspect {container}"))?)?;
        Ok((status["status"]["state"] == "CONTAINER_EXITED").then_some(()))
    })
}

/// Kills a process of this containerd's by its program; there is one pod.
fn kill_process(cri: &Cri, program: &str, pod: &str) -> Result<()> {
    let found = skep_tests::census::processes(&cri.containerd.scope())?;
    let victim = found.iter().find(|process| process.arguments.first().is_some_and(|a| a.ends_with(program)));
    let victim = victim.with_context(|| format!("no {program} for pod {pod}"))?;
    kill(Pid::from_raw(victim.pid), Signal::SIGKILL)?;
    Ok(())
}

/// What a microVM can't share is refused in words that help.
fn refusals(lease: &mut Lease) -> Result<()> {
    let cri = Cri::start(lease.build()?)?;
    for handler in [Handler::Container, Handler::Sandbox] {
        for (field, word) in [("network", "hostNetwork"), ("pid", "hostPID"), ("ipc", "hostIPC")] {
            if (handler, field) == (Handler::Sandbox, "network") {
                // containerd 2.1 ends with a nil pointer before it asks the shim.
                continue;
            }
            let options = json!({ field: 2 });
            let config = json!({ "linux": { "security_context": { "namespace_options": options } } });
            match cri.pod(handler, &format!("host-{field}"), &config) {
                Ok(_) => anyhow::bail!("a pod with the host's {field} namespace was made"),
                Err(error) => ensure!(format!("{error:#}").contains(word), "{error:#}"),
            }
        }
    }
    Ok(())
}

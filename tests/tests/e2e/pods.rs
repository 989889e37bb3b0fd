//! Containers that share a sandbox, as Kubernetes makes them: by annotations and by the namespaces of the pod's own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use skep_tests::ctr::{Runtime, Subject};
use skep_tests::elf;
use skep_tests::events::Recorder;
use skep_tests::process::{LIMIT, wait_for};
use skep_tests::suite::Lease;

use crate::Case;
use crate::failures::vmm;

pub(crate) const CASES: &[Case] = &[
    Case::both("pod_shares_a_sandbox", pod_shares_a_sandbox).everywhere(),
    Case::both("pod_shares_processes", pod_shares_processes),
    Case::skep("pod_has_room_for_its_limits", pod_has_room_for_its_limits).on_freebsd(),
    Case::skep("pod_loses_its_agent", pod_loses_its_agent),
    Case::skep("pod_with_a_silent_agent", pod_with_a_silent_agent),
    Case::skep("pod_with_a_stopped_agent", pod_with_a_stopped_agent),
];

/// Runs until it is asked to end.
const PAUSE: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// The spec of a pod's own container.
fn sandbox(subject: &Subject<'_>, rootfs: &Path) -> Result<Value> {
    let mut spec = subject.spec("pod", rootfs, ["/bin/sh", "-c", PAUSE])?;
    spec["hostname"] = json!("pod-host");
    spec["annotations"] =
        json!({ "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "pod" });
    Ok(spec)
}

/// The spec of a container in it, with the pod's /dev/shm.
fn member(
    subject: &Subject<'_>,
    id: &str,
    rootfs: &Path,
    pod: u32,
    shm: &Path,
    script: &str,
) -> Result<Value> {
    let mut spec = subject.spec(id, rootfs, ["/bin/sh", "-c", script])?;
    spec["annotations"] =
        json!({ "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod" });
    for namespace in spec["linux"]["namespaces"].as_array_mut().context("namespaces")? {
        let kind = namespace["type"].as_str().unwrap_or_default().to_owned();
        let file = if kind == "network" { "net" } else { &kind };
        if ["network", "ipc", "uts"].contains(&kind.as_str()) {
            namespace["path"] = json!(format!("/proc/{pod}/ns/{file}"));
        }
    }
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("hostname");
    }
    let mounts = spec["mounts"].as_array_mut().context("mounts")?;
    mounts.retain(|mount| mount["destination"] != "/dev/shm");
    mounts.push(
        json!({ "destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rbind", "rw"] }),
    );
    Ok(spec)
}

fn pod_shares_a_sandbox(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let root = |name: &str| lease.rootfs(name);
    let (shm, volume) = (lease.scratch("shm")?, lease.scratch("volume")?);
    subject.run("pod").spec(&sandbox(&subject, &root("pod")?)?)?.flags(["--null-io"]).detached()?;
    let pod = subject.wait_status("pod", "RUNNING")?.pid;

    let script = "ip link set lo up; echo by a >/dev/shm/note; httpd -f -p 127.0.0.1:8080 -h /www & \
        trap 'exit 7' TERM; while :; do sleep 0.1; done";
    let rootfs = root("a")?;
    fs::create_dir(rootfs.join("www"))?;
    fs::write(rootfs.join("www/index.html"), "served by a\n")?;
    let spec = member(&subject, "a", &rootfs, pod, &shm, script)?;
    subject.run("a").spec(&spec)?.flags(["--null-io"]).detached()?;

    // Added later, with a volume that was not there when the sandbox was made.
    fs::write(volume.join("file"), "volume of b\n")?;
    let script = "cat /dev/shm/note /volume/file; hostname; \
        until wget -qO- http://127.0.0.1:8080/; do sleep 0.1; done; exit 5";
    let mut spec = member(&subject, "b", &root("b")?, pod, &shm, script)?;
    let mount =
        json!({ "destination": "/volume", "type": "bind", "source": volume, "options": ["rbind", "ro"] });
    spec["mounts"].as_array_mut().context("mounts")?.push(mount);
    let output = subject.run("b").spec(&spec)?.output()?;
    ensure!(
        output.code() == 5 && output.out() == "by a\nvolume of b\npod-host\nserved by a\n",
        "{}",
        output.describe()
    );
    if lease.runtime == Runtime::Skep {
        let all = fs::read_dir(lease.containerd.skep_state().join("sb"))?;
        let sandboxes = all.flatten().filter(|entry| entry.path().join("sandbox.json").exists()).count();
        ensure!(sandboxes == 1, "{sandboxes} sandboxes for one pod");
        // Each has a process of its own on this host.
        ensure!(subject.wait_status("a", "RUNNING")?.pid != pod);
        let refused = subject.exec("pod", "e").args(["true"]).output()?;
        ensure!(refused.code() != 0 && refused.err().contains("sandbox's own"), "{}", refused.describe());
    }

    // The others go on without one, and the pod's own ends as a pause program does.
    subject.kill("a", "SIGTERM")?.succeeded()?;
    subject.wait_status("a", "STOPPED")?;
    ensure!(subject.delete_task("a")? == 7);
    subject.wait_status("pod", "RUNNING")?;
    subject.kill("pod", "SIGTERM")?.succeeded()?;
    subject.wait_status("pod", "STOPPED")?;
    ensure!(subject.delete_task("pod")? == 0);
    for id in ["a", "pod"] {
        subject.ctr(["container", "delete", id])?.succeeded()?;
    }
    Ok(())
}

fn pod_has_room_for_its_limits(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let mut spec = subject.spec("sized", &lease.rootfs("root")?, ["/bin/sh", "-c", "nproc; free -m"])?;
    for (name, value) in [("cpu-quota", "150000"), ("cpu-period", "100000"), ("memory", "134217728")] {
        spec["annotations"][format!("io.kubernetes.cri.sandbox-{name}")] = value.into();
    }
    let output = subject.run("sized").spec(&spec)?.output()?;
    let text = output.text()?;
    let mut lines = text.lines();
    ensure!(lines.next() == Some("2"), "{text}");
    let total: u32 = text
        .lines()
        .find_map(|line| line.strip_prefix("Mem:")?.split_whitespace().next()?.parse().ok())
        .context("no memory")?;
    // 128 MiB beside the 256 of the default, less what the kernel keeps for itself.
    ensure!((300..=384).contains(&total), "{text}");
    Ok(())
}

/// Has a container see the pod's processes.
fn share_processes(spec: &mut Value, pod: u32) -> Result<()> {
    for namespace in spec["linux"]["namespaces"].as_array_mut().context("namespaces")? {
        if namespace["type"] == "pid" {
            namespace["path"] = json!(format!("/proc/{pod}/ns/pid"));
        }
    }
    Ok(())
}

/// Containers in the pod's PID namespace see each other's processes, and nothing of what they run on.
fn pod_shares_processes(lease: &mut Lease) -> Result<()> {
    let subject = lease.subject();
    let shm = lease.scratch("shm")?;
    subject.run("pod").spec(&sandbox(&subject, &lease.rootfs("pod")?)?)?.flags(["--null-io"]).detached()?;
    let pod = subject.wait_status("pod", "RUNNING")?.pid;
    for id in ["one", "two"] {
        let rootfs = lease.rootfs(id)?;
        fs::write(rootfs.join("etc").join(id), "")?;
        let mut spec = member(&subject, id, &rootfs, pod, &shm, "exec sleep 1000")?;
        share_processes(&mut spec, pod)?;
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE", "CAP_KILL"]);
        }
        subject.run(id).spec(&spec)?.flags(["--null-io"]).detached()?;
    }
    let say = |id: &str, script: &str| -> Result<String> {
        Ok(subject.exec(id, "say").sh(script).output()?.text()?.trim_end().to_owned())
    };
    // The pod's own, the two that wait, and who asks. runc's pod has a shell that sleeps.
    let names = say("two", "cat /proc/[0-9]*/comm")?;
    let others = names.lines().filter(|name| !["sleep", "sh", "cat", "pause"].contains(name)).count();
    ensure!(others == 0 && names.lines().filter(|name| *name == "sleep").count() >= 2, "{names}");
    if lease.runtime == Runtime::Skep {
        let script = "cat /proc/1/comm; ls -A /proc/1/root | wc -l; sed -n 's/^CapPrm:.//p' /proc/1/status";
        let first = say("two", script)?;
        ensure!(first == "pause\n0\n0000000000000000", "{first}");
    }
    // One may end the other's, and the pod's own reaps what is nobody's any more.
    say("two", "(sleep 0.1 &); exec true")?;
    wait_for("orphans to be reaped", LIMIT, || {
        Ok((say("one", "grep -l '^State:.Z' /proc/[0-9]*/status; true")?.is_empty()).then_some(()))
    })?;
    let recorder = Recorder::start(&lease.containerd)?;
    say(
        "two",
        "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline) in 'sleep 1000 ') \
        test -e $p/root/etc/one && kill -9 ${p#/proc/};; esac; done; true",
    )?;
    let exit = recorder.wait("one", "exit")?;
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    ensure!(subject.task("two")?.is_some_and(|task| task.status == "RUNNING"));
    for id in ["one", "two", "pod"] {
        subject.remove(id)?;
    }
    Ok(())
}

/// Cuts the guest's agent off from its host, by a container with the right to do so.
const CUT: &str =
    "cd /sys/bus/virtio/drivers/virtio_console; for device in virtio*; do echo $device >unbind; done";

/// Stops the guest's first process, which is the agent, by ptrace(2): a signal stops no first process. What else the guest
/// has goes on, its kernel and the port's driver among it. Ends with 1 if it cannot.
const HOLD: [u8; 75] = [
    0xb8, 0x65, 0, 0, 0, // mov eax, 101 (ptrace)
    0xbf, 0x06, 0x42, 0, 0, // mov edi, PTRACE_SEIZE
    0xbe, 1, 0, 0, 0, // mov esi, 1
    0x31, 0xd2, 0x45, 0x31, 0xd2, 0x0f, 0x05, // xor edx, edx; xor r10d, r10d; syscall
    0x48, 0x85, 0xc0, 0x78, 0x24, // test rax, rax; js end
    0xb8, 0x65, 0, 0, 0, //
    0xbf, 0x07, 0x42, 0, 0, // mov edi, PTRACE_INTERRUPT
    0xbe, 1, 0, 0, 0, //
    0x31, 0xd2, 0x45, 0x31, 0xd2, 0x0f, 0x05, //
    0x48, 0x85, 0xc0, 0x78, 0x09, //
    0xb8, 0x22, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7, // again: mov eax, 34 (pause); syscall; jmp again
    0xb8, 0x3c, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0x0f, 0x05, // end: mov eax, 60 (exit); mov edi, 1; syscall
];

/// Has the guest's kernel run a program for a process that crashes: beside the agent, and not in the container.
const ESCAPE: &str = "root=/run/skep/share$(awk '$5 == \"/\" { print $4 }' /proc/self/mountinfo); \
    echo \"|$root/bin/busybox sh $root/bin/stop\" >/proc/sys/kernel/core_pattern; \
    sh -c 'kill -SEGV $$'; sleep 1000";

/// What it runs.
const STOP: &str = "root=${0%/bin/stop}; $root/bin/hold & \
    until $root/bin/busybox grep -q '^State:.t' /proc/1/status; do :; done; echo >$root/held; wait";

/// A pod of three: its own container, one that waits, and one that may do to the guest what it likes.
fn pod_of_three(lease: &Lease) -> Result<()> {
    let subject = lease.subject();
    let shm = lease.scratch("shm")?;
    subject.run("pod").spec(&sandbox(&subject, &lease.rootfs("pod")?)?)?.flags(["--null-io"]).detached()?;
    let pod = subject.wait_status("pod", "RUNNING")?.pid;
    for id in ["idle", "mighty"] {
        let rootfs = lease.rootfs(id)?;
        let mut spec = member(&subject, id, &rootfs, pod, &shm, "sleep 1000")?;
        if id == "mighty" {
            let hold = rootfs.join("bin/hold");
            fs::write(&hold, elf::executable(elf::Machine::X86_64, &HOLD))?;
            fs::set_permissions(&hold, fs::Permissions::from_mode(0o755))?;
            let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE"]);
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set] = all.clone();
            }
            spec["linux"]["readonlyPaths"] = json!([]);
            for mount in spec["mounts"].as_array_mut().context("mounts")? {
                if mount["destination"] == "/sys" {
                    mount["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
                }
            }
        }
        subject.run(id).spec(&spec)?.flags(["--null-io"]).detached()?;
    }
    Ok(())
}

/// Every container of the pod is told to have been killed, and goes.
fn all_are_over(lease: &Lease, recorder: &Recorder) -> Result<()> {
    let subject = lease.subject();
    for id in ["mighty", "idle", "pod"] {
        let exit = recorder.wait(id, "exit")?;
        ensure!(exit.number("exit_status") == 137, "{id}: {exit:?}");
        subject.wait_status(id, "STOPPED")?;
    }
    for id in ["mighty", "idle", "pod"] {
        ensure!(subject.delete_task(id)? == 137, "{id}");
        subject.remove(id)?;
    }
    Ok(())
}

/// An agent that has lost its host ends the guest.
fn pod_loses_its_agent(lease: &mut Lease) -> Result<()> {
    let recorder = Recorder::start(&lease.containerd)?;
    pod_of_three(lease)?;
    let exec = lease.subject().exec("mighty", "cut").sh(CUT).output()?;
    ensure!(exec.code() == 137, "the agent goes on: {}", exec.describe());
    all_are_over(lease, &recorder)
}

/// One that does not answer may come back, until somebody kills what it looks after: then its guest ends.
fn pod_with_a_silent_agent(lease: &mut Lease) -> Result<()> {
    lease.configure(|configuration| configuration.call = Some(10))?;
    let recorder = Recorder::start(&lease.containerd)?;
    pod_of_three(lease)?;
    kill(vmm(lease)?, Signal::SIGSTOP).context("stopping the VMM")?;
    let subject = lease.subject();
    let late = subject.exec("idle", "late").args(["true"]).output()?;
    ensure!(late.code() != 0 && late.err().contains("deadline exceeded"), "{}", late.describe());
    ensure!(subject.task("mighty")?.is_some_and(|task| task.status == "RUNNING"));
    subject.kill("idle", "SIGKILL")?.succeeded()?;
    all_are_over(lease, &recorder)
}

/// As hung as it can be: nothing of it runs while its guest does.
fn pod_with_a_stopped_agent(lease: &mut Lease) -> Result<()> {
    lease.configure(|configuration| configuration.call = Some(10))?;
    let recorder = Recorder::start(&lease.containerd)?;
    pod_of_three(lease)?;
    let subject = lease.subject();
    let mighty = lease.containerd.directory().join("scratch/mighty");
    let (held, script) = (mighty.join("held"), mighty.join("bin/stop"));
    fs::write(&script, STOP)?;
    let holding = subject.exec("mighty", "hold").sh(ESCAPE).start()?;
    let stopped = wait_for("the agent to be stopped", LIMIT, || {
        // Nobody would hear of its end.
        ensure!(!holding.has_ended(), "the agent goes on");
        Ok(held.exists().then_some(()))
    });
    if let Err(error) = stopped {
        return Err(error.context(holding.stop(Signal::SIGKILL)?.describe()));
    }
    let late = subject.exec("idle", "late").args(["true"]).output()?;
    ensure!(late.code() != 0 && late.err().contains("deadline exceeded"), "{}", late.describe());
    ensure!(subject.task("idle")?.is_some_and(|task| task.status == "RUNNING"));
    subject.kill("idle", "SIGKILL")?.succeeded()?;
    all_are_over(lease, &recorder)?;
    let output = holding.wait(LIMIT)?;
    ensure!(output.code() == 137, "{}", output.describe());
    Ok(())
}

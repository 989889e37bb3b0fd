//! What a user would notice, one boot each.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use skep_protocol::Code;
use skep_protocol::api::{
    ContainerRequest, Empty, ExecProcessRequest, ResizeTerminalRequest, SignalProcessRequest, Stdio,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::vm::{Outcome, Vm, process, start};

type Case = for<'a> fn(&'a Vm) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

pub(crate) const ALL: &[(&str, Case)] = &[
    ("hello", |vm| Box::pin(hello(vm))),
    ("spec", |vm| Box::pin(whole_spec(vm))),
    ("faults", |vm| Box::pin(faults(vm))),
    ("exec", |vm| Box::pin(exec(vm))),
    ("stdio", |vm| Box::pin(stdio(vm))),
    ("terminal", |vm| Box::pin(terminal(vm))),
    ("signals", |vm| Box::pin(signals(vm))),
    ("overlay", |vm| Box::pin(overlay(vm))),
    ("pod", |vm| Box::pin(pod(vm))),
    ("seccomp", |vm| Box::pin(seccomp(vm))),
    ("devices", |vm| Box::pin(devices(vm))),
    ("many", |vm| Box::pin(many(vm))),
    ("clean", |vm| Box::pin(clean(vm))),
    ("hostile", |vm| Box::pin(hostile(vm))),
    ("reconnect", |vm| Box::pin(reconnect(vm))),
    ("userns", |vm| Box::pin(userns(vm))),
];

/// What the kernel is told, and what a guest that then ends itself says before.
pub(crate) const FATAL: &[(&str, &str)] = &[
    ("skep.nonsense=1", "skep-agent: fatal: kernel command line: unknown parameter \"skep.nonsense\""),
    ("rdinit=/nothing", "Kernel panic"),
];

const CAPS: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A spec such as containerd writes.
pub(crate) fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": CAPS, "effective": CAPS, "permitted": CAPS},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "cgroupsPath": "/default/x",
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                           {"type": "network"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                            "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

fn sh(script: &str) -> Value {
    spec(&["/bin/sh", "-c", script])
}

fn expect(outcome: &Outcome, status: u32, stdout: &str) -> anyhow::Result<()> {
    ensure!(
        outcome.status == status && outcome.stdout == stdout,
        "not status {status} and {stdout:?} but {outcome:?}"
    );
    Ok(())
}

/// What `timed` gives.
pub(crate) const PHASES: [&str; 15] = [
    "agent start, guest's clock",
    "agent ready, guest's clock",
    "session, ms",
    "session, cpu ms",
    "sandbox, ms",
    "sandbox, cpu ms",
    "create, ms",
    "create, cpu ms",
    "start, ms",
    "start, cpu ms",
    "first output, ms",
    "first output, cpu ms",
    "wait and delete, ms",
    "wait and delete, cpu ms",
    "agent resident, KiB",
];

/// The phases of one container's life, each from the end of the one before.
pub(crate) async fn timed(vm: &Vm) -> anyhow::Result<Vec<f64>> {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let mut last = vm.times();
    let mut laps = vec![ms(last.0), ms(last.1)];
    let mut lap = || {
        let now = vm.times();
        laps.extend([ms(now.0.saturating_sub(last.0)), ms(now.1.saturating_sub(last.1))]);
        last = now;
    };
    let sandbox = vm.sandbox().await?;
    lap();
    let token = vm.session.draw_token();
    let mut stdout = vm.session.open_stdio(token).await?;
    vm.create("t", &spec(&["/bin/echo", "hello"]), Stdio { stdout: token, ..Stdio::new() }, false).await?;
    lap();
    vm.agent().start_process(&start("t", "")).await?;
    lap();
    let mut text = [0; 5];
    stdout.read_exact(&mut text).await?;
    lap();
    vm.agent().wait_process(&process("t", "")).await?;
    vm.agent().delete_process(&process("t", "")).await?;
    lap();
    let mut spec = sh("/bin/grep VmRSS /agent/1/status | /bin/tr -dc 0-9");
    let mounts = spec["mounts"].as_array_mut().context("mounts")?;
    mounts.push(
        json!({"destination": "/agent", "type": "bind", "source": "/proc", "options": ["rbind", "ro"]}),
    );
    let resident = vm.run("rss", &spec, false).await?.stdout.parse()?;
    #[allow(clippy::cast_precision_loss)]
    let mut row = vec![sandbox.agent_started_ns as f64 / 1e6, sandbox.agent_ready_ns as f64 / 1e6];
    row.extend(laps);
    row.push(resident);
    Ok(row)
}

async fn hello(vm: &Vm) -> anyhow::Result<()> {
    let sandbox = vm.sandbox().await?;
    ensure!(sandbox.agent_version == env!("CARGO_PKG_VERSION"));
    expect(&vm.run("a", &spec(&["echo", "hello"]), false).await?, 0, "hello\n")?;
    let outcome = vm.run("a", &sh("echo out; echo err >&2; exit 7"), false).await?;
    expect(&outcome, 7, "out\n")?;
    ensure!(outcome.stderr == "err\n", "{outcome:?}");
    // Writes reach the host.
    expect(&vm.run("w", &sh("echo written > /tmp/file"), false).await?, 0, "")?;
    ensure!(std::fs::read_to_string(vm.share("root/tmp/file"))? == "written\n");
    Ok(())
}

async fn whole_spec(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let mut web = sh(
        "echo $(ls /proc/self/fd); id -u; id -g; id -G; echo $HOME; pwd; echo again > /dev/stdout; \
         grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; cat /proc/self/oom_score_adj; ulimit -n; umask",
    );
    web["process"]["user"] = json!({"uid": 33, "gid": 34, "additionalGids": [35, 36], "umask": 0o27});
    web["process"]["cwd"] = json!("/made/up");
    web["process"]["oomScoreAdj"] = json!(123);
    let outcome = vm.run("web", &web, false).await?;
    expect(
        &outcome,
        0,
        "0 1 2 3\n33\n34\n34 35 36\n/var/www\n/made/up\nagain\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n\
         NoNewPrivs:\t1\n123\n1024\n0027\n",
    )?;
    let script = "grep -E 'CapEff|NoNewPrivs' /proc/self/status; cat /proc/self/oom_score_adj";
    expect(&vm.run("root", &sh(script), false).await?, 0, "CapEff:\t00000000a80425fb\nNoNewPrivs:\t1\n0\n")?;

    let mut ambient = sh("grep -E 'CapEff|CapAmb' /proc/self/status");
    ambient["process"]["user"] = json!({"uid": 33, "gid": 33});
    for set in ["inheritable", "ambient"] {
        ambient["process"]["capabilities"][set] = json!(["CAP_NET_RAW"]);
    }
    let outcome = vm.run("ambient", &ambient, false).await?;
    expect(&outcome, 0, "CapEff:\t0000000000002000\nCapAmb:\t0000000000002000\n")?;

    let mut limits = sh("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max; \
         cat /proc/self/cgroup");
    limits["linux"]["resources"]["memory"] = json!({"limit": 33_554_432});
    limits["linux"]["resources"]["pids"] = json!({"limit": 50});
    limits["linux"]["resources"]["cpu"] = json!({"quota": 50000, "period": 100_000});
    let mounts = limits["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                       "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}));
    expect(&vm.run("limits", &limits, false).await?, 0, "33554432\n50\n50000 100000\n0::/\n")?;

    let mut masked = sh("head -c 1 /proc/keys | wc -c; ls /sys/firmware | wc -l; \
         echo 1 2>/dev/null > /proc/sys/vm/swappiness || echo ro; cat /proc/sys/net/ipv4/ip_forward");
    masked["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    expect(&vm.run("masked", &masked, false).await?, 0, "0\n0\nro\n1\n")?;

    let mut readonly = sh("touch /tmp/x 2>/dev/null || echo ro; echo x > /dev/null && echo null; pwd");
    readonly["root"]["readonly"] = json!(true);
    readonly["process"]["cwd"] = json!("/not/yet/there");
    expect(&vm.run("readonly", &readonly, false).await?, 0, "ro\nnull\n/not/yet/there\n")?;
    // The OOM killer takes the container's process, not the agent.
    let mut hog = sh("dd if=/dev/zero of=/dev/null bs=64M count=1");
    hog["linux"]["resources"]["memory"] = json!({"limit": 16_777_216});
    let outcome = vm.run("hog", &hog, false).await?;
    ensure!(outcome.status == 137, "{outcome:?}");
    Ok(())
}

async fn faults(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let fault = async |spec: Value| -> anyhow::Result<String> {
        let error = vm.run("f", &spec, false).await.err().context("no error")?;
        let call = error.downcast::<skep_protocol::CallError>()?;
        ensure!(call.code == Code::INVALID_ARGUMENT, "{call:?}");
        Ok(call.message)
    };
    let is = |text: String, wanted: &str| {
        ensure!(text.contains(wanted), "{text:?} does not say {wanted:?}");
        Ok(())
    };
    is(fault(spec(&["nope"])).await?, "exec \"nope\": not found in the image's $PATH")?;
    is(fault(spec(&["/bin/nope"])).await?, "exec \"/bin/nope\": no such file in the image")?;
    is(fault(spec(&["/etc"])).await?, "is a directory")?;
    is(fault(spec(&["/etc/plain"])).await?, "permission denied")?;
    is(fault(spec(&["/bin/foreign"])).await?, "built for aarch64, this guest runs x86_64")?;
    is(fault(spec(&["lost-script"])).await?, "its interpreter \"/no/such/sh\" is not in the image")?;
    is(fault(spec(&[])).await?, "process.args")?;
    let mut wrong = sh("true");
    wrong["process"]["cwd"] = json!("/etc/plain");
    is(fault(wrong).await?, "process.cwd /etc/plain: ")?;
    let mut wrong = sh("true");
    wrong["mounts"]
        .as_array_mut()
        .context("mounts")?
        .push(json!({"destination": "/data", "type": "bind", "source": "/no/such", "options": ["rbind"]}));
    let error = vm.run("f", &wrong, false).await.err().context("no error")?;
    println!("        a missing bind source: {error:#}");
    // Nothing of all this is left, and the id is free.
    expect(&vm.run("f", &spec(&["echo", "fine"]), false).await?, 0, "fine\n")?;
    let error = vm.agent().start_process(&start("nobody", "")).await.err().context("no error")?;
    ensure!(error.code == Code::NOT_FOUND, "{error:?}");
    Ok(())
}

async fn exec_run(vm: &Vm, container: &str, id: &str, process_spec: &Value) -> anyhow::Result<Outcome> {
    let (out, err) = (vm.session.draw_token(), vm.session.draw_token());
    let mut stdout = vm.session.open_stdio(out).await?;
    let mut stderr = vm.session.open_stdio(err).await?;
    let mut request = ExecProcessRequest::new();
    request.container_id = container.into();
    request.exec_id = id.into();
    request.process = serde_json::to_vec(process_spec)?;
    request.stdio = Some(Stdio { stdout: out, stderr: err, ..Stdio::new() }).into();
    vm.agent().exec_process(&request).await?;
    let which = process(container, id);
    if let Err(error) = vm.agent().start_process(&start(container, id)).await {
        vm.agent().delete_process(&which).await.context("delete after a failed start")?;
        return Err(error.into());
    }
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).await?;
    stderr.read_to_string(&mut err).await?;
    let exit = vm.agent().wait_process(&which).await?;
    vm.agent().delete_process(&which).await?;
    Ok(Outcome { status: exit.exit_status, stdout: out, stderr: err })
}

async fn exec(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let mut base = sh("sleep 1000");
    base["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
    vm.create("c", &base, Stdio::new(), false).await?;
    vm.agent().start_process(&start("c", "")).await?;
    let user = |script: &str| {
        let mut process = sh(script)["process"].take();
        process["user"] = json!({"uid": 33, "gid": 33});
        process
    };
    let script = "id -u; busybox cut -d' ' -f1 /proc/1/stat; busybox mkdir /tmp/x 2>&1; \
                  grep -E '^Seccomp:' /proc/self/status; exit 3";
    let outcome = exec_run(vm, "c", "e1", &user(script)).await?;
    ensure!(outcome.status == 3, "{outcome:?}");
    ensure!(outcome.stdout.starts_with("33\n1\n"), "{outcome:?}");
    ensure!(
        outcome.stdout.contains("not supported") && outcome.stdout.ends_with("Seccomp:\t2\n"),
        "{outcome:?}"
    );
    let error = exec_run(vm, "c", "e2", &sh("")["process"].clone()).await?;
    ensure!(error.status == 0, "{error:?}");
    let mut bad = user("");
    bad["args"] = json!(["nope"]);
    let error = exec_run(vm, "c", "e3", &bad).await.err().context("no error")?;
    ensure!(format!("{error:#}").contains("exec \"nope\": not found"), "{error:#}");
    bad["args"] = json!(["lost-script"]);
    let error = exec_run(vm, "c", "e4", &bad).await.err().context("no error")?;
    ensure!(format!("{error:#}").contains("interpreter"), "{error:#}");
    let group = ContainerRequest { container_id: "c".into(), ..ContainerRequest::new() };
    ensure!(!vm.agent().list_processes(&group).await?.pids.is_empty());
    vm.agent()
        .signal_process(&SignalProcessRequest { container_id: "c".into(), signal: 9, ..Default::default() })
        .await?;
    let exit = vm.agent().wait_process(&process("c", "")).await?;
    ensure!(exit.exit_status == 137);
    let error = exec_run(vm, "c", "e5", &user("")).await.err().context("no error")?;
    ensure!(format!("{error:#}").contains("has exited"), "{error:#}");
    vm.agent().delete_process(&process("c", "")).await?;
    // A container that manages groups of its own, as systemd does, still takes processes.
    let token = vm.session.draw_token();
    let mut stdout = vm.session.open_stdio(token).await?;
    let mut nested = sh("cd /sys/fs/cgroup && busybox mkdir init && echo $$ > init/cgroup.procs && \
         echo +pids > cgroup.subtree_control && echo moved; sleep 1000");
    let mounts = nested["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                       "options": ["nosuid", "noexec", "nodev", "relatime", "rw"]}));
    vm.create("n", &nested, Stdio { stdout: token, ..Stdio::new() }, false).await?;
    vm.agent().start_process(&start("n", "")).await?;
    let mut moved = [0; 6];
    stdout.read_exact(&mut moved).await?;
    let outcome = exec_run(vm, "n", "e", &sh("cat /proc/self/cgroup")["process"]).await?;
    expect(&outcome, 0, "0::/init\n")?;
    vm.agent()
        .signal_process(&SignalProcessRequest {
            container_id: "n".into(),
            signal: 9,
            all: true,
            ..Default::default()
        })
        .await?;
    vm.agent().wait_process(&process("n", "")).await?;
    vm.agent().delete_process(&process("n", "")).await?;
    Ok(())
}

async fn stdio(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let session = &vm.session;
    let (tin, tout) = (session.draw_token(), session.draw_token());
    let (mut stdin, mut stdout) = (session.open_stdio(tin).await?, session.open_stdio(tout).await?);
    vm.create("c", &spec(&["cat"]), Stdio { stdin: tin, stdout: tout, ..Stdio::new() }, false).await?;
    vm.agent().start_process(&start("c", "")).await?;
    let sent: Vec<u8> = (0..8_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let from = Instant::now();
    let feed = async {
        stdin.write_all(&sent).await?;
        stdin.shutdown().await
    };
    let mut got = Vec::new();
    let (sending, receiving) = tokio::join!(feed, stdout.read_to_end(&mut got));
    sending?;
    receiving?;
    ensure!(got == sent, "{} bytes came back of {}", got.len(), sent.len());
    println!("        8 MB through cat: {:.2} s", from.elapsed().as_secs_f64());
    ensure!(vm.agent().wait_process(&process("c", "")).await?.exit_status == 0);
    vm.agent().delete_process(&process("c", "")).await?;
    // Backpressure: a process whose output nobody reads stops, and goes on when somebody does.
    let token = session.draw_token();
    let mut stdout = session.open_stdio(token).await?;
    vm.create("d", &sh("seq 1 300000"), Stdio { stdout: token, ..Stdio::new() }, false).await?;
    vm.agent().start_process(&start("d", "")).await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let waiting = tokio::time::timeout(Duration::from_millis(10), async {
        vm.agent().wait_process(&process("d", "")).await
    });
    ensure!(waiting.await.is_err(), "it wrote everything to nobody");
    // Another container is not held up by it.
    expect(&vm.run("e", &spec(&["echo", "meanwhile"]), false).await?, 0, "meanwhile\n")?;
    let mut text = String::new();
    stdout.read_to_string(&mut text).await?;
    ensure!(text.lines().count() == 300_000 && text.ends_with("\n300000\n"));
    vm.agent().wait_process(&process("d", "")).await?;
    vm.agent().delete_process(&process("d", "")).await?;
    Ok(())
}

async fn terminal(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let session = &vm.session;
    let (tin, tout) = (session.draw_token(), session.draw_token());
    let (mut stdin, mut stdout) = (session.open_stdio(tin).await?, session.open_stdio(tout).await?);
    let mut tty =
        sh("stty size; read line; stty size; echo got $line; test -t 2 && echo tty; echo x > /dev/console");
    tty["process"]["terminal"] = json!(true);
    tty["process"]["consoleSize"] = json!({"height": 24, "width": 80});
    tty["process"]["user"] = json!({"uid": 33, "gid": 33});
    vm.create("c", &tty, Stdio { stdin: tin, stdout: tout, ..Stdio::new() }, false).await?;
    vm.agent().start_process(&start("c", "")).await?;
    let mut head = [0; 7];
    stdout.read_exact(&mut head).await?;
    ensure!(&head == b"24 80\r\n", "{:?}", String::from_utf8_lossy(&head));
    let mut resize = ResizeTerminalRequest::new();
    resize.container_id = "c".into();
    (resize.rows, resize.columns) = (50, 132);
    vm.agent().resize_terminal(&resize).await?;
    stdin.write_all(b"words\n").await?;
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await?;
    ensure!(rest.contains("50 132\r\ngot words\r\ntty\r\n"), "{rest:?}");
    ensure!(vm.agent().wait_process(&process("c", "")).await?.exit_status == 0, "{rest:?}");
    vm.agent().delete_process(&process("c", "")).await?;
    Ok(())
}

async fn signals(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let which = process("c", "");
    let group = || ContainerRequest { container_id: "c".into(), ..ContainerRequest::new() };
    let signal =
        |signal, all| SignalProcessRequest { container_id: "c".into(), signal, all, ..Default::default() };
    let token = vm.session.draw_token();
    let mut stdout = vm.session.open_stdio(token).await?;
    let script = "trap 'echo term; exit 5' TERM; echo ready; while true; do sleep 0.01; done";
    vm.create("c", &sh(script), Stdio { stdout: token, ..Stdio::new() }, false).await?;
    let error = vm.agent().pause_container(&group()).await.err().context("paused what is not started")?;
    ensure!(error.code == Code::FAILED_PRECONDITION);
    vm.agent().start_process(&start("c", "")).await?;
    let error = vm.agent().start_process(&start("c", "")).await.err().context("started twice")?;
    ensure!(error.code == Code::FAILED_PRECONDITION);
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).await?;
    vm.agent().pause_container(&group()).await?;
    vm.agent().signal_process(&signal(15, false)).await?;
    let waited = tokio::time::timeout(Duration::from_millis(300), vm.agent().wait_process(&which)).await;
    ensure!(waited.is_err(), "a frozen process ended");
    let error = vm.agent().delete_process(&which).await.err().context("deleted while running")?;
    ensure!(error.code == Code::FAILED_PRECONDITION);
    vm.agent().resume_container(&group()).await?;
    let exit = vm.agent().wait_process(&which).await?;
    ensure!(exit.exit_status == 5 && exit.exited_at_ns > 1_700_000_000_000_000_000, "{exit:?}");
    let error = vm.agent().signal_process(&signal(15, false)).await.err().context("signalled the dead")?;
    ensure!(error.code == Code::NOT_FOUND);
    vm.agent().delete_process(&which).await?;
    // A paused container can be killed and deleted; one never started can be deleted.
    vm.create("c", &sh("sleep 1000 & sleep 1000"), Stdio::new(), false).await?;
    vm.agent().start_process(&start("c", "")).await?;
    vm.agent().pause_container(&group()).await?;
    vm.agent().signal_process(&signal(9, true)).await?;
    ensure!(vm.agent().wait_process(&which).await?.exit_status == 137);
    vm.agent().delete_process(&which).await?;
    vm.create("c", &sh("true"), Stdio::new(), false).await?;
    vm.agent().delete_process(&which).await?;
    // Without a pid namespace, the end of init is not the end of the others; delete is.
    let mut shared = sh("sleep 1000 & echo started");
    shared["linux"]["namespaces"] = json!([{"type": "mount"}]);
    vm.create("c", &shared, Stdio::new(), false).await?;
    vm.agent().start_process(&start("c", "")).await?;
    vm.agent().wait_process(&which).await?;
    vm.agent().delete_process(&which).await?;
    let mut left = sh("ps | grep -c 'sleep 100[0]'");
    left["linux"]["namespaces"] = json!([{"type": "mount"}]);
    expect(&vm.run("left", &left, false).await?, 1, "0\n")
}

async fn overlay(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let outcome = vm.run("o", &sh("echo mine > /tmp/overlaid && cat /tmp/overlaid /etc/plain"), true).await?;
    expect(&outcome, 0, "mine\nplain\n")?;
    ensure!(!vm.share("root/tmp/overlaid").exists(), "an overlay wrote through to the host");
    expect(&vm.run("o", &sh("test -e /tmp/overlaid || echo gone"), true).await?, 0, "gone\n")
}

async fn pod(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    expect(&vm.run("h", &sh("hostname; cat /sys/class/net/lo/flags"), false).await?, 0, "bench-host\n0x9\n")?;
    // Two containers talk over the network that they share.
    vm.create("s", &sh("echo served | busybox nc -l -p 80 -w 5"), Stdio::new(), false).await?;
    vm.agent().start_process(&start("s", "")).await?;
    let ask = "for i in 1 2 3 4 5 6 7 8 9; do busybox nc 127.0.0.1 80 </dev/null && break; sleep 0.1; done";
    expect(&vm.run("c", &sh(ask), false).await?, 0, "served\n")?;
    vm.agent().wait_process(&process("s", "")).await?;
    vm.agent().delete_process(&process("s", "")).await?;
    Ok(())
}

async fn seccomp(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
    for (nnp, uid) in [(true, 0), (true, 33), (false, 0), (false, 33)] {
        let mut spec =
            sh("busybox mkdir /tmp/sub 2>&1; grep -E '^(NoNewPrivs|Seccomp|CapPrm):' /proc/self/status");
        spec["linux"]["seccomp"] = profile.clone();
        spec["process"]["noNewPrivileges"] = json!(nnp);
        spec["process"]["user"] = json!({"uid": uid, "gid": uid});
        let caps = if uid == 0 { "00000000a80425fb" } else { "0000000000000000" };
        let outcome = vm.run("s", &spec, false).await.with_context(|| format!("nnp {nnp}, uid {uid}"))?;
        let wanted = format!(
            "mkdir: can't create directory '/tmp/sub': Operation not supported\nCapPrm:\t{caps}\nNoNewPrivs:\t{}\nSeccomp:\t2\n",
            u8::from(nnp)
        );
        expect(&outcome, 0, &wanted).with_context(|| format!("nnp {nnp}, uid {uid}"))?;
    }
    Ok(())
}

async fn devices(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let script = "mknod /tmp/kmsg c 1 11 && (head -c 1 /tmp/kmsg 2>&1 | wc -c; cat /tmp/kmsg 2>&1 | head -n 1); \
                  head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c";
    let mut denied = sh(script);
    let mounts = denied["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]}));
    let outcome = vm.run("d", &denied, false).await?;
    ensure!(outcome.stdout.contains("Operation not permitted"), "{outcome:?}");
    ensure!(outcome.stdout.ends_with("\n3\n3\n"), "{outcome:?}");
    let mut allowed = sh("head -c 1 /dev/log | wc -c");
    allowed["linux"]["devices"] =
        json!([{"path": "/dev/log", "type": "c", "major": 1, "minor": 9, "fileMode": 0o666}]);
    expect(&vm.run("e", &allowed, false).await?, 0, "1\n")
}

async fn many(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let names: Vec<String> = (0..8).map(|n| format!("c{n}")).collect();
    let specs: Vec<Value> = names.iter().map(|n| spec(&["echo", n])).collect();
    let from = Instant::now();
    let mut runs = Vec::new();
    for (name, spec) in names.iter().zip(&specs) {
        runs.push(vm.run(name, spec, false));
    }
    let mut results = Vec::new();
    let mut pending: Vec<_> = runs.into_iter().map(Box::pin).collect();
    // All at once.
    std::future::poll_fn(|cx| {
        pending.retain_mut(|run| match run.as_mut().poll(cx) {
            std::task::Poll::Ready(done) => {
                results.push(done);
                false
            }
            std::task::Poll::Pending => true,
        });
        if pending.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    for result in results {
        ensure!(result?.status == 0);
    }
    println!("        8 containers at once: {:.2} s", from.elapsed().as_secs_f64());
    Ok(())
}

/// Nothing is left in the guest of what ran in it.
async fn clean(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let census = async || -> anyhow::Result<String> {
        let mut look = sh(
            "echo threads $(ls /agent/1/task | wc -l); ls /agent/1/fd | wc -l; wc -l < /agent/1/mountinfo; ls /bundles /cg | wc -l; \
             for p in /agent/[0-9]*; do grep -q 'State:.Z' $p/status 2>/dev/null && echo zombie; done; true",
        );
        let mounts = look["mounts"].as_array_mut().context("mounts")?;
        for (from, to) in
            [("/proc", "/agent"), ("/run/skep/containers", "/bundles"), ("/sys/fs/cgroup/skep", "/cg")]
        {
            mounts
                .push(json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", "ro"]}));
        }
        Ok(vm.run("look", &look, false).await?.stdout)
    };
    census().await?;
    let before = census().await?;
    // Forking helpers is sound in a process of one thread only.
    ensure!(before.starts_with("threads 1\n"), "{before}");
    for n in 0..5 {
        vm.run(&format!("a{n}"), &sh("(sleep 0.01; sleep 0.01) & echo x"), n % 2 == 0).await?;
        ensure!(vm.run("bad", &spec(&["nope"]), n % 2 == 0).await.is_err());
        let mut tty = sh("echo x");
        tty["process"]["terminal"] = json!(true);
        vm.create("tty", &tty, Stdio::new(), false).await?;
        vm.agent().start_process(&start("tty", "")).await?;
        vm.agent().wait_process(&process("tty", "")).await?;
        vm.agent().delete_process(&process("tty", "")).await?;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let after = census().await?;
    ensure!(before == after, "before:\n{before}after:\n{after}");
    Ok(())
}

/// What a container with more rights than it should have can do to the agent.
async fn hostile(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let mut evil = sh("(echo x > /agent/1/exe) 2>&1; kill -9 1; kill -11 1; kill -6 1; echo alive; \
         ls -l /agent/self/fd | grep -c -e vport -e console -e kmsg");
    evil["linux"]["namespaces"] = json!([{"type": "mount"}]);
    evil["linux"]["readonlyPaths"] = json!([]);
    for set in ["bounding", "effective", "permitted"] {
        evil["process"]["capabilities"][set] =
            json!([CAPS.as_slice(), &["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]].concat());
    }
    evil["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let mounts = evil["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({"destination": "/agent", "type": "bind", "source": "/proc", "options": ["rbind"]}));
    let outcome = vm.run("evil", &evil, false).await?;
    ensure!(outcome.stdout.ends_with("busy\nalive\n0\n"), "{outcome:?}");
    // Eating all memory costs the container its life and nobody else.
    let hog = sh("dd if=/dev/zero of=/dev/null bs=400M count=1");
    let outcome = vm.run("hog", &hog, false).await?;
    ensure!(outcome.status != 0, "{outcome:?}");
    let bomb = sh("f() { f | f & }; ulimit -u 100; f; sleep 0.3");
    let mut bomb = bomb;
    bomb["linux"]["resources"]["pids"] = json!({"limit": 64});
    vm.run("bomb", &bomb, false).await?;
    expect(&vm.run("after", &spec(&["echo", "fine"]), false).await?, 0, "fine\n")
}

/// The host's session ends and another begins: containers live on.
async fn reconnect(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let token = vm.session.draw_token();
    let _stdout = vm.session.open_stdio(token).await?;
    vm.create(
        "c",
        &sh("while true; do echo line; sleep 0.01; done"),
        Stdio { stdout: token, ..Stdio::new() },
        false,
    )
    .await?;
    vm.agent().start_process(&start("c", "")).await?;
    for _ in 0..3 {
        let from = Instant::now();
        vm.session.close().await;
        let next = vm.connect().await?;
        println!("        a new session: {:.0} ms", from.elapsed().as_secs_f64() * 1e3);
        let group = ContainerRequest { container_id: "c".into(), ..ContainerRequest::new() };
        ensure!(!next.agent().list_processes(&group).await?.pids.is_empty());
        next.close().await;
    }
    let last = vm.connect().await?;
    let kill = SignalProcessRequest { container_id: "c".into(), signal: 9, ..Default::default() };
    last.agent().signal_process(&kill).await?;
    ensure!(last.agent().wait_process(&process("c", "")).await?.exit_status == 137);
    last.agent().delete_process(&process("c", "")).await?;
    // What follows goes through the last session.
    last.agent().shutdown(&Empty::new()).await.ok();
    Ok(())
}

async fn userns(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let mut spec = sh("id -u; cat /proc/self/uid_map | tr -s ' '; grep CapEff /proc/self/status");
    spec["linux"]["namespaces"].as_array_mut().context("namespaces")?.push(json!({"type": "user"}));
    for map in ["uidMappings", "gidMappings"] {
        spec["linux"][map] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    }
    let outcome = vm.run("u", &spec, true).await?;
    expect(&outcome, 0, "0\n 0 0 65536\nCapEff:\t00000000a80425fb\n")
}

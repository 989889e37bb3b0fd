//! A process in a container: its streams, terminal, signals; a second one beside it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use skep_protocol::Code;
use skep_protocol::api::{
    ContainerRequest, ExecProcessRequest, ResizeTerminalRequest, SignalProcessRequest, Stdio,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::expect;
use crate::spec::{sh, spec};
use crate::vm::{Outcome, Vm, process, start};

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

pub(super) async fn exec(vm: &Vm) -> anyhow::Result<()> {
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

pub(super) async fn stdio(vm: &Vm) -> anyhow::Result<()> {
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

pub(super) async fn terminal(vm: &Vm) -> anyhow::Result<()> {
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

pub(super) async fn signals(vm: &Vm) -> anyhow::Result<()> {
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

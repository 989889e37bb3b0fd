//! What is tried, a guest each.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use skep_protocol::api::{
    ContainerRequest, ExecProcessRequest, ResizeTerminalRequest, SignalProcessRequest, Stdio as Tokens,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::vm::{Vm, process};

/// A spec such as containerd writes for an image of FreeBSD.
fn spec(script: &str) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/sbin:/bin:/usr/sbin:/usr/bin"],
            "cwd": "/",
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 256}]
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/dev", "type": "devfs", "source": "devfs", "options": ["ruleset=4"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=1777"]}
        ]
    })
}

pub(crate) async fn hello(vm: &Vm) -> anyhow::Result<()> {
    let script = "echo $0 $HOME; pwd; hostname; ulimit -n; ls /dev | tr '\\n' ' ' 2>/dev/null; exit 7";
    let (status, output) = vm.run("a.b", &spec(script), b"").await?;
    ensure!(status == 7, "{status}: {output}");
    for part in ["/bin/sh /root", "bench-host", "256"] {
        ensure!(output.contains(part), "{part:?} is not in {output:?}");
    }
    let mut user = spec("id -u; id -G; pwd; echo $HOME; echo x > /tmp/mine && cat /tmp/mine; ls /dev");
    user["process"]["user"] = json!({"uid": 33, "gid": 33, "additionalGids": [33, 50]});
    user["process"]["cwd"] = "/var/www".into();
    let (status, output) = vm.run("user", &user, b"").await?;
    ensure!(status == 0 && output.starts_with("33\n33 50\n/var/www\n/var/www\nx\n"), "{status}: {output}");
    for hidden in ["vtcon", "mem", "ttyu0", "pci"] {
        ensure!(!output.lines().any(|line| line == hidden), "/dev/{hidden} shows: {output}");
    }
    ensure!(output.lines().any(|line| line == "null"), "{output}");
    Ok(())
}

pub(crate) async fn stdio(vm: &Vm) -> anyhow::Result<()> {
    let lines: Vec<String> = (0..40_000).map(|n| n.to_string()).collect();
    let input = lines.join("\n");
    let from = Instant::now();
    let (status, output) = vm.run("cat", &spec("cat"), input.as_bytes()).await?;
    ensure!(status == 0 && output == input, "{status}: {} of {} bytes", output.len(), input.len());
    println!("  {} KiB each way in {:.1?}", input.len() / 1024, from.elapsed());
    let mut written = spec("echo from the guest > /left && cat /etc/plain");
    written["process"]["cwd"] = "/made/up".into();
    let (status, output) = vm.run("write", &written, b"").await?;
    ensure!(status == 0 && output == "plain\n", "{status}: {output}");
    let share = vm.dir.path().join("share/root");
    ensure!(fs::read_to_string(share.join("left"))? == "from the guest\n" && share.join("made/up").is_dir());
    Ok(())
}

pub(crate) async fn exec(vm: &Vm) -> anyhow::Result<()> {
    vm.create("long", &spec("sleep 600 & sleep 600; :"), Tokens::new()).await?;
    vm.start("long", "").await?;
    for n in 0..3 {
        let token = vm.session.draw_token();
        let mut stdout = vm.session.open_stdio(token).await?;
        let mut request = ExecProcessRequest::new();
        request.container_id = "long".into();
        request.exec_id = format!("e{n}");
        request.process = serde_json::to_vec(&spec(&format!("echo exec {n}; exit {n}"))["process"])?;
        request.stdio = Some(Tokens { stdout: token, ..Tokens::new() }).into();
        vm.agent().exec_process(&request).await?;
        let process = process("long", &request.exec_id);
        vm.start("long", &request.exec_id).await?;
        let mut output = String::new();
        stdout.read_to_string(&mut output).await?;
        let exit = vm.agent().wait_process(&process).await?;
        ensure!(exit.exit_status == n && output == format!("exec {n}\n"), "{exit:?}: {output:?}");
        vm.agent().delete_process(&process).await?;
    }
    let container = ContainerRequest { container_id: "long".into(), ..ContainerRequest::new() };
    let pids = vm.agent().list_processes(&container).await?.pids;
    ensure!(pids.len() == 3, "a shell and two sleeps: {pids:?}");
    end(vm, "long", 9, 137).await?;
    Ok(())
}

async fn end(vm: &Vm, id: &str, signal: u32, status: u32) -> anyhow::Result<()> {
    let request = SignalProcessRequest { container_id: id.into(), signal, ..SignalProcessRequest::new() };
    vm.agent().signal_process(&request).await?;
    let exit = vm.agent().wait_process(&process(id, "")).await?;
    ensure!(exit.exit_status == status, "{exit:?}");
    vm.agent().delete_process(&process(id, "")).await?;
    Ok(())
}

pub(crate) async fn faults(vm: &Vm) -> anyhow::Result<()> {
    let mut broken: Vec<(&str, Value)> = Vec::new();
    let mut with = |words: &'static str, change: &dyn Fn(&mut Value)| {
        let mut spec = spec("true");
        change(&mut spec);
        broken.push((words, spec));
    };
    with("no such file or directory in the image", &|spec| spec["process"]["args"] = json!(["/no/such"]));
    with("$PATH", &|spec| spec["process"]["args"] = json!(["nonesuch"]));
    with("permission denied", &|spec| spec["process"]["args"] = json!(["/etc/plain"]));
    with("/etc/plain", &|spec| spec["process"]["cwd"] = "/etc/plain".into());
    with("RlimitNice", &|spec| {
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NICE", "hard": 1, "soft": 1}]);
    });
    with("mounts[2].type \"linprocfs\"", &|spec| {
        let mount = json!({"destination": "/proc", "type": "linprocfs", "source": "linprocfs"});
        spec["mounts"].as_array_mut().into_iter().for_each(|mounts| mounts.push(mount.clone()));
    });
    with("root.readonly", &|spec| spec["root"]["readonly"] = true.into());
    for (n, (words, spec)) in broken.iter().enumerate() {
        let error = vm.run(&format!("f{n}"), spec, b"").await.err().context(*words)?;
        let error = format!("{error:#}");
        ensure!(error.contains(words), "{words:?} is not in {error}");
    }
    let (status, _) = vm.run("f0", &spec("true"), b"").await.context("after them all")?;
    ensure!(status == 0);
    Ok(())
}

pub(crate) async fn signals(vm: &Vm) -> anyhow::Result<()> {
    vm.create("plain", &spec("sleep 600"), Tokens::new()).await?;
    vm.start("plain", "").await?;
    end(vm, "plain", 15, 143).await?;
    // One that was never started.
    vm.create("unborn", &spec("true"), Tokens::new()).await?;
    vm.agent().delete_process(&process("unborn", "")).await?;
    // What the first process leaves ends with it.
    let token = vm.session.draw_token();
    let mut stdout = vm.session.open_stdio(token).await?;
    vm.create("left", &spec("sleep 600 & exit 3"), Tokens { stdout: token, ..Tokens::new() }).await?;
    vm.start("left", "").await?;
    let exit = vm.agent().wait_process(&process("left", "")).await?;
    ensure!(exit.exit_status == 3, "{exit:?}");
    tokio::time::timeout(Duration::from_secs(10), stdout.read_to_string(&mut String::new()))
        .await
        .context("the sleep lives")??;
    vm.agent().delete_process(&process("left", "")).await?;
    Ok(())
}

pub(crate) async fn terminal(vm: &Vm) -> anyhow::Result<()> {
    let mut spec = spec("read line; echo got $line; stty size; ls -l /dev/tty >/dev/null && echo tty");
    spec["process"]["terminal"] = true.into();
    spec["process"]["consoleSize"] = json!({"height": 30, "width": 90});
    let (input, token) = (vm.session.draw_token(), vm.session.draw_token());
    let mut stdin = vm.session.open_stdio(input).await?;
    let mut stdout = vm.session.open_stdio(token).await?;
    vm.create("t", &spec, Tokens { stdin: input, stdout: token, ..Tokens::new() }).await?;
    vm.start("t", "").await?;
    let mut size = ResizeTerminalRequest::new();
    (size.container_id, size.rows, size.columns) = ("t".into(), 40, 100);
    vm.agent().resize_terminal(&size).await?;
    stdin.write_all(b"word\n").await?;
    let mut output = String::new();
    stdout.read_to_string(&mut output).await?;
    let exit = vm.agent().wait_process(&process("t", "")).await?;
    vm.agent().delete_process(&process("t", "")).await?;
    ensure!(exit.exit_status == 0, "{exit:?}: {output:?}");
    for part in ["got word\r\n", "40 100\r\n", "tty\r\n"] {
        ensure!(output.contains(part), "{part:?} is not in {output:?}");
    }
    Ok(())
}

pub(crate) async fn pause(vm: &Vm) -> anyhow::Result<()> {
    let token = vm.session.draw_token();
    let mut stdout = vm.session.open_stdio(token).await?;
    let script = "while :; do echo tick; sleep 0.1; done";
    vm.create("p", &spec(script), Tokens { stdout: token, ..Tokens::new() }).await?;
    vm.start("p", "").await?;
    let mut tick = [0; 5];
    stdout.read_exact(&mut tick).await?;
    let container = ContainerRequest { container_id: "p".into(), ..ContainerRequest::new() };
    vm.agent().pause_container(&container).await?;
    // What was on its way.
    let quiet = async {
        while let Ok(read) = tokio::time::timeout(Duration::from_secs(2), stdout.read_exact(&mut tick)).await
        {
            read?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(30), quiet).await.context("it ticks on")??;
    vm.agent().resume_container(&container).await?;
    tokio::time::timeout(Duration::from_secs(20), stdout.read_exact(&mut tick))
        .await
        .context("it is dead")??;
    end(vm, "p", 9, 137).await
}

pub(crate) async fn limits(vm: &Vm) -> anyhow::Result<()> {
    // Who took the memory ends, and nobody else.
    let script =
        "(dd if=/dev/zero bs=100m count=1 2>/dev/null; echo dd $? >/code) | sleep 8; cat /code; exit 5";
    let mut bounded = spec(script);
    bounded["linux"]["resources"]["memory"]["limit"] = (64 << 20).into();
    let (status, output) = vm.run("bounded", &bounded, b"").await?;
    ensure!(status == 5 && output == "dd 137\n", "{status}: {output:?}");
    vm.create("counted", &bounded, Tokens::new()).await?;
    vm.start("counted", "").await?;
    let exit = vm.agent().wait_process(&process("counted", "")).await?;
    vm.agent().delete_process(&process("counted", "")).await?;
    ensure!((exit.exit_status, exit.oom_kills) == (5, 1), "{exit:?}");
    let mut few = spec("for n in 1 2 3 4 5; do sleep 3 & done; echo all");
    few["linux"]["resources"]["pids"]["limit"] = 4.into();
    let (status, output) = vm.run("few", &few, b"").await?;
    ensure!(status != 0 && output.is_empty(), "{status}: {output:?}");
    Ok(())
}

pub(crate) async fn clean(vm: &Vm) -> anyhow::Result<()> {
    for n in 0..20 {
        let (status, output) = vm.run("again", &spec(&format!("echo {n}")), b"").await?;
        ensure!(status == 0 && output == format!("{n}\n"), "{n}: {status} {output:?}");
    }
    Ok(())
}

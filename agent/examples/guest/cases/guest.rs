//! The guest as a whole: many containers, hostile ones, what they leave, hosts that come and go.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use skep_protocol::api::{ContainerRequest, Empty, SignalProcessRequest, Stdio};

use super::expect;
use crate::spec::{CAPS, sh, spec};
use crate::vm::{Vm, process, start};

pub(super) async fn many(vm: &Vm) -> anyhow::Result<()> {
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
pub(super) async fn clean(vm: &Vm) -> anyhow::Result<()> {
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
pub(super) async fn hostile(vm: &Vm) -> anyhow::Result<()> {
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
pub(super) async fn reconnect(vm: &Vm) -> anyhow::Result<()> {
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

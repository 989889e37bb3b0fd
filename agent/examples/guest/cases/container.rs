//! What a container is given.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use skep_protocol::Code;
use skep_protocol::api::Stdio;

use super::expect;
use crate::spec::{sh, spec};
use crate::vm::{Vm, process, start};

pub(super) async fn hello(vm: &Vm) -> anyhow::Result<()> {
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

pub(super) async fn whole_spec(vm: &Vm) -> anyhow::Result<()> {
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

pub(super) async fn faults(vm: &Vm) -> anyhow::Result<()> {
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
    is(fault(spec(&["nope"])).await?, "exec \"nope\": executable file not found in $PATH")?;
    is(fault(spec(&["/bin/nope"])).await?, "exec \"/bin/nope\": no such file or directory in the image")?;
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

pub(super) async fn overlay(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let outcome = vm.run("o", &sh("echo mine > /tmp/overlaid && cat /tmp/overlaid /etc/plain"), true).await?;
    expect(&outcome, 0, "mine\nplain\n")?;
    ensure!(!vm.share("root/tmp/overlaid").exists(), "an overlay wrote through to the host");
    expect(&vm.run("o", &sh("test -e /tmp/overlaid || echo gone"), true).await?, 0, "gone\n")
}

pub(super) async fn pod(vm: &Vm) -> anyhow::Result<()> {
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

pub(super) async fn seccomp(vm: &Vm) -> anyhow::Result<()> {
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

pub(super) async fn devices(vm: &Vm) -> anyhow::Result<()> {
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

pub(super) async fn userns(vm: &Vm) -> anyhow::Result<()> {
    vm.sandbox().await?;
    let mut spec = sh("id -u; cat /proc/self/uid_map | tr -s ' '; grep CapEff /proc/self/status");
    spec["linux"]["namespaces"].as_array_mut().context("namespaces")?.push(json!({"type": "user"}));
    for map in ["uidMappings", "gidMappings"] {
        spec["linux"][map] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    }
    let outcome = vm.run("u", &spec, true).await?;
    expect(&outcome, 0, "0\n 0 0 65536\nCapEff:\t00000000a80425fb\n")
}

//! Boots a FreeBSD guest with an agent under QEMU and drives it as a host does: a developer's bench for jails.
//!
//! ```text
//! cargo run -p skep-agent --example jails -- KERNEL AGENT WORLD [CASE…]
//! ```
//!
//! KERNEL is a FreeBSD kernel as `packaging/guest/freebsd/SKEPGUEST` makes it, AGENT the agent built for FreeBSD, WORLD a
//! directory with a FreeBSD's /bin, /lib and /libexec. The guest's own tree and the container's root are made of them.
//! `SKEP_QEMU` names another QEMU. Software emulation is enough and is what is used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use skep_protocol::api::{
    ContainerRequest, CreateContainerRequest, CreateSandboxRequest, Empty, ExecProcessRequest,
    ProcessRequest, ResizeTerminalRequest, Share, SignalProcessRequest, StartProcessRequest, Stdio as Tokens,
};
use skep_protocol::{AgentCalls, Endpoint, PROTOCOL_VERSION, Session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

/// What the agent and the programs of a container are linked to.
const LIBRARIES: [&str; 9] = [
    "libc.so.7",
    "libsys.so.7",
    "libthr.so.3",
    "libgcc_s.so.1",
    "libm.so.5",
    "libedit.so.8",
    "libtinfow.so.9",
    "libutil.so.10",
    "libkvm.so.7",
];
const PROGRAMS: [&str; 12] =
    ["sh", "cat", "echo", "ls", "sleep", "kill", "ps", "stty", "hostname", "dd", "pwd", "mkdir"];

struct Vm {
    dir: tempfile::TempDir,
    qemu: Child,
    session: Session,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, agent, world, wanted @ ..] = args.as_slice() else {
        anyhow::bail!("usage: jails KERNEL AGENT WORLD [CASE…]");
    };
    let (kernel, agent, world) = (Path::new(kernel), Path::new(agent), Path::new(world));
    let mut failed = 0;
    for name in ["hello", "stdio", "exec", "faults", "signals", "terminal", "pause", "limits", "clean"] {
        if !wanted.is_empty() && !wanted.iter().any(|one| one == name) {
            continue;
        }
        let from = Instant::now();
        let mut vm = Vm::boot(kernel, agent, world).await.with_context(|| format!("{name}: boot"))?;
        let ready = from.elapsed();
        let result = match name {
            "hello" => hello(&vm).await,
            "stdio" => stdio(&vm).await,
            "exec" => exec(&vm).await,
            "faults" => faults(&vm).await,
            "signals" => signals(&vm).await,
            "terminal" => terminal(&vm).await,
            "pause" => pause(&vm).await,
            "limits" => limits(&vm).await,
            _ => clean(&vm).await,
        };
        // The answer may be lost with the guest.
        let _ = vm.agent().with_timeout(Duration::from_secs(5)).shutdown(&Empty::new()).await;
        let ended = tokio::time::timeout(Duration::from_secs(20), vm.qemu.wait()).await;
        let result = result.and(ended.context("the guest does not power off").map(drop));
        match result {
            Ok(()) => println!("{name}: ok, session after {ready:.1?}, all of it {:.1?}", from.elapsed()),
            Err(error) => {
                failed += 1;
                println!("{name}: {error:#}\n--- console\n{}---", vm.console());
            }
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Vm {
    async fn boot(kernel: &Path, agent: &Path, world: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        guest(agent, world, &at("guest"))?;
        image(world, &at("share/root"))?;
        let console = fs::File::create(at("console.log"))?;
        let virtio = "disable-modern=on,disable-legacy=off";
        let share = |id: &str, path: PathBuf, tag: &str, more: &str| {
            [
                "-fsdev".to_owned(),
                format!(
                    "local,id={id},path={},security_model=passthrough,multidevs=remap{more}",
                    path.display()
                ),
                "-device".to_owned(),
                format!("virtio-9p-pci,fsdev={id},mount_tag={tag},{virtio}"),
            ]
        };
        let program = std::env::var_os("SKEP_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
        let mut qemu = Command::new(&program);
        qemu.args([
            "-machine",
            "q35,accel=tcg,usb=off,vmport=off,sata=off,i8042=off",
            "-cpu",
            "max,erms=off,fsrm=off",
        ]);
        qemu.args([
            "-m",
            "256",
            "-nodefaults",
            "-no-user-config",
            "-nographic",
            "-no-reboot",
            "-serial",
            "stdio",
        ]);
        qemu.arg("-kernel").arg(kernel).arg("-append").arg(
            "vfs.root.mountfrom=p9fs:guest vfs.root.mountfrom.options=ro init_path=/skep-agent \
             machdep.disable_tsc_calibration=1 debug.acpi.disabled=hpet kern.panic_reboot_wait_time=0 kern.racct.enable=1 \
             console=comconsole boot_serial=YES hint.uart.0.at=isa hint.uart.0.port=0x3F8 hint.uart.0.flags=0x10 \
             skep.log=debug",
        );
        qemu.arg("-device").arg(format!("virtio-serial-pci,{virtio}"));
        qemu.arg("-chardev")
            .arg(format!("socket,id=c0,path={},server=on,wait=off", at("agent.sock").display()));
        qemu.args(["-device", "virtserialport,chardev=c0,name=skep.agent"]);
        qemu.args(share("f0", at("guest"), "guest", ",readonly=on"));
        qemu.args(share("f1", at("share"), "skep", ""));
        qemu.arg("-device").arg(format!("virtio-rng-pci,{virtio}"));
        qemu.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console).kill_on_drop(true);
        let qemu = qemu.spawn().with_context(|| program.display().to_string())?;
        let endpoint = Endpoint::PacedConsole(at("agent.sock"));
        let text = at("console.log");
        let session = Session::connect(&endpoint, Duration::from_secs(40)).await.with_context(|| {
            format!("--- console\n{}---", String::from_utf8_lossy(&fs::read(text).unwrap_or_default()))
        })?;
        let vm = Self { dir, qemu, session };
        vm.sandbox().await.with_context(|| format!("--- console\n{}---", vm.console()))?;
        Ok(vm)
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("console.log")).unwrap_or_default())
            .into_owned()
    }

    fn agent(&self) -> AgentCalls {
        self.session.agent()
    }

    async fn sandbox(&self) -> anyhow::Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let mut request = CreateSandboxRequest::new();
        request.protocol_version = PROTOCOL_VERSION;
        request.sandbox_id = "bench".into();
        request.hostname = "bench-host".into();
        request.realtime_ns = i64::try_from(now.as_nanos())?;
        request.entropy = (0..64).map(|n| n * 3).collect();
        let share = Share { tag: "skep".into(), mount_point: "/run/skep/share".into(), ..Share::new() };
        request.shares.push(share);
        let answer = self.agent().create_sandbox(&request).await?;
        ensure!(answer.kernel_release.contains("RELEASE") || !answer.kernel_release.is_empty());
        Ok(())
    }

    async fn create(&self, id: &str, spec: &Value, tokens: Tokens) -> anyhow::Result<()> {
        let mut request = CreateContainerRequest::new();
        request.container_id = id.into();
        request.spec = serde_json::to_vec(spec)?;
        request.rootfs = "/run/skep/share/root".into();
        request.stdio = Some(tokens).into();
        self.agent().create_container(&request).await?;
        Ok(())
    }

    async fn start(&self, container: &str, exec: &str) -> anyhow::Result<()> {
        let mut request = StartProcessRequest::new();
        (request.container_id, request.exec_id) = (container.into(), exec.into());
        self.agent().start_process(&request).await?;
        Ok(())
    }

    /// Creates, starts, waits for and deletes a container; its status and what it wrote.
    async fn run(&self, id: &str, spec: &Value, input: &[u8]) -> anyhow::Result<(u32, String)> {
        let (input_token, token) = (self.session.draw_token(), self.session.draw_token());
        let mut stdin = self.session.open_stdio(input_token).await?;
        let mut stdout = self.session.open_stdio(token).await?;
        self.create(id, spec, Tokens { stdin: input_token, stdout: token, ..Tokens::new() }).await?;
        let init = process(id, "");
        if let Err(error) = self.start(id, "").await {
            self.agent().delete_process(&init).await.context("delete after a failed start")?;
            return Err(error);
        }
        let feed = async {
            stdin.write_all(input).await?;
            stdin.shutdown().await
        };
        let mut output = String::new();
        // The process may not want all of its input.
        let (_, read) = tokio::join!(feed, stdout.read_to_string(&mut output));
        read?;
        let exit = self.agent().wait_process(&init).await?;
        let deleted = self.agent().delete_process(&init).await?;
        ensure!(deleted.exit_status == exit.exit_status, "delete tells another status");
        Ok((exit.exit_status, output))
    }
}

fn process(container: &str, exec: &str) -> ProcessRequest {
    ProcessRequest { container_id: container.into(), exec_id: exec.into(), ..ProcessRequest::new() }
}

fn copy(world: &Path, root: &Path, dir: &str, names: &[&str]) -> anyhow::Result<()> {
    fs::create_dir_all(root.join(dir))?;
    for name in names {
        let from = [dir, "usr/lib", "usr/bin"].map(|dir| world.join(dir).join(name));
        let Some(from) = from.iter().find(|path| path.exists()) else { continue };
        fs::copy(from, root.join(dir).join(name)).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

fn guest(agent: &Path, world: &Path, root: &Path) -> anyhow::Result<()> {
    for dir in ["dev", "run", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    copy(world, root, "lib", &LIBRARIES)?;
    copy(world, root, "libexec", &["ld-elf.so.1"])?;
    fs::copy(agent, root.join("skep-agent")).with_context(|| agent.display().to_string())?;
    Ok(())
}

fn image(world: &Path, root: &Path) -> anyhow::Result<()> {
    for dir in ["dev", "etc", "tmp", "var/www"] {
        fs::create_dir_all(root.join(dir))?;
    }
    copy(world, root, "lib", &LIBRARIES)?;
    copy(world, root, "libexec", &["ld-elf.so.1"])?;
    copy(world, root, "bin", &PROGRAMS)?;
    copy(world, root, "usr/bin", &["id", "env", "true"])?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\n")?;
    fs::write(root.join("etc/plain"), "plain\n")?;
    Ok(())
}

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

async fn hello(vm: &Vm) -> anyhow::Result<()> {
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

async fn stdio(vm: &Vm) -> anyhow::Result<()> {
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

async fn exec(vm: &Vm) -> anyhow::Result<()> {
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

async fn faults(vm: &Vm) -> anyhow::Result<()> {
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

async fn signals(vm: &Vm) -> anyhow::Result<()> {
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

async fn terminal(vm: &Vm) -> anyhow::Result<()> {
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

async fn pause(vm: &Vm) -> anyhow::Result<()> {
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

async fn limits(vm: &Vm) -> anyhow::Result<()> {
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

async fn clean(vm: &Vm) -> anyhow::Result<()> {
    for n in 0..20 {
        let (status, output) = vm.run("again", &spec(&format!("echo {n}")), b"").await?;
        ensure!(status == 0 && output == format!("{n}\n"), "{n}: {status} {output:?}");
    }
    Ok(())
}

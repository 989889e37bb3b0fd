//! One FreeBSD guest under QEMU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use skep_protocol::api::{
    CreateContainerRequest, CreateSandboxRequest, ProcessRequest, Share, StartProcessRequest, Stdio as Tokens,
};
use skep_protocol::{AgentCalls, Endpoint, PROTOCOL_VERSION, Session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::tree;

/// A running guest with an open session.
pub(crate) struct Vm {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) qemu: Child,
    pub(crate) session: Session,
}

impl Vm {
    /// Boots it and makes it a sandbox.
    pub(crate) async fn boot(kernel: &Path, agent: &Path, world: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        tree::guest(agent, world, &at("guest"))?;
        tree::image(world, &at("share/root"))?;
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

    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("console.log")).unwrap_or_default())
            .into_owned()
    }

    pub(crate) fn agent(&self) -> AgentCalls {
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

    pub(crate) async fn create(&self, id: &str, spec: &Value, tokens: Tokens) -> anyhow::Result<()> {
        let mut request = CreateContainerRequest::new();
        request.container_id = id.into();
        request.spec = serde_json::to_vec(spec)?;
        request.rootfs = "/run/skep/share/root".into();
        request.stdio = Some(tokens).into();
        self.agent().create_container(&request).await?;
        Ok(())
    }

    pub(crate) async fn start(&self, container: &str, exec: &str) -> anyhow::Result<()> {
        let mut request = StartProcessRequest::new();
        (request.container_id, request.exec_id) = (container.into(), exec.into());
        self.agent().start_process(&request).await?;
        Ok(())
    }

    /// Creates, starts, waits for and deletes a container; its status and what it wrote.
    pub(crate) async fn run(&self, id: &str, spec: &Value, input: &[u8]) -> anyhow::Result<(u32, String)> {
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

pub(crate) fn process(container: &str, exec: &str) -> ProcessRequest {
    ProcessRequest { container_id: container.into(), exec_id: exec.into(), ..ProcessRequest::new() }
}

//! One microVM, as bare as can be.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use skep_protocol::api::{
    CreateContainerRequest, CreateSandboxRequest, CreateSandboxResponse, Empty, ProcessRequest, RootfsMode,
    Share, StartProcessRequest, Stdio as Tokens,
};
use skep_protocol::{AgentCalls, Endpoint, PROTOCOL_VERSION, Session};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

/// What a guest is made of.
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) agent: PathBuf,
    pub(crate) busybox: PathBuf,
}

/// A QEMU that was started.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
    qemu: Child,
    started: Instant,
}

/// A running guest with an open session.
pub(crate) struct Vm {
    machine: Machine,
    pub(crate) session: Session,
}

/// What a process left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: u32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Machine {
    pub(crate) fn start(image: &Image, append: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        initramfs(&image.agent, &at("initramfs.cpio"))?;
        fs::create_dir(at("share"))?;
        rootfs(&image.busybox, &at("share/root"))?;
        let console = fs::File::create(at("console.log"))?;
        let virtio = "disable-modern=on,disable-legacy=off";
        let started = Instant::now();
        let qemu = Command::new("qemu-system-x86_64")
            .args([
                "-machine",
                "q35,accel=tcg,usb=off,vmport=off,hpet=off",
                "-cpu",
                "max,erms=off,fsrm=off",
                "-m",
                "256",
            ])
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(at("initramfs.cpio"))
            .arg("-append")
            .arg(format!("console=ttyS0 quiet loglevel=1 panic=-1 skep.channel=paced-console {append}"))
            .arg("-device")
            .arg(format!("virtio-serial-pci,max_ports=2,{virtio}"))
            .arg("-chardev")
            .arg(format!("socket,id=c0,path={},server=on,wait=off", at("agent.sock").display()))
            .args(["-device", "virtserialport,chardev=c0,name=skep.agent"])
            .arg("-fsdev")
            .arg(format!("local,id=f0,path={},security_model=none,multidevs=remap", at("share").display()))
            .arg("-device")
            .arg(format!("virtio-9p-pci,fsdev=f0,mount_tag=skep,{virtio}"))
            .args(["-netdev", "user,id=n0"])
            .arg("-device")
            .arg(format!("virtio-net-pci,netdev=n0,romfile=,{virtio}"))
            .arg("-device")
            .arg(format!("virtio-rng-pci,{virtio}"))
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .kill_on_drop(true)
            .spawn()
            .context("qemu-system-x86_64")?;
        Ok(Self { dir, qemu, started })
    }

    pub(crate) fn console(&self) -> String {
        fs::read(self.dir.path().join("console.log"))
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_default()
    }

    /// Processor time that QEMU has used: what a phase costs however busy the host is.
    fn used(&self) -> Duration {
        let stat = self.qemu.id().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
        let ticks = stat.and_then(|stat| {
            let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
            Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
        });
        // Ticks are hundredths of a second wherever this runs.
        Duration::from_millis(ticks.unwrap_or_default() * 10)
    }

    /// Waits until QEMU has ended by itself; returns the console.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<String> {
        if tokio::time::timeout(Duration::from_secs(20), self.qemu.wait()).await.is_err() {
            self.qemu.kill().await?;
            anyhow::bail!("the guest does not end\n--- console\n{}---", self.console());
        }
        Ok(self.console())
    }
}

impl Vm {
    pub(crate) async fn boot(image: &Image, append: &str) -> anyhow::Result<Self> {
        let machine = Machine::start(image, append)?;
        let endpoint = Endpoint::PacedConsole(machine.dir.path().join("agent.sock"));
        match Session::connect(&endpoint, Duration::from_secs(30)).await {
            Ok(session) => Ok(Self { machine, session }),
            Err(error) => anyhow::bail!("{error}\n--- console\n{}---", machine.console()),
        }
    }

    /// Opens another session.
    pub(crate) async fn connect(&self) -> anyhow::Result<Session> {
        let endpoint = Endpoint::PacedConsole(self.machine.dir.path().join("agent.sock"));
        Ok(Session::connect(&endpoint, Duration::from_secs(10)).await?)
    }

    /// Since QEMU's start: on the clock, and of the processor.
    pub(crate) fn times(&self) -> (Duration, Duration) {
        (self.machine.started.elapsed(), self.machine.used())
    }

    pub(crate) fn agent(&self) -> AgentCalls {
        self.session.agent()
    }

    /// A path of the host that the guest shares.
    pub(crate) fn share(&self, path: &str) -> PathBuf {
        self.machine.dir.path().join("share").join(path)
    }

    pub(crate) async fn sandbox(&self) -> anyhow::Result<CreateSandboxResponse> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let mut request = CreateSandboxRequest::new();
        request.protocol_version = PROTOCOL_VERSION;
        request.sandbox_id = "bench".into();
        request.hostname = "bench-host".into();
        request.realtime_ns = i64::try_from(now.as_nanos())?;
        request.entropy = (0..64).map(|n| n * 3).collect();
        let mut share = Share::new();
        share.tag = "skep".into();
        share.mount_point = "/run/skep/share".into();
        share.options = "cache=none,msize=512000".into();
        request.shares.push(share);
        Ok(self.agent().create_sandbox(&request).await?)
    }

    /// Makes a container from a spec; its streams are `tokens`.
    pub(crate) async fn create(
        &self,
        id: &str,
        spec: &serde_json::Value,
        tokens: Tokens,
        overlay: bool,
    ) -> anyhow::Result<u32> {
        let mut request = CreateContainerRequest::new();
        request.container_id = id.into();
        request.spec = serde_json::to_vec(spec)?;
        request.rootfs = "/run/skep/share/root".into();
        request.rootfs_mode =
            if overlay { RootfsMode::ROOTFS_MODE_OVERLAY } else { RootfsMode::ROOTFS_MODE_SHARED }.into();
        request.stdio = Some(tokens).into();
        Ok(self.agent().create_container(&request).await?.pid)
    }

    /// Creates, starts, waits for and deletes a container; what it wrote and how it ended.
    pub(crate) async fn run(
        &self,
        id: &str,
        spec: &serde_json::Value,
        overlay: bool,
    ) -> anyhow::Result<Outcome> {
        let (out, err) = (self.session.draw_token(), self.session.draw_token());
        let mut stdout = self.session.open_stdio(out).await?;
        let mut stderr = self.session.open_stdio(err).await?;
        let tokens = Tokens { stdout: out, stderr: err, ..Tokens::new() };
        self.create(id, spec, tokens, overlay).await?;
        let init = process(id, "");
        let started = self.agent().start_process(&start(id, "")).await;
        if let Err(error) = started {
            self.agent().delete_process(&init).await.context("delete after a failed start")?;
            return Err(error.into());
        }
        let (mut out, mut err) = (String::new(), String::new());
        let (a, b) = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
        a?;
        b?;
        let exit = self.agent().wait_process(&init).await?;
        let deleted = self.agent().delete_process(&init).await?;
        ensure!(deleted.exit_status == exit.exit_status, "delete tells another status");
        Ok(Outcome { status: exit.exit_status, stdout: out, stderr: err })
    }

    /// Asks the guest to go and checks that it does; returns its console.
    pub(crate) async fn end(mut self) -> anyhow::Result<String> {
        // The answer may be lost with the guest.
        let _ = self.agent().with_timeout(Duration::from_secs(5)).shutdown(&Empty::new()).await;
        self.machine.ended().await
    }
}

pub(crate) fn start(container: &str, exec: &str) -> StartProcessRequest {
    StartProcessRequest { container_id: container.into(), exec_id: exec.into(), ..StartProcessRequest::new() }
}

pub(crate) fn process(container: &str, exec: &str) -> ProcessRequest {
    ProcessRequest { container_id: container.into(), exec_id: exec.into(), ..ProcessRequest::new() }
}

fn initramfs(agent: &Path, to: &Path) -> anyhow::Result<()> {
    let program = fs::read(agent).with_context(|| agent.display().to_string())?;
    let entry = cpio::newc::Builder::new("init").mode(0o100_755).nlink(1);
    let mut writer = entry.write(Vec::new(), u32::try_from(program.len())?);
    std::io::Write::write_all(&mut writer, &program)?;
    fs::write(to, cpio::newc::trailer(writer.finish()?)?)?;
    Ok(())
}

fn rootfs(busybox: &Path, root: &Path) -> anyhow::Result<()> {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "var/www"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(busybox, root.join("bin/busybox")).with_context(|| busybox.display().to_string())?;
    for applet in [
        "sh", "cat", "echo", "ls", "sleep", "id", "uname", "env", "stty", "head", "dd", "mount", "ps",
        "touch", "kill", "grep", "mknod", "hostname", "true", "wc", "seq", "chmod", "tr",
    ] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\n")?;
    fs::write(root.join("etc/plain"), "plain\n")?;
    // An ELF header for another machine.
    let mut foreign = fs::read(busybox)?;
    foreign[18..20].copy_from_slice(&183_u16.to_le_bytes());
    fs::write(root.join("bin/foreign"), foreign)?;
    fs::write(root.join("bin/lost-script"), "#!/no/such/sh\n")?;
    for program in ["bin/foreign", "bin/lost-script"] {
        fs::set_permissions(root.join(program), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

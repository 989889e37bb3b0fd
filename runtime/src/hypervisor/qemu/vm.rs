//! A QEMU process: its start, its watch, its end.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use skep_protocol::Endpoint;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::accel::AccelDecision;
use super::command::{Wiring, arguments};
use super::output::log;
use super::qmp::{Qmp, ShutdownReason};
use crate::cgroup::Cgroup;
use crate::hypervisor::log::Tail;
use crate::hypervisor::{
    ExitCause, HypervisorError, Phase, Place, Vm, VmExit, VmSpec, exit, too_little_memory,
};
use crate::journal::{EntryId, Journal, VMM};
use crate::os::{ExitWatch, ProcessIdentity, Signal};

/// After QEMU's end, how long its pipes and monitor may still have something to say: another process could hold them.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long a killed process may take to go.
const KILL: Duration = Duration::from_secs(10);

/// A QEMU process.
#[derive(Debug)]
pub(super) struct QemuVm {
    process: ProcessIdentity,
    endpoint: Endpoint,
    acceleration: String,
    qmp: Qmp,
    console: Tail,
    /// Whether this host has ended it.
    killed: Arc<AtomicBool>,
    exit: watch::Receiver<Option<VmExit>>,
    phases: [Phase; 1],
}

/// Starts QEMU.
pub(super) async fn start(
    binary: &Path,
    accel: &AccelDecision,
    vhost_device_vsock: &Path,
    spec: &VmSpec,
    place: &Place,
) -> Result<QemuVm, HypervisorError> {
    let vsock = match spec.vsock {
        Some(vsock) => Some(super::vsock::start(vhost_device_vsock, vsock, place).await?),
        None => None,
    };
    // The sockets listen before QEMU runs, so that whoever connects need not wait for it.
    let qmp_path = place.dir.join("qmp.sock");
    let mut inherited = vec![listen(&qmp_path)?];
    // A QEMU that ends at once has to be heard of by its status, not by a refused connection.
    let monitor = connect(&qmp_path)?;
    for port in &spec.console_ports {
        inherited.push(listen(&place.dir.join(&port.socket))?);
    }
    let ports = 1 + spec.console_ports.len();
    for tap in &place.taps {
        let copy = tap.try_clone().map_err(|source| HypervisorError::File {
            action: "copy a descriptor of",
            path: "/dev/net/tun".into(),
            source,
        })?;
        inherited.push(copy);
    }
    let numbers: Vec<RawFd> = inherited.iter().map(OwnedFd::as_raw_fd).collect();
    let wiring = Wiring {
        accel: accel.accel,
        seccomp: cfg!(target_os = "linux"),
        qmp: numbers[0],
        ports: &numbers[1..ports],
        taps: &numbers[ports..],
        vhost_vsock: vsock.as_ref().map(|vsock| vsock.socket.as_path()),
    };
    let endpoint = match (&vsock, spec.console_ports.first()) {
        (Some(vsock), _) => vsock.endpoint.clone(),
        (None, Some(port)) => Endpoint::PacedConsole(place.dir.join(&port.socket)),
        (None, None) => return Err(crate::hypervisor::SpecError::NoChannel.into()),
    };
    let mut command = Command::new(binary);
    command.args(arguments(spec, &wiring)?);
    tracing::debug!(?command, "qemu");
    command.env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(netns) = &place.netns {
        crate::os::enter_netns(&mut command, Arc::clone(netns));
    }
    if let Some(cgroup) = &place.cgroup {
        cgroup.enter(&mut command)?;
    }
    let (mut child, process, entry) = place.journal.spawn(VMM, command, &inherited)?;
    let phases = [Phase::over("vmm-executed")];
    // QEMU's copies are the only ones from here on: when it ends, its sockets refuse.
    drop(inherited);

    let started = (|| {
        let console = Tail::default();
        let messages = Tail::default();
        let logs = [
            log(child.stdout.take(), place.dir.join("console.log"), &console)?,
            log(child.stderr.take(), place.dir.join("vmm.log"), &messages)?,
        ];
        Ok::<_, HypervisorError>((console, messages, logs, process.watch()?))
    })();
    let (console, messages, logs, watch) = match started {
        Ok(started) => started,
        Err(e) => {
            // Nobody would reap it.
            let _ = child.kill();
            let _ = child.wait();
            place.journal.strike(entry)?;
            return Err(e);
        }
    };
    let (qmp, run_qmp) = Qmp::new(monitor);
    let (sender, exit) = watch::channel(None);
    let killed = Arc::new(AtomicBool::new(false));
    let keeper = Keeper {
        child,
        watch,
        logs,
        monitor: tokio::spawn(run_qmp),
        qmp: qmp.clone(),
        console: console.clone(),
        messages,
        killed: Arc::clone(&killed),
        memory: place.cgroup.clone().map(|cgroup| (too_little_memory(&cgroup, spec), cgroup)),
        journal: Arc::clone(&place.journal),
        entry,
    };
    tokio::spawn(async move {
        // Nobody may be there to hear it.
        sender.send_replace(Some(keeper.keep().await));
    });
    let acceleration = accel.to_string();
    Ok(QemuVm { process, endpoint, acceleration, qmp, console, killed, exit, phases })
}

fn listen(path: &Path) -> Result<OwnedFd, HypervisorError> {
    let listener = UnixListener::bind(path).map_err(|source| HypervisorError::File {
        action: "listen on",
        path: path.to_owned(),
        source,
    })?;
    Ok(listener.into())
}

fn connect(path: &Path) -> Result<UnixStream, HypervisorError> {
    let connect = || {
        let socket = std::os::unix::net::UnixStream::connect(path)?;
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket)
    };
    connect().map_err(|source| HypervisorError::File { action: "connect to", path: path.to_owned(), source })
}

/// Waits for the end of a QEMU process and finds out how it came.
struct Keeper {
    child: Child,
    watch: Option<ExitWatch>,
    logs: [JoinHandle<()>; 2],
    monitor: JoinHandle<()>,
    qmp: Qmp,
    console: Tail,
    messages: Tail,
    killed: Arc<AtomicBool>,
    /// What is to be said if it is killed for want of memory, and where that is counted.
    memory: Option<(String, Arc<Cgroup>)>,
    journal: Arc<Journal>,
    entry: EntryId,
}

impl Keeper {
    async fn keep(mut self) -> VmExit {
        let exited = match &self.watch {
            Some(watch) => watch.exited().await.inspect_err(|e| tracing::warn!("{e}")).is_ok(),
            // It was gone before it could be watched.
            None => true,
        };
        let status = if exited { self.child.wait() } else { wait_elsewhere(self.child).await };
        let last_words = async {
            for log in &mut self.logs {
                let _ = log.await;
            }
            let _ = (&mut self.monitor).await;
        };
        let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
        if let Err(e) = self.journal.strike(self.entry) {
            tracing::warn!("{e}");
        }
        let killed = self.killed.load(Ordering::Acquire);
        let cause = match &self.memory {
            Some((reason, cgroup)) if !killed && is_sigkill(&status) && cgroup.killed_for_memory() => {
                ExitCause::OutOfMemory { reason: reason.clone() }
            }
            _ => judge(status, self.qmp.shutdown_reason(), killed, &self.messages.text()),
        };
        VmExit::with_console(cause, self.console.text())
    }
}

/// Waits where blocking is allowed.
async fn wait_elsewhere(mut child: Child) -> io::Result<ExitStatus> {
    match tokio::task::spawn_blocking(move || child.wait()).await {
        Ok(status) => status,
        Err(e) => Err(io::Error::other(e)),
    }
}

fn is_sigkill(status: &io::Result<ExitStatus>) -> bool {
    status.as_ref().is_ok_and(|status| status.signal() == Some(libc::SIGKILL))
}

/// How a VM ended, by all that is known.
fn judge(
    status: io::Result<ExitStatus>,
    reason: Option<ShutdownReason>,
    killed: bool,
    messages: &str,
) -> ExitCause {
    let status = match status {
        Ok(status) => status,
        Err(e) => {
            return ExitCause::Vmm { status: format!("cannot be waited for: {e}"), message: messages.into() };
        }
    };
    let signal = status.signal();
    if killed && (signal == Some(libc::SIGKILL) || status.success()) {
        return ExitCause::Killed;
    }
    match reason {
        Some(ShutdownReason::GuestShutdown) if status.success() => ExitCause::PoweredOff,
        Some(ShutdownReason::GuestReset | ShutdownReason::GuestPanic) if status.success() => ExitCause::Reset,
        _ => {
            let status = match (status.code(), signal) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => status.to_string(),
            };
            ExitCause::Vmm { status, message: messages.to_owned() }
        }
    }
}

#[async_trait]
impl Vm for QemuVm {
    fn process(&self) -> ProcessIdentity {
        self.process
    }

    fn agent_endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn acceleration(&self) -> &str {
        &self.acceleration
    }

    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        Ok(self.qmp.execute("stop").await?)
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        Ok(self.qmp.execute("cont").await?)
    }

    async fn kill(&self) -> Result<(), HypervisorError> {
        if self.exit.borrow().is_some() {
            return Ok(());
        }
        self.killed.store(true, Ordering::Release);
        self.process.signal(Signal::KILL)?;
        if tokio::time::timeout(KILL, self.wait()).await.is_err() {
            let (pid, waited) = (self.process.pid, KILL);
            return Err(crate::os::ProcessError::Survives { pid, waited }.into());
        }
        Ok(())
    }

    async fn wait(&self) -> VmExit {
        exit::told(&self.exit, &self.console).await
    }

    fn console_tail(&self) -> String {
        self.console.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let (ok, exit_1, sigkill) = (0, 1 << 8, libc::SIGKILL);
        let guest_off = Some(ShutdownReason::GuestShutdown);
        assert_eq!(judge(Ok(ExitStatus::from_raw(ok)), guest_off, false, ""), ExitCause::PoweredOff);
        assert_eq!(
            judge(Ok(ExitStatus::from_raw(ok)), Some(ShutdownReason::GuestReset), false, ""),
            ExitCause::Reset
        );
        assert_eq!(judge(Ok(ExitStatus::from_raw(sigkill)), None, true, ""), ExitCause::Killed);
        // The guest was quicker.
        assert_eq!(judge(Ok(ExitStatus::from_raw(exit_1)), None, true, "x"), vmm("exit status 1", "x"));
        // Somebody else killed it.
        assert_eq!(judge(Ok(ExitStatus::from_raw(sigkill)), None, false, ""), vmm("signal 9", ""));
        assert_eq!(
            judge(Ok(ExitStatus::from_raw(exit_1)), None, false, "no /dev/x"),
            vmm("exit status 1", "no /dev/x")
        );
        assert_eq!(
            judge(Ok(ExitStatus::from_raw(ok)), Some(ShutdownReason::Other), false, ""),
            vmm("exit status 0", "")
        );
    }

    fn vmm(status: &str, message: &str) -> ExitCause {
        ExitCause::Vmm { status: status.into(), message: message.into() }
    }
}

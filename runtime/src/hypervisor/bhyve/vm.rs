//! A VM and the bhyve process that runs it: their start, their watch, their end.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use skep_protocol::Endpoint;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::boot_files::BootFiles;
use super::vmmapi::{VmName, VmmApi, VmmApiError};
use super::{BhyveError, command, exit, pipes};
use crate::guest::GuestOs;
use crate::hypervisor::log::{Tail, record};
use crate::hypervisor::{HypervisorError, Phase, Place, SpecError, Vm, VmExit, VmSpec, exit as end};
use crate::journal::{Entry, EntryId, Journal};
use crate::os::{ExitWatch, ProcessIdentity, Signal};

/// After bhyve's end, how long its helpers may still hold its pipes.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long a killed process may take to go, and its VM after it.
const KILL: Duration = Duration::from_secs(10);
/// How long making and loading a VM may take: its memory may have to be freed by others first.
const LOAD: Duration = Duration::from_secs(60);
/// How long bhyve may take until its sockets are there.
const START: Duration = Duration::from_secs(20);
/// What Linux has to be told here: a pause of the VM is no lockup.
const PARAMETERS: &str = "nowatchdog rcupdate.rcu_cpu_stall_suppress=1";
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// A bhyve process.
#[derive(Debug)]
pub(super) struct BhyveVm {
    process: ProcessIdentity,
    endpoint: Endpoint,
    acceleration: String,
    console: Tail,
    /// Whether this host has ended it.
    killed: Arc<AtomicBool>,
    exit: watch::Receiver<Option<VmExit>>,
    phases: Vec<Phase>,
}

/// Makes a VM, loads it and starts bhyve.
pub(super) async fn start(binary: &Path, spec: VmSpec, place: &Place) -> Result<BhyveVm, HypervisorError> {
    let arguments = command::arguments(&spec, &place.dir)?;
    let name = VmName::new(&spec.name).map_err(BhyveError::from)?;
    let port = spec.console_ports.first().ok_or(SpecError::NoChannel)?;
    let socket = place.dir.join(&port.socket);
    let api = VmmApi::load().map_err(BhyveError::from)?;
    let acceleration = format!("bhyve ({})", api.soname());

    let device = place.journal.record(Entry::Vm { name: spec.name.clone() })?;
    let machine = Machine { api, name, journal: Arc::clone(&place.journal), device };
    let mut phases = match machine.load(spec).await {
        Ok(phases) => phases,
        Err(e) => {
            if matches!(&e, HypervisorError::Bhyve(BhyveError::Api(VmmApiError::Exists { .. }))) {
                // Somebody else's.
                machine.forget();
            } else {
                machine.destroy().await;
            }
            return Err(e);
        }
    };
    let started = match spawn(binary, arguments, place) {
        Ok(started) => started,
        Err(e) => {
            machine.destroy().await;
            return Err(e);
        }
    };
    phases.push(Phase::over("vmm-executed"));
    let process = started.process;
    let console = started.console.clone();
    let (sender, exit) = watch::channel(None);
    let killed = Arc::new(AtomicBool::new(false));
    let keeper =
        Keeper { started, machine, killed: Arc::clone(&killed), journal: Arc::clone(&place.journal) };
    tokio::spawn(async move {
        // Nobody may be there to hear it.
        sender.send_replace(Some(keeper.keep().await));
    });
    let endpoint = Endpoint::Console(socket.clone());
    let vm = BhyveVm { process, endpoint, acceleration, console, killed, exit, phases };
    if let Err(e) = vm.wait_for_socket(&socket).await {
        vm.kill().await?;
        return Err(e);
    }
    Ok(vm)
}

/// A VM of the kernel's.
struct Machine {
    api: VmmApi,
    name: VmName,
    journal: Arc<Journal>,
    device: EntryId,
}

impl Machine {
    async fn load(&self, spec: VmSpec) -> Result<Vec<Phase>, HypervisorError> {
        let (api, name) = (self.api.clone(), self.name.clone());
        self.bounded("loading", LOAD, move || load(&api, &name, &spec)).await?
    }

    /// Strikes it off as it is.
    fn forget(&self) {
        if let Err(e) = self.journal.strike(self.device) {
            tracing::warn!(vm = %self.name, "{e}");
        }
    }

    /// Destroys the VM and strikes it off. What cannot be destroyed stays in the journal.
    async fn destroy(&self) {
        let (api, name) = (self.api.clone(), self.name.clone());
        let result = self.bounded("destroying", KILL, move || super::destroy_with(&api, &name)).await;
        let result = match result {
            Ok(Ok(_)) => self.journal.strike(self.device).map_err(HypervisorError::from),
            Ok(Err(e)) => Err(e.into()),
            Err(e) => Err(e),
        };
        if let Err(e) = result {
            tracing::warn!(vm = %self.name, "{e}");
        }
    }

    /// Runs what blocks, and waits for it no longer than `limit`.
    async fn bounded<T: Send + 'static>(
        &self,
        what: &'static str,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HypervisorError> {
        match timeout(limit, tokio::task::spawn_blocking(work)).await {
            Ok(Ok(result)) => Ok(result),
            // A panic, or the end of the runtime.
            Ok(Err(_)) | Err(_) => {
                Err(BhyveError::Stuck { what, name: self.name.to_string(), waited: limit }.into())
            }
        }
    }
}

fn load(api: &VmmApi, name: &VmName, spec: &VmSpec) -> Result<Vec<Phase>, HypervisorError> {
    let command_line = match spec.os {
        GuestOs::Linux => format!("{} {PARAMETERS}", spec.cmdline),
        GuestOs::FreeBsd => spec.cmdline.clone(),
    };
    let boot = BootFiles {
        kernel: &spec.kernel,
        initramfs: spec.initramfs.as_deref(),
        command_line: command_line.trim_end(),
        memory: spec.memory.bytes(),
    };
    boot.load(api, name).map(Vec::from)
}

/// A bhyve process with what it says.
struct Started {
    child: Child,
    process: ProcessIdentity,
    entry: EntryId,
    watch: Option<ExitWatch>,
    console: Tail,
    messages: Tail,
    logs: [JoinHandle<()>; 2],
}

fn spawn(
    binary: &Path,
    arguments: Vec<std::ffi::OsString>,
    place: &Place,
) -> Result<Started, HypervisorError> {
    let console_pipe = pipes::output(&place.dir.join("console.pipe"))?;
    let messages_pipe = pipes::output(&place.dir.join("vmm.pipe"))?;
    let (input, input_writer) = pipes::silence()?;
    let mut command = Command::new(binary);
    command.args(arguments);
    tracing::debug!(?command, "bhyve");
    command.env_clear().current_dir("/");
    command.stdin(input).stdout(console_pipe.writer).stderr(messages_pipe.writer);
    let ignore_sigpipe = || {
        // SAFETY: signal(2) with a constant is async-signal-safe.
        let previous = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        if previous == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // A client of a console port that goes away while the guest writes would end bhyve.
    // SAFETY: the closure makes one system call; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(ignore_sigpipe) };
    let (mut child, process, entry) = place.journal.spawn("vmm", command, &[input_writer])?;
    let watch = match process.watch() {
        Ok(watch) => watch,
        Err(e) => {
            // Nobody would reap it.
            let _ = child.kill();
            let _ = child.wait();
            place.journal.strike(entry)?;
            return Err(e.into());
        }
    };
    let (console, messages) = (Tail::default(), Tail::default());
    let log =
        |reader, file: &str, tail: &Tail| tokio::spawn(record(reader, place.dir.join(file), tail.clone()));
    let logs =
        [log(console_pipe.reader, "console.log", &console), log(messages_pipe.reader, "vmm.log", &messages)];
    Ok(Started { child, process, entry, watch, console, messages, logs })
}

/// Waits for the end of a bhyve process, finds out how it came, and destroys its VM.
struct Keeper {
    started: Started,
    machine: Machine,
    killed: Arc<AtomicBool>,
    journal: Arc<Journal>,
}

impl Keeper {
    async fn keep(mut self) -> VmExit {
        let bhyve = &mut self.started;
        if let Some(watch) = &bhyve.watch
            && let Err(e) = watch.exited().await
        {
            tracing::warn!("{e}");
        }
        // It has exited, so this does not block.
        let status = bhyve.child.wait();
        let last_words = async {
            for log in &mut bhyve.logs {
                let _ = log.await;
            }
        };
        let _ = timeout(LAST_WORDS, last_words).await;
        if let Err(e) = self.journal.strike(bhyve.entry) {
            tracing::warn!("{e}");
        }
        self.machine.destroy().await;
        let killed = self.killed.load(Ordering::Acquire);
        let cause = exit::judge(status, killed, &self.started.messages.text());
        VmExit::with_console(cause, self.started.console.text())
    }
}

impl BhyveVm {
    /// bhyve makes its sockets itself.
    async fn wait_for_socket(&self, socket: &Path) -> Result<(), HypervisorError> {
        let deadline = Instant::now() + START;
        while !socket.exists() {
            if let Some(exit) = self.exit.borrow().clone() {
                return Err(BhyveError::Ended(exit).into());
            }
            if Instant::now() > deadline {
                return Err(BhyveError::NoSocket { path: socket.to_owned(), waited: START }.into());
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

#[async_trait]
impl Vm for BhyveVm {
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
        self.signal(Signal::STOP)
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.signal(Signal::CONT)
    }

    async fn kill(&self) -> Result<(), HypervisorError> {
        if self.exit.borrow().is_some() {
            return Ok(());
        }
        self.killed.store(true, Ordering::Release);
        self.process.signal(Signal::KILL)?;
        let limit = KILL + LAST_WORDS + KILL;
        if timeout(limit, self.wait()).await.is_err() {
            return Err(crate::os::ProcessError::Survives { pid: self.process.pid, waited: limit }.into());
        }
        Ok(())
    }

    async fn wait(&self) -> VmExit {
        end::told(&self.exit, &self.console).await
    }

    fn console_tail(&self) -> String {
        self.console.text()
    }
}

impl BhyveVm {
    fn signal(&self, signal: Signal) -> Result<(), HypervisorError> {
        if self.process.signal(signal)? {
            return Ok(());
        }
        match self.exit.borrow().clone() {
            Some(exit) => Err(HypervisorError::Ended(exit)),
            None => Err(HypervisorError::Unsupported {
                hypervisor: "bhyve",
                what: "signal a process that has ended",
            }),
        }
    }
}

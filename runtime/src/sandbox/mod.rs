//! One microVM with its host resources.
//!
//! [`Sandbox::create`] makes a directory and a journal, boots a VM and makes it this sandbox by one call to its agent;
//! [`Sandbox::destroy`] undoes all of it. [`destroy_by_id`] does so from the journal alone, for whoever comes after a
//! kill -9.
//!
//! In the sandbox's directory, mode 0700: `sandbox.json` (what it is), `journal` (what it holds), `share/` (what the
//! guest sees), `resolv.conf` (what CNI plugins say of names), `netns` (the namespace they were told), `agent.sock`, `qmp.sock`, `console.log` and `vmm.log` (bounded), `timings.json`.

mod cmdline;
mod cost;
mod create;
mod dir;
mod forward;
mod isolate;
mod pause;
mod record;
mod state;
mod sweep;
mod timings;
mod undo;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_protocol::{CallError, ConnectError, Session};

use crate::cgroup::{Cgroup, CgroupError, CgroupPath, HostSets};
use crate::config::{Config, PodOptions};
use crate::guest::{GuestError, GuestOs};
use crate::hypervisor::{HypervisorError, Vm, VmExit};
pub use crate::journal::{Entry, EntryId, Journal, JournalError};
use crate::network::{Network, NetworkError, NetworkRequest, Traffic};

pub use cost::Cost;
pub use dir::DirError;
pub use record::{RecordError, SandboxRecord};
pub use state::{State, StateError};
pub use sweep::{GcReport, Listed, destroy_by_id, gc, list};
pub use timings::{Mark, Timings, TimingsFile};
pub use undo::{UndoError, UndoErrors};

use dir::SandboxDir;

/// Mount tag of the share directory in the guest.
pub const SHARE_TAG: &str = "skep";
/// Mount tag of the tree that is a FreeBSD guest's root.
pub const ROOT_TAG: &str = "guest";
/// Where the agent mounts the share directory.
pub const SHARE_MOUNT_POINT: &str = "/run/skep/share";

/// What its containers get as /etc/resolv.conf, in its directory.
const RESOLVER: &str = "resolv.conf";

/// What sandbox is wanted.
#[derive(Debug, Clone)]
pub struct SandboxRequest {
    /// containerd's namespace, or whatever keeps callers apart.
    pub namespace: String,
    /// The caller's name for it; unique in the namespace.
    pub id: String,
    /// The guest's operating system: that of the containers' images.
    pub os: GuestOs,
    /// The guest's; its kernel's own if none.
    pub hostname: Option<String>,
    /// Size of the VM and the like.
    pub options: PodOptions,
    /// Where its network comes from.
    pub network: NetworkRequest,
    /// What its kernel is told.
    pub settings: GuestSettings,
    /// The cgroup of this host where its VMM is counted and limited; that of whoever makes it if none.
    pub cgroup: Option<CgroupPath>,
}

/// What a sandbox's kernel is told before anything runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestSettings {
    /// Size of the /dev/shm that containers of a pod share, bytes; half of the guest's memory if none.
    pub shm_bytes: Option<u64>,
    /// Parameters by their names in the notation of sysctl(8).
    pub sysctls: HashMap<String, String>,
}

/// A sandbox cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The request makes no sense.
    #[error("sandbox {field}: {reason}")]
    Request {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no guest to boot.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Its directory cannot be made.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// Its journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Its VMM cannot be where the host counts it.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its share directory cannot be mounted.
    #[error(transparent)]
    Mount(#[from] crate::os::MountError),
    /// Its state file cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its network cannot be had.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The VM cannot be started.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The VM ended before its agent answered.
    #[error("the VM ended before its agent answered: {exit}")]
    Ended {
        /// How.
        exit: VmExit,
    },
    /// The agent does not answer.
    #[error(
        "{source} (timeouts.boot_s in the configuration is the limit; the VM is run by {acceleration}){}",
        console_suffix(console)
    )]
    Connect {
        /// What was waited for.
        source: ConnectError,
        /// How the VM's instructions are run.
        acceleration: String,
        /// The last lines of the guest's console.
        console: String,
    },
    /// The agent refused to be this sandbox.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Not in this state.
    #[error(transparent)]
    State(#[from] StateError),
    /// No entropy for the guest.
    #[error("cannot read random bytes for the guest: {0}")]
    Random(std::io::Error),
    /// It failed, and something of it is still there.
    #[error("{source}; {undo}")]
    RolledBack {
        /// Why it failed.
        source: Box<SandboxError>,
        /// What is still there.
        undo: UndoErrors,
    },
}

fn console_suffix(console: &str) -> String {
    if console.is_empty() {
        "; its console is silent".into()
    } else {
        format!("; last on its console: {console}")
    }
}

/// A microVM whose agent has answered.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    os: GuestOs,
    options: PodOptions,
    dir: SandboxDir,
    journal: Arc<Journal>,
    network: Arc<Network>,
    /// Where its VMM is counted, if it is in a cgroup of its own.
    cgroup: Option<Arc<Cgroup>>,
    vm: Arc<dyn Vm>,
    session: Session,
    timings: Timings,
    stop_limit: Duration,
    state: Mutex<State>,
    /// Carries connections to the pod's loopback into the guest.
    forwarder: Option<forward::Forwarder>,
    /// Held by whoever destroys it.
    destroying: tokio::sync::Mutex<()>,
}

impl Sandbox {
    /// Makes a sandbox: directory, journal, VM, and the call that tells the guest who it is. When it fails, or when
    /// its future is dropped, everything is undone.
    pub async fn create(config: &Config, request: SandboxRequest) -> Result<Self, SandboxError> {
        create::create(config, request).await
    }

    /// The caller's name for it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its guest's operating system.
    pub fn os(&self) -> GuestOs {
        self.os
    }

    /// Size of its VM and the like.
    pub fn options(&self) -> &PodOptions {
        &self.options
    }

    /// Its directory, mode 0700.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the guest sees at [`SHARE_MOUNT_POINT`]. Mounts go below it, never on it.
    pub fn share_dir(&self) -> &Path {
        self.dir.share()
    }

    /// The connection to its agent.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The process that runs its VM.
    pub fn vmm_pid(&self) -> u32 {
        self.vm.process().pid
    }

    /// What its VM costs this host by now.
    pub fn cost(&self) -> Result<Cost, crate::os::ProcessError> {
        let entries: Vec<_> = self.journal.entries().into_iter().map(|(_, entry)| entry).collect();
        Cost::of(self.vmm_pid(), &entries)
    }

    /// Its VM.
    pub fn vm(&self) -> &Arc<dyn Vm> {
        &self.vm
    }

    /// Where every resource of the host is recorded before it is acquired and struck off after its release.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Its network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Lets its VMM use these processors and memory nodes of this host alone. Whether it can: not
    /// without a cgroup.
    pub fn confine(&self, sets: &HostSets) -> Result<bool, CgroupError> {
        match &self.cgroup {
            Some(cgroup) => cgroup.confine(sets),
            None => Ok(false),
        }
    }

    /// The file that containers without a resolv.conf(5) of their caller's get, if the network says anything about names.
    pub fn resolver(&self) -> Option<std::path::PathBuf> {
        self.network.resolver().map(|_| self.dir.file(RESOLVER))
    }

    /// Takes over the interfaces in its network namespace, unless the guest knows its network already; the answer is
    /// what it has to be told.
    pub async fn take_network(&self) -> Result<Option<skep_protocol::api::Network>, NetworkError> {
        let (network, journal) = (Arc::clone(&self.network), Arc::clone(&self.journal));
        match tokio::task::spawn_blocking(move || network.take(&journal)).await {
            Ok(taken) => taken,
            Err(e) => {
                let source = std::io::Error::other(e);
                Err(NetworkError::System { action: "take over the sandbox's network".into(), source })
            }
        }
    }

    /// What its interfaces carried. Blocks for some system calls.
    pub fn traffic(&self) -> Result<Vec<Traffic>, NetworkError> {
        self.network.traffic()
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when its VM has ended, for whatever reason; any number of callers.
    pub async fn wait_exit(&self) -> VmExit {
        self.vm.wait().await
    }

    /// When each phase of its making was over.
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Writes the timings and the count of round trips to `timings.json`.
    pub fn save_timings(&self) -> Result<(), RecordError> {
        self.timings.save(&self.dir.file("timings.json"), self.session.round_trips())
    }

    /// Powers the guest off, at most for `timeouts.stop_s`, kills the VM, undoes everything in the journal and removes
    /// the directory. Goes on after an error. May be called in every state and again after an error; when nothing is
    /// left it is a success.
    pub async fn destroy(&self) -> Result<(), UndoErrors> {
        let _one_at_a_time = self.destroying.lock().await;
        let stopped = self.state() == State::Paused;
        if self.transition(State::destroy_begins) == Ok(State::Destroyed) {
            return Ok(());
        }
        if stopped {
            // Nobody would hear that it is asked.
            self.kill().await;
        } else {
            self.power_off().await;
        }
        let (dir, journal) = (self.dir.clone(), Arc::clone(&self.journal));
        let result = undo::blocking(move || undo::undo_all(&dir, &journal)).await;
        let ok = result.is_ok();
        let _ = self.transition(|state| Ok(state.destroy_ends(ok)));
        result
    }

    /// Asks the guest to power off; whatever it does, its VM has ended afterwards or the journal still knows it.
    async fn power_off(&self) {
        let ask = async {
            let shutdown = self.session.agent().with_timeout(self.stop_limit);
            if let Err(e) = shutdown.shutdown(&skep_protocol::api::Empty::new()).await {
                // The answer may be lost with the guest.
                tracing::debug!(sandbox = self.id, "shutdown: {e}");
            }
            self.vm.wait().await
        };
        tokio::select! {
            _ = self.vm.wait() => {}
            asked = tokio::time::timeout(self.stop_limit, ask) => {
                if asked.is_err() {
                    tracing::warn!(
                        sandbox = self.id,
                        "the guest has not powered off within {} s and is killed", self.stop_limit.as_secs()
                    );
                }
            }
        }
        self.kill().await;
    }

    async fn kill(&self) {
        if let Some(forwarder) = &self.forwarder {
            forwarder.stop();
        }
        self.session.close().await;
        if let Err(e) = self.vm.kill().await {
            tracing::warn!(sandbox = self.id, "{e}");
        }
    }

    fn transition(
        &self,
        change: impl FnOnce(State) -> Result<State, StateError>,
    ) -> Result<State, StateError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = change(*state)?;
        Ok(*state)
    }
}

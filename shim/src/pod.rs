//! What one shim looks after: a sandbox and the tasks in it.

mod confine;
mod figures;
mod managed;
mod room;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use oci_spec::runtime::LinuxResources;
use skep::{
    cgroup::CgroupPath,
    config::{Config, PodOptions},
    container::{
        Container, CreateRequest, ErrorKind, Exit, Guest, HostHooks, Size, guest_dir, of_network,
        spec::{Context, guest_os, probe_host, rewrite},
        stdio::{StdioRequest, Streams},
    },
    network::{NetworkError, NetworkRequest, cni},
    sandbox::{Entry, GuestSettings, Sandbox, SandboxError, SandboxRequest},
    share::{Rootfs, RootfsMount},
};
use skep_containerd_api::{
    task::CreateTaskRequest,
    topics::{TaskCreate, TaskDelete, TaskIO},
};
use tokio::sync::watch;

use crate::{
    bundle::{Bundle, ShimState},
    convert::{Failure, optional_timestamp},
    events::Publisher,
    poststop::Notes,
    sandbox::Managed,
    task::{Task, lock},
};

/// How long a creation that is given up may take to end.
const GIVE_UP: Duration = Duration::from_secs(2);
/// How long a deletion waits for the exit's event to be on its way.
const REPORT: Duration = Duration::from_secs(10);

/// By it containerd's CRI plugin tells a pod's own container from the others.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// Longest host name that is made up: what DNS allows in a label.
const MAX_HOSTNAME: usize = 63;

enum Slot {
    /// Taken by a creation that is under way; sending `true` gives it up.
    Creating(watch::Sender<bool>),
    Ready(Arc<Task>),
}

/// The sandbox and its tasks.
pub(crate) struct Pod {
    namespace: String,
    group: String,
    socket: PathBuf,
    /// The bundle that this shim was started for.
    bundle: Bundle,
    config: Config,
    /// Where events go.
    pub(crate) publisher: Publisher,
    /// Standard streams that containerd connects to.
    pub(crate) streams: Arc<Streams>,
    /// Locked while the sandbox is made or destroyed.
    sandbox: tokio::sync::Mutex<Option<Arc<Sandbox>>>,
    /// If containerd makes and ends the sandbox by its Sandbox API, and not by tasks.
    managed: Mutex<Option<Arc<Managed>>>,
    tasks: Mutex<HashMap<String, Slot>>,
    overhead_told: figures::Told,
    confinement: confine::Confinement,
}

/// Gives an id back unless the task was made.
struct Reservation<'a> {
    pod: &'a Pod,
    id: &'a str,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut tasks = lock(&self.pod.tasks);
        if matches!(tasks.get(self.id), Some(Slot::Creating(_))) {
            tasks.remove(self.id);
        }
    }
}

impl Pod {
    /// A pod without sandbox or tasks; `state` and `bundle` are those of the `start` that began it.
    pub(crate) fn new(
        namespace: String,
        state: ShimState,
        bundle: Bundle,
        config: Config,
        publisher: Publisher,
    ) -> Self {
        Self {
            namespace,
            group: state.group,
            socket: state.socket,
            bundle,
            config,
            publisher,
            streams: Arc::default(),
            sandbox: tokio::sync::Mutex::new(None),
            managed: Mutex::default(),
            tasks: Mutex::default(),
            overhead_told: figures::Told::default(),
            confinement: confine::Confinement::default(),
        }
    }

    /// A task by its id.
    pub(crate) fn task(&self, id: &str) -> Result<Arc<Task>, Failure> {
        match lock(&self.tasks).get(id) {
            Some(Slot::Ready(task)) => Ok(Arc::clone(task)),
            Some(Slot::Creating(_)) | None => Err(Failure::not_found(&format!("container {id} not found"))),
        }
    }

    /// The processes of this host that stand for its containers and its sandbox.
    fn pids(&self, sandbox: Option<&Sandbox>) -> Vec<u32> {
        let tasks = lock(&self.tasks);
        let containers = tasks.values().filter_map(|slot| match slot {
            Slot::Ready(task) => Some(task.pid()),
            Slot::Creating(_) => None,
        });
        containers.chain(sandbox.map(Sandbox::vmm_pid)).collect()
    }

    /// Whether there is no task, not even one being created, and no sandbox that stays without.
    pub(crate) fn is_done(&self) -> bool {
        lock(&self.tasks).is_empty() && lock(&self.managed).is_none()
    }

    /// Creates a task, with the sandbox if it is the first.
    pub(crate) async fn create(&self, request: &CreateTaskRequest) -> Result<Arc<Task>, Failure> {
        let id = request.id.as_str();
        let (slot, given_up) = watch::channel(false);
        {
            let mut tasks = lock(&self.tasks);
            if tasks.contains_key(id) {
                return Err(Failure::new(
                    ErrorKind::AlreadyExists,
                    &format!("container {id} already exists"),
                ));
            }
            tasks.insert(id.to_owned(), Slot::Creating(slot));
        }
        let reservation = Reservation { pod: self, id };
        let made = Box::pin(self.make(request, given_up.clone())).await;
        let (container, sandbox) = match made {
            Ok((container, sandbox)) if *given_up.borrow() => {
                self.discard(&container, Path::new(&request.bundle)).await;
                self.confinement.remove(id, Some(&sandbox));
                drop(sandbox);
                drop(reservation);
                self.end_if_empty().await;
                return Err(given_up_failure());
            }
            Ok(made) => made,
            Err(failure) => {
                drop(reservation);
                self.end_if_empty().await;
                return Err(failure);
            }
        };
        let task = Task::new(container, sandbox, request);
        lock(&self.tasks).insert(id.to_owned(), Slot::Ready(Arc::clone(&task)));
        self.publisher.publish(&TaskCreate {
            container_id: id.to_owned(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(TaskIO {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                ..TaskIO::default()
            })
            .into(),
            pid: task.pid(),
            ..TaskCreate::default()
        });
        task.report_exit(task.container.init(), &self.publisher);
        task.report_oom(&self.publisher);
        Ok(task)
    }

    /// Gives up a creation that is under way and waits for its end. Its caller may have left without a word: of that
    /// a shim hears only by what comes next.
    pub(crate) async fn give_up(&self, id: &str) {
        let creation = match lock(&self.tasks).get(id) {
            Some(Slot::Creating(give_up)) => give_up.clone(),
            _ => return,
        };
        creation.send_replace(true);
        if tokio::time::timeout(GIVE_UP, creation.closed()).await.is_err() {
            tracing::warn!(container = id, limit = ?GIVE_UP, "its creation has not ended in time");
        }
    }

    async fn discard(&self, container: &Container, bundle: &Path) {
        let _held = container.init().hold().await;
        if let Err(error) = container.delete(false).await {
            tracing::warn!(container = container.id(), %error, "a container nobody waits for any more");
        }
        self.finish_hooks(container, bundle).await;
    }

    /// Where hooks of a container with this bundle are noted.
    fn notes(&self, bundle: &Path) -> Notes {
        let managed = lock(&self.managed).is_some();
        Notes::in_bundle(if managed { self.bundle.clone() } else { Bundle::new(bundle.to_owned()) })
    }

    /// The last hooks of a container that is gone. The note of them goes first: twice would be worse than not at all.
    async fn finish_hooks(&self, container: &Container, bundle: &Path) {
        self.notes(bundle).remove(container.id());
        container.poststop().await;
    }

    async fn make(
        &self,
        request: &CreateTaskRequest,
        mut given_up: watch::Receiver<bool>,
    ) -> Result<(Arc<Container>, Arc<Sandbox>), Failure> {
        if !request.checkpoint.is_empty() {
            return Err(Failure::unimplemented("starting from a checkpoint is not supported yet"));
        }
        let invalid = |error: &dyn std::error::Error| Failure::new(ErrorKind::InvalidArgument, error);
        let bundle = Bundle::new(PathBuf::from(&request.bundle));
        let mut spec = bundle.spec().map_err(|error| invalid(&error))?;
        let annotations = spec.annotations().clone().unwrap_or_default();
        let mut options =
            PodOptions::from_annotations(&self.config, &annotations).map_err(|error| invalid(&error))?;
        let host_sets = if annotations.contains_key(CONTAINER_TYPE) {
            Some(confine::take_from(&mut spec)?)
        } else {
            options.make_room(&self.config, &annotations, room::own_limits(&spec), room::host());
            None
        };
        let stdio = StdioRequest::parse(&request.stdin, &request.stdout, &request.stderr, request.terminal)
            .map_err(skep::container::ContainerError::from)?;
        if let Some(process) = spec.process_mut() {
            process.set_terminal(Some(request.terminal));
        }
        let freebsd = bundle.freebsd().map_err(|error| invalid(&error))?;
        let os = options.os.unwrap_or_else(|| guest_os(&spec, freebsd.as_ref()));
        let rootfs = rootfs(request, bundle.dir(), &spec);
        let shm_bytes = shared_memory(&spec, &annotations)?;
        let hooks = spec
            .hooks()
            .as_ref()
            .and_then(|hooks| HostHooks::new(hooks, &request.id, bundle.dir().to_owned(), &spec));

        let named = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
        let cgroup = named.map(|path| CgroupPath::parse(&path.to_string_lossy())).transpose();
        let cgroup = cgroup.map_err(|error| invalid(&error))?.flatten();

        let mut slot = self.sandbox.lock().await;
        let managed = lock(&self.managed).clone();
        if let Some(managed) = &managed {
            managed.furnish(&mut spec, slot.as_deref())?;
        }
        let settings = GuestSettings { shm_bytes, sysctls: pod_sysctls(&spec, &annotations) };
        let guest_dir = guest_dir(&request.id);
        let sandbox_pids = self.pids(slot.as_deref());
        let context = Context {
            id: &request.id,
            bundle: bundle.dir(),
            guest_dir: &guest_dir,
            sandbox_pids: &sandbox_pids,
            os,
            freebsd: freebsd.as_ref(),
        };
        let mut spec = rewrite(spec, &context, &probe_host).map_err(skep::container::ContainerError::from)?;
        for note in &spec.notes {
            tracing::info!(container = request.id, "{note}");
        }
        let size = slot.as_ref().map_or_else(|| Size::from(&options), |sandbox| sandbox.size());
        spec.check_size(size)?;
        let sandbox = if let Some(sandbox) = &*slot {
            if sandbox.os() != os {
                return Err(Failure::unimplemented(&format!(
                    "container {} is for {os}, its sandbox runs {}: a pod has one kernel",
                    request.id,
                    sandbox.os()
                )));
            }
            if let NetworkRequest::Join(path) = &spec.network
                && !sandbox.network().is(path)
            {
                return Err(Failure::unimplemented(&format!(
                    "container {} asks for the network namespace {}, which is not that of its sandbox",
                    request.id,
                    path.display()
                )));
            }
            Arc::clone(sandbox)
        } else {
            let network =
                cni::choose(&self.config, spec.network.clone(), &annotations, &self.namespace, &self.group)
                    .map_err(|error| sandbox_failure(&NetworkError::from(error).into()))?;
            let request = SandboxRequest {
                namespace: self.namespace.clone(),
                id: self.group.clone(),
                os,
                hostname: spec.hostname.clone(),
                options,
                network,
                settings,
                cgroup,
            };
            let sandbox = tokio::select! {
                booted = self.boot(request) => booted?,
                // Dropping the boot undoes it.
                Ok(_) = given_up.wait_for(|given_up| *given_up) => return Err(given_up_failure()),
            };
            slot.insert(sandbox).clone()
        };
        drop(slot);
        if let Some(file) = sandbox.resolver() {
            spec.provide_resolver(&file, &context).map_err(skep::container::ContainerError::from)?;
        }
        // Noted before anything is hooked: whoever cleans up after a kill of this process owes them as well.
        let notes = self.notes(bundle.dir());
        if let Some(hooks) = hooks.as_ref().filter(|hooks| hooks.has_poststop()) {
            notes.write(&request.id, hooks).map_err(|error| Failure::new(ErrorKind::Unknown, &error))?;
        }
        let call_limit = self.config.timeouts.call_s.duration();
        let guest = Arc::clone(&sandbox) as Arc<dyn Guest>;
        if annotations.get(CONTAINER_TYPE).is_some_and(|kind| kind == "sandbox") {
            let container = Container::placeholder(guest, &request.id, stdio, hooks, call_limit).await;
            if container.is_err() {
                notes.remove(&request.id);
            }
            return Ok((container?, sandbox));
        }
        let id = request.id.as_str();
        if let Some(sets) = host_sets
            && let Err(failure) = self.confinement.add(id, sets, &sandbox)
        {
            notes.remove(id);
            return Err(failure);
        }
        let request = CreateRequest {
            id: id.to_owned(),
            spec,
            rootfs,
            rootfs_mode: options.rootfs,
            stdio,
            namespace: self.namespace.clone(),
            streams: Arc::clone(&self.streams),
            hooks,
            shm_bytes,
            call_limit,
        };
        let container = Container::create(guest, request).await;
        if container.is_err() {
            notes.remove(id);
            self.confinement.remove(id, Some(&sandbox));
        }
        Ok((container?, sandbox))
    }

    async fn boot(&self, mut request: SandboxRequest) -> Result<Arc<Sandbox>, Failure> {
        // Under runc a container without a name of its own has the host's; a guest is not the host.
        request.hostname.get_or_insert_with(|| self.group.chars().take(MAX_HOSTNAME).collect());
        let sandbox =
            Sandbox::create(&self.config, request).await.map_err(|error| sandbox_failure(&error))?;
        let sandbox = Arc::new(sandbox);
        // So that whoever undoes this sandbox after a kill of the shim removes the shim's socket as well, and nobody
        // finds a shim whose sandbox is gone.
        if let Err(error) = sandbox.journal().record(Entry::File { path: self.socket.clone() }) {
            tracing::warn!(%error, "the shim's socket is not in the journal");
        }
        let watched = Arc::clone(&sandbox);
        tokio::spawn(async move {
            let exit = watched.wait_exit().await;
            tracing::info!(sandbox = watched.id(), "the VM has ended: {exit}");
        });
        Ok(sandbox)
    }

    /// Removes a task whose init does not run, and with the last the sandbox.
    pub(crate) async fn delete(&self, task: &Arc<Task>) -> Result<Exit, Failure> {
        let id = task.container.id();
        let init = task.container.init();
        // Outside of the lock: a guest that never ends its output keeps nobody else waiting.
        task.container.drain().await;
        {
            // Held until the sandbox is gone, so that a creation that comes meanwhile makes a new one.
            let mut slot = self.sandbox.lock().await;
            let held = init.hold().await;
            // A sandbox of the Sandbox API stays, unless it was stopped before.
            let stays = lock(&self.managed).is_some();
            let last = !stays && lock(&self.tasks).len() == 1;
            task.container.delete(last || slot.is_none()).await?;
            drop(held);
            if last {
                destroy(&mut slot).await;
            }
            self.confinement.remove(id, slot.as_deref());
        }
        self.finish_hooks(&task.container, Path::new(&task.bundle)).await;
        // Never started and never killed: deleting it was its end.
        let exit = match init.exit() {
            Some(exit) => exit,
            None => init.wait().await,
        };
        task.reported("", REPORT).await;
        lock(&self.tasks).remove(id);
        self.publisher.publish(&TaskDelete {
            container_id: id.to_owned(),
            pid: task.pid(),
            exit_status: exit.status,
            exited_at: optional_timestamp(Some(exit.at)),
            ..TaskDelete::default()
        });
        Ok(exit)
    }

    /// Changes a task's limits.
    pub(crate) async fn update(&self, id: &str, mut resources: LinuxResources) -> Result<(), Failure> {
        let task = self.task(id)?;
        if self.confinement.has(id) {
            let change = confine::take(&mut resources)?;
            if let Some(sandbox) = &*self.sandbox.lock().await {
                self.confinement.update(id, change, sandbox)?;
            }
        }
        Ok(task.container.update(resources).await?)
    }

    /// Destroys the sandbox, whatever runs in it.
    pub(crate) async fn end(&self) {
        let creations: Vec<_> = lock(&self.tasks)
            .iter()
            .filter(|(_, slot)| matches!(slot, Slot::Creating(_)))
            .map(|(id, _)| id.clone())
            .collect();
        for id in creations {
            self.give_up(&id).await;
        }
        destroy(&mut *self.sandbox.lock().await).await;
    }

    async fn end_if_empty(&self) {
        let mut slot = self.sandbox.lock().await;
        if self.is_done() {
            destroy(&mut slot).await;
        }
    }
}

/// What can't be undone stays in the journal for `delete` and `skep gc`: a task that can't be deleted helps nobody.
async fn destroy(slot: &mut Option<Arc<Sandbox>>) {
    if let Some(sandbox) = slot.take()
        && let Err(errors) = sandbox.destroy().await
    {
        tracing::error!(sandbox = sandbox.id(), "{errors}");
    }
}

/// How large the /dev/shm of a container's pod has to be: what an annotation says, or what the caller made on this host
/// for all of the pod.
fn shared_memory(
    spec: &oci_spec::runtime::Spec,
    annotations: &HashMap<String, String>,
) -> Result<Option<u64>, Failure> {
    let asked = PodOptions::shm_bytes(annotations)
        .map_err(|error| Failure::new(ErrorKind::InvalidArgument, &error))?;
    let made = || {
        let mounts = spec.mounts().iter().flatten();
        let shared = mounts.filter(|mount| mount.destination() == Path::new("/dev/shm"));
        let source =
            shared.filter_map(|mount| mount.source().as_deref()).find(|source| source.is_absolute())?;
        // Of a directory on a disk the size says nothing.
        skep::os::memory_filesystem_bytes(source)
    };
    Ok(asked.or_else(made))
}

/// Kernel parameters of the pod, which its own container brings; other containers bring their own to the guest.
fn pod_sysctls(
    spec: &oci_spec::runtime::Spec,
    annotations: &HashMap<String, String>,
) -> HashMap<String, String> {
    if annotations.get(CONTAINER_TYPE).is_none_or(|kind| kind != "sandbox") {
        return HashMap::new();
    }
    spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default()
}

fn given_up_failure() -> Failure {
    Failure::new(ErrorKind::Unavailable, "the creation was given up")
}

fn rootfs(request: &CreateTaskRequest, bundle: &Path, spec: &oci_spec::runtime::Spec) -> Rootfs {
    if request.rootfs.is_empty() {
        // The caller has it ready, where the specification says.
        let path = spec.root().as_ref().map_or(Path::new("rootfs"), |root| root.path());
        return Rootfs::Directory(bundle.join(path));
    }
    Rootfs::Mounts(
        request
            .rootfs
            .iter()
            .map(|mount| RootfsMount {
                fstype: mount.type_.clone(),
                source: mount.source.clone().into(),
                target: mount.target.clone(),
                options: mount.options.clone(),
            })
            .collect(),
    )
}

fn sandbox_failure(error: &SandboxError) -> Failure {
    let kind = match error {
        SandboxError::Request { .. } => ErrorKind::InvalidArgument,
        SandboxError::Network(error) => of_network(error),
        SandboxError::Guest(_) | SandboxError::Hypervisor(_) => ErrorKind::FailedPrecondition,
        SandboxError::Dir(skep::sandbox::DirError::Exists { .. }) => ErrorKind::AlreadyExists,
        SandboxError::Connect { .. } => ErrorKind::DeadlineExceeded,
        SandboxError::Ended { .. } => ErrorKind::Unavailable,
        _ => ErrorKind::Unknown,
    };
    Failure::new(kind, error)
}

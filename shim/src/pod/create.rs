//! Creating a task, and the sandbox with the first.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use skep::{
    cgroup::CgroupPath,
    config::PodOptions,
    container::{
        Container, ContainerError, CreateRequest, ErrorKind, Guest, HostHooks, Size, guest_dir,
        spec::{Context, guest_os, probe_host, rewrite},
        stdio::StdioRequest,
    },
    network::{NetworkError, NetworkRequest, cni},
    sandbox::{GuestSettings, Sandbox, SandboxRequest},
};
use skep_containerd_api::{
    task::CreateTaskRequest,
    topics::{TaskCreate, TaskIO},
};
use tokio::sync::watch;

use super::{
    Pod, Slot,
    asked::{self, CONTAINER_TYPE},
    boot::sandbox_failure,
    confine, given_up_failure, room,
};
use crate::{
    bundle::Bundle,
    convert::Failure,
    task::{Task, lock},
};

/// How long a creation that is given up may take to end.
const GIVE_UP: Duration = Duration::from_secs(2);
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
            .map_err(ContainerError::from)?;
        if let Some(process) = spec.process_mut() {
            process.set_terminal(Some(request.terminal));
        }
        let freebsd = bundle.freebsd().map_err(|error| invalid(&error))?;
        let os = options.os.unwrap_or_else(|| guest_os(&spec, freebsd.as_ref()));
        let rootfs = asked::rootfs(request, bundle.dir(), &spec);
        let shm_bytes = asked::shared_memory(&spec, &annotations)?;
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
        let settings = GuestSettings { shm_bytes, sysctls: asked::pod_sysctls(&spec, &annotations) };
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
        let mut spec = rewrite(spec, &context, &probe_host).map_err(ContainerError::from)?;
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
            spec.provide_resolver(&file, &context).map_err(ContainerError::from)?;
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
}

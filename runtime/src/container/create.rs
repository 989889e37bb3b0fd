//! Making a container, with everything undone when that fails.

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use skep_protocol::api;

use super::{
    Container, ContainerError, Guest, GuestSpec, HostHooks, Process, Size,
    guest::explain,
    mounting::{blocking, detach},
    resources, stand_in,
    stdio::{Place, Stdio, StdioRequest, Streams},
    watch::watch,
};
use crate::{
    config::RootfsMode,
    sandbox::SHARE_MOUNT_POINT,
    share::{Rootfs, Share, directory_name},
};

/// What a container is made of.
#[derive(Debug)]
pub struct CreateRequest {
    /// Its id.
    pub id: String,
    /// Its specification, rewritten for the guest.
    pub spec: GuestSpec,
    /// Where its root comes from.
    pub rootfs: Rootfs,
    /// How its root is made in the guest.
    pub rootfs_mode: RootfsMode,
    /// Standard streams of init.
    pub stdio: StdioRequest,
    /// containerd's namespace, which loggers are told.
    pub namespace: String,
    /// The streams that have names.
    pub streams: Arc<Streams>,
    /// Hooks that run on the host.
    pub hooks: Option<HostHooks>,
    /// What the /dev/shm that it shares with its pod has to hold at least, bytes.
    pub shm_bytes: Option<u64>,
    /// Longest wait for an answer of the agent.
    pub call_limit: Duration,
}

/// The container's directory as the guest sees it, for [`super::spec::Context`].
pub fn guest_dir(id: &str) -> String {
    format!("{SHARE_MOUNT_POINT}/{}", directory_name(id))
}

impl GuestSpec {
    /// Refuses what a VM of that size does not have and its kernel would not take. Limits beyond it are none.
    pub fn check_size(&self, size: Size) -> Result<(), ContainerError> {
        let linux = self.spec.linux().as_ref();
        match linux.and_then(|linux| linux.resources().as_ref()) {
            Some(resources) => resources::check_sets("config.json: linux.resources", resources, size),
            None => Ok(()),
        }
    }
}

impl Container {
    /// Creates the container and its init process, which waits for [`Container::start`]. When it fails, nothing of
    /// the container is left on the host.
    pub async fn create(guest: Arc<dyn Guest>, request: CreateRequest) -> Result<Arc<Self>, ContainerError> {
        let CreateRequest {
            id,
            spec,
            rootfs,
            rootfs_mode,
            stdio: named,
            namespace,
            streams,
            hooks,
            shm_bytes,
            call_limit,
        } = request;
        let json = spec.to_json().map_err(|error| ContainerError::Internal {
            operation: "encoding the specification",
            reason: error.to_string(),
        })?;
        let guest_rootfs = spec.spec.root().as_ref().map(|root| root.path().display().to_string());
        let place = Place { namespace: &namespace, id: &id, journal: guest.journal(), streams: &streams };
        let stdio = Stdio::open(&named, &place).await?;

        let setup = stand_in::setup(guest.share_dir(), &id, &spec, rootfs_mode);
        let share = {
            let guest = Arc::clone(&guest);
            let dir = guest.share_dir().join(directory_name(&id));
            // With an overlay in the guest nothing is ever written to what lies below.
            let readonly = rootfs_mode == RootfsMode::Overlay;
            blocking("mounting", move || {
                Share::attach(guest.journal(), &dir, &rootfs, readonly, &spec.volumes)
            })
            .await??
        };
        let share = Arc::new(Mutex::new(share));
        guest.mark("rootfs");
        let starting = match stand_in::begin(&*guest, &id) {
            Ok(starting) => starting,
            Err(error) => {
                detach(&guest, &share).await;
                return Err(error);
            }
        };

        let created = async {
            let (tokens, pumps) = stdio.connect(guest.session()).await?;
            let request = api::CreateContainerRequest {
                container_id: id.clone(),
                spec: json,
                rootfs: guest_rootfs.unwrap_or_default(),
                rootfs_mode: match rootfs_mode {
                    RootfsMode::Shared => api::RootfsMode::ROOTFS_MODE_SHARED,
                    RootfsMode::Overlay => api::RootfsMode::ROOTFS_MODE_OVERLAY,
                }
                .into(),
                stdio: Some(tokens).into(),
                shm_bytes: shm_bytes.unwrap_or_default(),
                ..api::CreateContainerRequest::default()
            };
            if let Err(error) =
                guest.session().agent().with_timeout(call_limit).create_container(&request).await
            {
                // Before its files are unmounted, should it have them.
                stand_in::give_up(starting).await;
                return Err(explain(&*guest, "creating the container", error).await);
            }
            // What the container's mounts are made on is there now.
            Ok((pumps, stand_in::enter(starting, &setup).await?))
        };
        let (pumps, (stand_in, events)) = match created.await {
            Ok(created) => created,
            Err(error) => {
                detach(&guest, &share).await;
                return Err(error);
            }
        };
        guest.mark("container-created");

        let init = Arc::new(Process::new(&id, "", named, pumps));
        watch(&guest, &init);
        let container = Arc::new(Self {
            id,
            guest,
            init,
            execs: Mutex::default(),
            share,
            paused: AtomicBool::new(false),
            oom: tokio::sync::watch::Sender::new(0),
            placeholder: false,
            namespace,
            streams,
            hooks,
            call_limit,
            stand_in,
        });
        stand_in::follow(&container, events);
        container.run_create_hooks().await?;
        Ok(container)
    }

    /// Runs the hooks that belong to its making. When one fails, nothing of the container is left.
    pub(super) async fn run_create_hooks(&self) -> Result<(), ContainerError> {
        let Some(hooks) = &self.hooks else { return Ok(()) };
        if let Err(error) = hooks.create(self.pid(), self.guest.journal()).await {
            if let Err(error) = self.delete(false).await {
                tracing::warn!(%error, "undoing a container whose hooks failed");
            }
            self.poststop().await;
            return Err(error.into());
        }
        self.guest.mark("hooks");
        Ok(())
    }
}

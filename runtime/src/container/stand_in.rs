//! The process of this host that stands for a container: making it, and what it does to the container.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, Weak},
};

use tokio::sync::mpsc;

use super::{Container, ContainerError, Guest, spec::GuestSpec};
use crate::{
    config::RootfsMode,
    share::directory_name,
    stand_in::{Event, Mounted, Setup, StandIn, StandInError, Starting},
};

const SIGKILL: u32 = 9;

/// What container `id` has on this host, below `share_dir`. To be asked before its volumes are taken from `spec`.
pub(super) fn setup(share_dir: &Path, id: &str, spec: &GuestSpec, mode: RootfsMode) -> Setup {
    let dir = share_dir.join(directory_name(id));
    let mounts = spec.spec.mounts().iter().flatten().map(|mount| {
        let volume = mount.source().as_ref().and_then(|source| {
            spec.volumes
                .iter()
                .find(|volume| source.ends_with(format!("{}/{}", directory_name(id), volume.name)))
        });
        Mounted {
            destination: mount.destination().clone(),
            source: volume.map(|volume| dir.join(&volume.name)),
        }
    });
    Setup {
        // What is written to an overlay stays in the guest.
        root: (mode == RootfsMode::Shared).then(|| dir.join("rootfs")),
        readonly: spec.spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false),
        mounts: mounts.collect(),
        scratch: share_dir.to_owned(),
    }
}

/// Starts the process, where one is wanted.
pub(super) fn begin(guest: &dyn Guest, id: &str) -> Result<Option<Starting>, ContainerError> {
    let command: Option<Command> = guest.stand_in(id).map_err(StandInError::from)?;
    Ok(command.map(|command| StandIn::start(guest.journal(), command)).transpose()?)
}

/// What a process that stands for a container is, and what happens to it.
pub(super) type Ready = (Option<StandIn>, Option<mpsc::Receiver<Event>>);

/// Makes it show the container's files.
pub(super) async fn enter(starting: Option<Starting>, setup: &Setup) -> Result<Ready, ContainerError> {
    match starting {
        Some(starting) => {
            let (stand_in, events) = starting.enter(setup).await?;
            Ok((Some(stand_in), Some(events)))
        }
        None => Ok((None, None)),
    }
}

/// Ends one that nobody needs.
pub(super) async fn give_up(starting: Option<Starting>) {
    if let Some(starting) = starting {
        starting.give_up().await;
    }
}

/// Does to the container what is done to the process, and ends it with the container's init.
pub(super) fn follow(container: &Arc<Container>, events: Option<mpsc::Receiver<Event>>) {
    let Some(events) = events else { return };
    let init = Arc::clone(container.init());
    let container = Arc::downgrade(container);
    tokio::spawn(async move {
        tokio::select! {
            _ = init.wait() => {}
            () = pass_on(&container, events) => { let _ = init.wait().await; }
        }
        let container = container.upgrade();
        if let Some(stand_in) = container.as_ref().and_then(|container| container.stand_in.as_ref()) {
            stand_in.end().await;
        }
    });
}

async fn pass_on(container: &Weak<Container>, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        let Some(container) = container.upgrade() else { return };
        let signal = match event {
            Event::Signal(signal) => signal,
            Event::Killed => SIGKILL,
        };
        if let Err(error) = container.kill(container.init(), signal, false).await {
            tracing::info!(container = container.id(), signal, %error, "passing on a signal");
        }
    }
}

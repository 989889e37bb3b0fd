//! A pod's own container, Kubernetes' "pause".
//!
//! Its one purpose under other runtimes is to hold the pod's namespaces, and here the guest is those. So nothing of it
//! is made in the guest and its image is not looked at; yet it is a container that can be started, waited for, killed
//! and deleted, as its callers do. It ends with the VM.

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use super::{
    Container, ContainerError, Exit, Guest, HostHooks, Process, ProcessState, stand_in,
    stdio::{Pumps, StdioRequest},
};
use crate::{
    share::{Share, directory_name},
    stand_in::Setup,
};

/// Signals that end a pause program in good order (SIGINT, SIGTERM) and the one that ends any.
const ASKED: [u32; 2] = [2, 15];
const SIGKILL: u32 = 9;

impl Container {
    /// A container that stands for `guest` itself. What its streams are named is kept for those who ask.
    pub async fn placeholder(
        guest: Arc<dyn Guest>,
        id: &str,
        stdio: StdioRequest,
        hooks: Option<HostHooks>,
        call_limit: Duration,
    ) -> Result<Arc<Self>, ContainerError> {
        let pumps = Pumps::idle(stdio.terminal);
        let init = Arc::new(Process::new(id, "", stdio, pumps));
        let share = Share::none(&guest.share_dir().join(directory_name(id)));
        let (ended, process) = (Arc::clone(&guest), Arc::clone(&init));
        tokio::spawn(async move {
            tokio::select! {
                end = ended.ended() => process.ended(Exit::with_guest(end)),
                _ = process.wait() => {}
            }
        });
        let setup = Setup { scratch: guest.share_dir().to_owned(), ..Setup::default() };
        let starting = stand_in::begin(&*guest, id)?;
        let (stand_in, events) = stand_in::enter(starting, &setup).await?;
        let container = Arc::new(Self {
            id: id.to_owned(),
            guest,
            init,
            execs: Mutex::default(),
            share: Arc::new(Mutex::new(share)),
            paused: AtomicBool::new(false),
            oom: tokio::sync::watch::Sender::new(0),
            placeholder: true,
            namespace: String::new(),
            streams: Arc::default(),
            hooks,
            call_limit,
            stand_in,
        });
        stand_in::follow(&container, events);
        container.run_create_hooks().await?;
        Ok(container)
    }

    /// Whether this stands for the sandbox and nothing of it is in the guest.
    pub fn is_placeholder(&self) -> bool {
        self.placeholder
    }

    /// What a signal does to a pause program.
    pub(super) fn signal_placeholder(&self, signal: u32) {
        if signal == SIGKILL {
            self.init.ended(Exit::signalled(signal));
        } else if ASKED.contains(&signal) && self.init.state() == ProcessState::Running {
            self.init.ended(Exit::of(0));
        }
    }
}

//! The end of a container.

use std::{sync::Arc, time::Duration};

use super::{
    Container, ContainerError, ProcessState,
    instance::{SIGKILL, state_error},
    mounting::detach,
    stdio::Patience,
};

/// How output may take to reach its reader after a process has ended and is deleted. containerd's CRI plugin gives a
/// deletion 10 s, and a process can have left behind what a pipe and a stream's window hold.
pub(super) const DRAIN: Patience =
    Patience { idle: Duration::from_secs(2), most: Duration::from_secs(6), bytes: 2 << 20 };
/// How long a process may take to end after it was killed for its container's deletion.
const KILL: Duration = Duration::from_secs(5);

impl Container {
    /// Removes the container, unless it runs, from host and guest. With `last`, the sandbox will be destroyed next and
    /// the guest is not asked. The caller has [`super::Process::hold`] of init.
    ///
    /// Works in every state; what could not be undone stays in the sandbox's journal.
    pub async fn delete(&self, last: bool) -> Result<(), ContainerError> {
        match self.init.state() {
            ProcessState::Running => return Err(state_error("delete", &self.init)),
            ProcessState::Created if !last => self.kill_created().await,
            ProcessState::Created | ProcessState::Stopped => {}
        }
        self.finish_output().await;
        self.lock_execs().clear();
        if let Some(stand_in) = &self.stand_in {
            // Before its files are unmounted, which it has mounted as well.
            stand_in.end().await;
        }
        if last {
            // Destroying the sandbox undoes the mounts after the VM has let go of them.
            return Ok(());
        }
        if self.placeholder {
            return Ok(());
        }
        if let Err(error) = self.agent().delete_process(&self.init.request()).await {
            tracing::warn!(container = self.id, %error, "deleting in the guest");
        }
        detach(&self.guest, &self.share).await;
        Ok(())
    }

    /// Lets the output of a container that has ended arrive, as its deletion does: for who deletes several, since a guest
    /// may never end any.
    pub async fn drain(&self) {
        if self.init.state() == ProcessState::Stopped {
            self.finish_output().await;
        }
    }

    /// Of all processes at once: each may take its time.
    async fn finish_output(&self) {
        let mut all = tokio::task::JoinSet::new();
        for process in self.execs().into_iter().chain([Arc::clone(&self.init)]) {
            all.spawn(async move { process.finish_output(DRAIN).await });
        }
        all.join_all().await;
    }

    async fn kill_created(&self) {
        if let Err(error) = self.kill(&self.init, SIGKILL, true).await {
            tracing::debug!(container = self.id, %error, "killing for deletion");
        }
        if tokio::time::timeout(KILL, self.init.wait()).await.is_err() {
            tracing::warn!(container = self.id, limit = ?KILL, "init did not end after it was killed");
        }
    }
}

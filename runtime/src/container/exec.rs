//! Processes that are added to a container.

use std::sync::Arc;

use skep_protocol::api;

use super::{
    Container, ContainerError, Process, ProcessState,
    delete::DRAIN,
    guest::explain,
    instance::state_error,
    spec::rewrite_process,
    stdio::{Place, Stdio, StdioRequest},
};

/// Most processes that may be added to one container at a time.
const MAX_EXECS: usize = 256;
impl Container {
    /// Adds a process; it waits for [`Container::start`].
    pub async fn exec(
        &self,
        exec: &str,
        process: oci_spec::runtime::Process,
        streams: StdioRequest,
    ) -> Result<Arc<Process>, ContainerError> {
        if self.init.state() == ProcessState::Stopped {
            return Err(state_error("exec in", &self.init));
        }
        if self.placeholder {
            let state = "the sandbox's own, which has no file system: exec in one of the pod's containers";
            return Err(ContainerError::State { operation: "exec in", what: self.init.name(), state });
        }
        if self.is_paused() {
            return Err(ContainerError::State {
                operation: "exec in",
                what: self.init.name(),
                state: "paused",
            });
        }
        {
            let execs = self.lock_execs();
            if execs.contains_key(exec) {
                return Err(ContainerError::ProcessExists {
                    container: self.id.clone(),
                    exec: exec.to_owned(),
                });
            }
            if execs.len() >= MAX_EXECS {
                return Err(ContainerError::Invalid {
                    what: "exec".into(),
                    reason: format!("container {} has {MAX_EXECS} processes already", self.id),
                });
            }
        }
        let mut notes = Vec::new();
        let mut process = rewrite_process(process, self.guest.os(), &mut notes)?;
        process.set_terminal(Some(streams.terminal));
        let json = serde_json::to_vec(&process).map_err(|error| ContainerError::Internal {
            operation: "encoding the process",
            reason: error.to_string(),
        })?;
        let place = Place {
            namespace: &self.namespace,
            id: exec,
            journal: self.guest.journal(),
            streams: &self.streams,
        };
        let stdio = Stdio::open(&streams, &place).await?;
        let (tokens, pumps) = stdio.connect(self.guest.session()).await?;
        let request = api::ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec.to_owned(),
            process: json,
            stdio: Some(tokens).into(),
            ..api::ExecProcessRequest::default()
        };
        if let Err(error) = self.agent().exec_process(&request).await {
            return Err(explain(&*self.guest, "adding the process", error).await);
        }
        let process = Arc::new(Process::new(&self.id, exec, streams, pumps));
        self.lock_execs().insert(exec.to_owned(), Arc::clone(&process));
        Ok(process)
    }

    /// Forgets a process that was added. The caller has [`Process::hold`].
    pub async fn delete_exec(&self, process: &Process) -> Result<(), ContainerError> {
        if process.state() == ProcessState::Running {
            return Err(state_error("delete", process));
        }
        process.finish_output(DRAIN).await;
        // The agent may have forgotten it with its container, or be gone: neither keeps it here.
        if let Err(error) = self.agent().delete_process(&process.request()).await {
            tracing::debug!(process = process.name(), %error, "deleting in the guest");
        }
        self.lock_execs().remove(process.exec_id());
        Ok(())
    }
}

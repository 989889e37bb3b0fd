//! The task service.

use std::sync::Arc;

use async_trait::async_trait;
use oci_spec::runtime::LinuxResources;
use protobuf::well_known_types::{any::Any, empty::Empty};
use skep::container::{ErrorKind, Process, ProcessState, stdio::StdioRequest};
use skep_containerd_api::{
    Task as TaskApi,
    details::ProcessDetails,
    process::{ProcessInfo, Status},
    task::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
        CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest,
        PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
        StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest,
        WaitRequest, WaitResponse,
    },
    topics::{TaskExecAdded, TaskExecStarted, TaskPaused, TaskResumed, TaskStart},
};
use tokio::sync::Notify;
use ttrpc::r#async::TtrpcContext;

use crate::{
    convert::{Failure, any, optional_timestamp},
    pod::Pod,
    task::{GivenStdio, Task},
};

/// Longest exec id: containerd's own limit for identifiers.
const MAX_EXEC_ID: usize = 76;

/// Serves containerd.
#[derive(Clone)]
pub(crate) struct Service {
    pod: Arc<Pod>,
    finished: Arc<Notify>,
}

impl Service {
    /// A service over `pod` that tells `finished` when containerd needs it no more.
    pub(crate) fn new(pod: Arc<Pod>, finished: Arc<Notify>) -> Self {
        Self { pod, finished }
    }

    fn find(&self, id: &str, exec: &str) -> Result<(Arc<Task>, Arc<Process>), Failure> {
        let task = self.pod.task(id)?;
        let process = task.container.process(exec)?;
        Ok((task, process))
    }

    async fn start_process(&self, request: &StartRequest) -> Result<StartResponse, Failure> {
        let (task, process) = self.find(&request.id, &request.exec_id)?;
        let _held = process.hold().await;
        task.container.start(&process).await?;
        let pid = task.pid();
        if request.exec_id.is_empty() {
            self.pod.publisher.publish(&TaskStart {
                container_id: request.id.clone(),
                pid,
                ..TaskStart::default()
            });
            if let Err(error) = task.sandbox.save_timings() {
                tracing::warn!(%error, "timings");
            }
        } else {
            self.pod.publisher.publish(&TaskExecStarted {
                container_id: request.id.clone(),
                exec_id: request.exec_id.clone(),
                pid,
                ..TaskExecStarted::default()
            });
            task.report_exit(&process, &self.pod.publisher);
        }
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn delete_process(&self, request: &DeleteRequest) -> Result<DeleteResponse, Failure> {
        if request.exec_id.is_empty() {
            self.pod.give_up(&request.id).await;
        }
        let (task, process) = self.find(&request.id, &request.exec_id)?;
        let exit = if request.exec_id.is_empty() {
            Some(self.pod.delete(&task).await?)
        } else {
            {
                let _held = process.hold().await;
                task.container.delete_exec(&process).await?;
            }
            task.reported(&request.exec_id, std::time::Duration::from_secs(10)).await;
            task.forget(&request.exec_id);
            process.exit()
        };
        Ok(DeleteResponse {
            pid: task.pid(),
            exit_status: exit.as_ref().map_or(0, |exit| exit.status),
            exited_at: optional_timestamp(exit.map(|exit| exit.at)),
            ..DeleteResponse::default()
        })
    }

    async fn add_process(&self, request: &ExecProcessRequest) -> Result<(), Failure> {
        let task = self.pod.task(&request.id)?;
        let invalid = |reason: String| Failure::new(ErrorKind::InvalidArgument, &reason);
        if request.exec_id.is_empty() || request.exec_id.len() > MAX_EXEC_ID {
            return Err(invalid(format!("exec id {:?} has not 1 to {MAX_EXEC_ID} bytes", request.exec_id)));
        }
        let spec = request.spec.as_ref().ok_or_else(|| invalid("exec without a process".into()))?;
        let process = serde_json::from_slice(&spec.value)
            .map_err(|error| invalid(format!("process of exec {}: {error}", request.exec_id)))?;
        let stdio = StdioRequest::parse(&request.stdin, &request.stdout, &request.stderr, request.terminal)
            .map_err(skep::container::ContainerError::from)?;
        task.container.exec(&request.exec_id, process, stdio).await?;
        task.remember(
            &request.exec_id,
            GivenStdio {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
            },
        );
        self.pod.publisher.publish(&TaskExecAdded {
            container_id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            ..TaskExecAdded::default()
        });
        Ok(())
    }

    fn state_of(&self, request: &StateRequest) -> Result<StateResponse, Failure> {
        let (task, process) = self.find(&request.id, &request.exec_id)?;
        let exit = process.exit();
        let status = match process.state() {
            ProcessState::Created => Status::CREATED,
            ProcessState::Running if task.container.is_paused() => Status::PAUSED,
            ProcessState::Running => Status::RUNNING,
            ProcessState::Stopped => Status::STOPPED,
        };
        let given = task.given(&request.exec_id);
        Ok(StateResponse {
            id: request.id.clone(),
            bundle: task.bundle.clone(),
            pid: task.pid(),
            status: status.into(),
            stdin: given.stdin,
            stdout: given.stdout,
            stderr: given.stderr,
            terminal: given.terminal,
            exit_status: exit.as_ref().map_or(0, |exit| exit.status),
            exited_at: optional_timestamp(exit.map(|exit| exit.at)),
            exec_id: request.exec_id.clone(),
            ..StateResponse::default()
        })
    }
}

/// What `Update` brings: the resources of an OCI specification, in JSON.
fn resources(request: &UpdateTaskRequest) -> Result<LinuxResources, Failure> {
    let invalid = |reason: String| Failure::new(ErrorKind::InvalidArgument, &reason);
    let any = request.resources.as_ref().ok_or_else(|| invalid("update without resources".into()))?;
    if !any.type_url.ends_with("/LinuxResources") {
        return Err(invalid(format!(
            "resources of type {:?} are not those of a Linux container",
            any.type_url
        )));
    }
    serde_json::from_slice(&any.value).map_err(|error| invalid(format!("resources: {error}")))
}

fn details(exec_id: String) -> Option<Any> {
    any(&ProcessDetails { exec_id, ..ProcessDetails::default() }).ok()
}

/// Does the work in a task of its own: ttrpc drops a handler when its client leaves, and a creation must not stop
/// half done because containerd is restarted.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(|failure| {
            tracing::debug!("refused: {failure}");
            failure.into()
        }),
        Err(error) => Err(Failure::new(ErrorKind::Unknown, &format!("the shim failed: {error}")).into()),
    }
}

#[async_trait]
impl TaskApi for Service {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        Ok(self.state_of(&request)?)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let pod = Arc::clone(&self.pod);
        detached(async move {
            let task = pod.create(&request).await.inspect_err(|failure| {
                tracing::error!(container = request.id, "create: {failure}");
            })?;
            Ok(CreateTaskResponse { pid: task.pid(), ..CreateTaskResponse::default() })
        })
        .await
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let service = self.clone();
        detached(async move { service.start_process(&request).await }).await
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let service = self.clone();
        detached(async move { service.delete_process(&request).await }).await
    }

    /// Process ids are this host's, and here one process stands for the whole container: every process of it has its
    /// id.
    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let service = self.clone();
        detached(async move {
            let task = service.pod.task(&request.id)?;
            let pid = task.pid();
            let infos = task.container.processes().await?.into_iter().map(|exec| ProcessInfo {
                pid,
                info: exec.filter(|exec| !exec.is_empty()).and_then(details).into(),
                ..ProcessInfo::default()
            });
            Ok(PidsResponse { processes: infos.collect(), ..PidsResponse::default() })
        })
        .await
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let pod = Arc::clone(&self.pod);
        detached(async move {
            pod.task(&request.id)?.container.pause().await?;
            pod.publisher.publish(&TaskPaused { container_id: request.id, ..TaskPaused::default() });
            Ok(Empty::new())
        })
        .await
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let pod = Arc::clone(&self.pod);
        detached(async move {
            pod.task(&request.id)?.container.resume().await?;
            pod.publisher.publish(&TaskResumed { container_id: request.id, ..TaskResumed::default() });
            Ok(Empty::new())
        })
        .await
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        self.pod.task(&request.id)?;
        Err(Failure::unimplemented(
            "a checkpoint would be one of the whole microVM, which is not supported yet",
        )
        .into())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let service = self.clone();
        detached(async move {
            let (task, process) = service.find(&request.id, &request.exec_id)?;
            task.container.kill(&process, request.signal, request.all).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let service = self.clone();
        detached(async move {
            service.add_process(&request).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let (task, process) = self.find(&request.id, &request.exec_id)?;
        let resized = task.container.resize(&process, request.height, request.width).await;
        resized.map_err(Failure::from)?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let (_, process) = self.find(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_input();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let pod = Arc::clone(&self.pod);
        detached(async move {
            pod.update(&request.id, resources(&request)?).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (task, process) = self.find(&request.id, &request.exec_id)?;
        let exit = match process.exec_id() {
            "" => task.container.exited().await,
            _ => process.wait().await,
        };
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: optional_timestamp(Some(exit.at)),
            ..WaitResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let pod = Arc::clone(&self.pod);
        detached(async move {
            let task = pod.task(&request.id)?;
            let stats =
                any(&pod.figures(&task).await?).map_err(|error| Failure::new(ErrorKind::Unknown, &error))?;
            Ok(StatsResponse { stats: Some(stats).into(), ..StatsResponse::default() })
        })
        .await
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        // containerd asks after a restart, to learn whether there still is a task.
        let task_pid = self.pod.task(&request.id).map_or(0, |task| task.pid());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: skep::VERSION.into(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // It comes after the deletion of every task of a pod, not only the last.
        if self.pod.is_done() {
            self.finished.notify_one();
        }
        Ok(Empty::new())
    }
}

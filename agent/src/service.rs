//! The calls of `agent.proto`, mapped onto the sandbox and its containers.

use std::sync::Arc;

use async_trait::async_trait;
use skep_protocol::StdioRegistry;
use skep_protocol::api::{
    Agent, ContainerRequest, ContainerStatsResponse, CreateContainerRequest, CreateContainerResponse,
    CreateSandboxRequest, CreateSandboxResponse, Empty, ExecProcessRequest, ForwardPortRequest,
    ListProcessesResponse, ProcessRequest, ResizeTerminalRequest, SetClockRequest, SetClockResponse,
    SignalProcessRequest, StartProcessRequest, StartProcessResponse, TtrpcContext, UpdateContainerRequest,
    WaitOomRequest, WaitOomResponse, WaitProcessResponse,
};

use crate::container::Containers;
use crate::error::Refusal;
use crate::os::{machine, settings};
use crate::reaper::Exit;
use crate::sandbox::{self, Sandbox};
use crate::{clock, forward, power};

/// The agent's side of the protocol.
#[derive(Debug)]
pub(crate) struct Service {
    sandbox: Sandbox,
    containers: Arc<Containers>,
    stdio: StdioRegistry,
}

impl Service {
    pub(crate) fn new(sandbox: Sandbox, containers: Containers, stdio: StdioRegistry) -> Self {
        Self { sandbox, containers: Arc::new(containers), stdio }
    }

    /// Runs a call in a task of its own: a call's future is dropped when its session ends, and what changes the
    /// guest must not stop half way.
    async fn whole<T, F>(&self, call: impl FnOnce(Arc<Containers>) -> F) -> ttrpc::Result<T>
    where
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
        T: Send + 'static,
    {
        let done = tokio::spawn(call(Arc::clone(&self.containers))).await;
        let done = done.unwrap_or_else(|e| Err(Refusal::internal(format!("the call broke off: {e}"))));
        Ok(done?)
    }
}

#[async_trait]
impl Agent for Service {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        Ok(self.sandbox.create(&request)?)
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        self.sandbox.check_created()?;
        if request.shm_bytes != 0 {
            settings::grow_shm(request.shm_bytes)?;
        }
        let pid = self.whole(async move |containers| containers.create(request).await).await?;
        Ok(CreateContainerResponse { pid: pid.cast_unsigned(), ..Default::default() })
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.whole(async move |containers| containers.exec(request).await).await?;
        Ok(Empty::new())
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: StartProcessRequest,
    ) -> ttrpc::Result<StartProcessResponse> {
        let StartProcessRequest { container_id, exec_id, network, .. } = request;
        if let Some(network) = network.into_option() {
            self.sandbox.settle_network(&network)?;
        }
        let pid = self.whole(async move |containers| containers.start(&container_id, &exec_id).await).await?;
        // By it the benchmark knows what the agent costs once it has run something.
        tracing::debug!("resident_kib={}", machine::resident_kib().unwrap_or_default());
        Ok(StartProcessResponse { pid: pid.cast_unsigned(), ..Default::default() })
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let (exit, oom_kills) = self.containers.wait(&request.container_id, &request.exec_id).await?;
        Ok(WaitProcessResponse { oom_kills, ..answer(exit) })
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        let container = self.containers.get(&request.container_id)?;
        container.signal(&request.exec_id, request.signal, request.all)?;
        Ok(Empty::new())
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let ProcessRequest { container_id, exec_id, .. } = request;
        let exit =
            self.whole(async move |containers| containers.delete(&container_id, &exec_id).await).await?;
        Ok(answer(exit))
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        let pids = self.containers.get(&request.container_id)?.pids()?;
        Ok(ListProcessesResponse { pids, ..Default::default() })
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.containers.get(&request.container_id)?;
        container.resize(&request.exec_id, request.rows, request.columns)?;
        Ok(Empty::new())
    }

    async fn pause_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let container = self.containers.get(&request.container_id)?;
        self.whole(async move |_| container.pause(true).await).await?;
        Ok(Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let container = self.containers.get(&request.container_id)?;
        self.whole(async move |_| container.pause(false).await).await?;
        Ok(Empty::new())
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ContainerStatsResponse> {
        Ok(self.containers.get(&request.container_id)?.stats()?)
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let UpdateContainerRequest { container_id, resources, .. } = request;
        self.whole(async move |containers| containers.update(&container_id, &resources).await).await?;
        Ok(Empty::new())
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: WaitOomRequest) -> ttrpc::Result<WaitOomResponse> {
        let container = self.containers.get(&request.container_id)?;
        let oom_kills = container.wait_oom(request.seen).await?;
        Ok(WaitOomResponse { oom_kills, ..Default::default() })
    }

    async fn forward_port(&self, _: &TtrpcContext, request: ForwardPortRequest) -> ttrpc::Result<Empty> {
        self.sandbox.check_created()?;
        forward::connect(&self.stdio, &request).await?;
        Ok(Empty::new())
    }

    async fn set_clock(&self, _: &TtrpcContext, request: SetClockRequest) -> ttrpc::Result<SetClockResponse> {
        let was_ns = clock::realtime_ns();
        sandbox::set_clock(request.realtime_ns)?;
        Ok(SetClockResponse { was_ns, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        power::settle(&self.sandbox.mounted());
        tokio::spawn(power::off());
        Ok(Empty::new())
    }
}

fn answer(exit: Exit) -> WaitProcessResponse {
    WaitProcessResponse { exit_status: exit.status, exited_at_ns: exit.at_ns, ..Default::default() }
}

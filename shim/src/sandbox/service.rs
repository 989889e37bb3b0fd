//! The service of containerd's Sandbox API.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use async_trait::async_trait;
use skep::{
    container::{ErrorKind, Guest as _},
    sandbox::Sandbox,
};
use skep_containerd_api::{
    Sandbox as SandboxApi,
    metric::Metric,
    metrics::Metrics,
    platform::Platform,
    sandbox::{
        CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
        PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
        SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
        StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
        WaitSandboxResponse,
    },
};
use tokio::sync::Notify;
use ttrpc::r#async::TtrpcContext;

use super::{Phase, Wanted};
use crate::{
    convert::{Failure, any, optional_timestamp},
    metrics,
    pod::Pod,
    service::detached,
};

/// States as the CRI plugin reads them (`PodSandboxState`).
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// Serves containerd.
#[derive(Clone)]
pub(crate) struct SandboxService {
    pod: Arc<Pod>,
    finished: Arc<Notify>,
}

impl SandboxService {
    /// A service over `pod` that tells `finished` when containerd needs it no more.
    pub(crate) fn new(pod: Arc<Pod>, finished: Arc<Notify>) -> Self {
        Self { pod, finished }
    }

    async fn status(&self, request: &SandboxStatusRequest) -> Result<SandboxStatusResponse, Failure> {
        let phase = self.pod.managed(&request.sandbox_id)?.phase();
        let (state, pid, created_at, exited_at) = match phase {
            Phase::Created => (NOT_READY, 0, None, None),
            Phase::Running { pid, since } => (READY, pid, Some(since), None),
            Phase::Ended { since, at, .. } => (NOT_READY, 0, since, Some(at)),
        };
        let mut info = HashMap::new();
        if request.verbose
            && let Some(sandbox) = self.pod.vm().await
        {
            info.insert("info".to_owned(), describe(&sandbox));
        }
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id.clone(),
            pid,
            state: state.into(),
            info,
            created_at: optional_timestamp(created_at),
            exited_at: optional_timestamp(exited_at),
            ..SandboxStatusResponse::default()
        })
    }

    /// The VM, which has to run.
    async fn running(&self, id: &str) -> Result<Arc<Sandbox>, Failure> {
        let phase = self.pod.managed(id)?.phase();
        match (phase, self.pod.vm().await) {
            (Phase::Running { .. }, Some(sandbox)) => Ok(sandbox),
            _ => Err(Failure::new(ErrorKind::FailedPrecondition, &format!("sandbox {id} does not run"))),
        }
    }
}

/// What people ask for who ask for more, as JSON.
fn describe(sandbox: &Sandbox) -> String {
    let size = sandbox.size();
    serde_json::json!({
        "pid": sandbox.vmm_pid(),
        "vcpus": size.vcpus,
        "memoryBytes": size.memory,
        "acceleration": sandbox.vm().acceleration(),
        "directory": sandbox.dir(),
        "skepVersion": skep::VERSION,
    })
    .to_string()
}

/// What the sandbox costs the host: processor time and memory of the process that runs its VM, and what its interfaces
/// carried. What its containers use is in that; their own figures say how it is shared out.
fn cost(sandbox: &Sandbox) -> Result<Metrics, Failure> {
    let cost = sandbox.cost().map_err(|error| Failure::new(ErrorKind::Unknown, &error))?;
    let mut metrics = metrics::of_cost(cost, sandbox.size());
    metrics.network = metrics::network(sandbox);
    Ok(metrics)
}

/// The processor in the names that images use (Go's).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[async_trait]
impl SandboxApi for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.pod.check_name(&request.sandbox_id)?;
        let wanted = Wanted::read(self.pod.config(), &request).inspect_err(|failure| {
            tracing::error!(sandbox = request.sandbox_id, "create: {failure}");
        })?;
        self.pod.manage(wanted)?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let pod = Arc::clone(&self.pod);
        detached(async move {
            let (pid, since) = pod.start_managed(&request.sandbox_id).await.inspect_err(|failure| {
                tracing::error!(sandbox = request.sandbox_id, "start: {failure}");
            })?;
            let created_at = optional_timestamp(Some(since));
            Ok(StartSandboxResponse { pid, created_at, ..StartSandboxResponse::default() })
        })
        .await
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        let os = self.pod.managed(&request.sandbox_id)?.wanted.os().name();
        let platform = Platform { os: os.into(), architecture: architecture().into(), ..Platform::default() };
        Ok(PlatformResponse { platform: Some(platform).into(), ..PlatformResponse::default() })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let pod = Arc::clone(&self.pod);
        detached(async move {
            pod.stop_managed(&request.sandbox_id).await?;
            Ok(StopSandboxResponse::default())
        })
        .await
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let (exit_status, at) = self.pod.managed(&request.sandbox_id)?.wait().await;
        let exited_at = optional_timestamp(Some(at));
        Ok(WaitSandboxResponse { exit_status, exited_at, ..WaitSandboxResponse::default() })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        Ok(self.status(&request).await?)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        self.running(&request.sandbox_id).await?;
        Ok(PingResponse::default())
    }

    /// It comes after a failed creation as well, when there is no sandbox.
    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let (pod, finished) = (Arc::clone(&self.pod), Arc::clone(&self.finished));
        detached(async move {
            pod.check_name(&request.sandbox_id)?;
            if pod.managed(&request.sandbox_id).is_ok() {
                pod.stop_managed(&request.sandbox_id).await?;
            }
            finished.notify_one();
            Ok(ShutdownSandboxResponse::default())
        })
        .await
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let sandbox = self.running(&request.sandbox_id).await?;
        let data = any(&cost(&sandbox)?).map_err(|error| Failure::new(ErrorKind::Unknown, &error))?;
        let metric = Metric {
            timestamp: optional_timestamp(Some(SystemTime::now())),
            id: request.sandbox_id,
            data: Some(data).into(),
            ..Metric::default()
        };
        Ok(SandboxMetricsResponse { metrics: Some(metric).into(), ..SandboxMetricsResponse::default() })
    }
}

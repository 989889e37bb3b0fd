//! A shim's task service without containerd before it: for calls that `ctr` does not have, and for the codes of errors.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use skep_containerd_api::TaskClient;
use skep_containerd_api::metrics::Metrics;
use skep_containerd_api::task::{
    DeleteRequest, ExecProcessRequest, StartRequest, StatsRequest, UpdateTaskRequest, WaitRequest,
};
use tokio::runtime::Runtime;
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::context::Context;

use crate::containerd::Containerd;

const LIMIT: Duration = Duration::from_secs(120);

/// The shim of one container.
pub struct Shim {
    runtime: Runtime,
    client: TaskClient,
}

impl Shim {
    /// Connects to the shim of the container `id`.
    pub fn of(containerd: &Containerd, id: &str) -> Result<Self> {
        Self::at(&containerd.bundle(id))
    }

    /// Connects to the shim that this bundle is of.
    pub fn at(bundle: &Path) -> Result<Self> {
        let path = bundle.join("address");
        let address = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime
            .block_on(Client::connect(address.trim()))
            .map_err(|error| anyhow!("connecting to {address}: {error}"))?;
        Ok(Self { runtime, client: TaskClient::new(client) })
    }

    /// Makes a call; of one that is refused the code and the text.
    pub fn call<T>(
        &self,
        call: impl AsyncFnOnce(&TaskClient, Context) -> ttrpc::Result<T>,
    ) -> Result<T, Refusal> {
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(LIMIT, call(&self.client, Context::default())).await });
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(ttrpc::Error::RpcStatus(status))) => Err((status.code(), status.message)),
            Ok(Err(error)) => Err((Code::INTERNAL, error.to_string())),
            Err(_) => Err((Code::DEADLINE_EXCEEDED, format!("no answer in {LIMIT:?}"))),
        }
    }

    /// Adds a process to the container `id`.
    pub fn add(&self, id: &str, process: &NewProcess<'_>) -> Result<(), Refusal> {
        let path = |path: Option<&Path>| path.map(|path| path.display().to_string()).unwrap_or_default();
        let request = ExecProcessRequest {
            id: id.to_owned(),
            exec_id: process.exec.to_owned(),
            terminal: process.terminal,
            stdin: path(process.stdin),
            stdout: path(process.stdout),
            stderr: path(process.stderr),
            spec: Some(any("Process", &process.spec())).into(),
            ..ExecProcessRequest::default()
        };
        self.call(async |client, context| client.exec(context, &request).await).map(drop)
    }

    /// Starts a process that was added.
    pub fn start(&self, id: &str, exec: &str) -> Result<(), Refusal> {
        let request = StartRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..StartRequest::default() };
        self.call(async |client, context| client.start(context, &request).await).map(drop)
    }

    /// Waits for the end of a process; its status.
    pub fn wait(&self, id: &str, exec: &str) -> Result<u32, Refusal> {
        let request = WaitRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..WaitRequest::default() };
        let answer = self.call(async |client, context| client.wait(context, &request).await)?;
        Ok(answer.exit_status)
    }

    /// Deletes a process that has ended.
    pub fn delete(&self, id: &str, exec: &str) -> Result<(), Refusal> {
        let request =
            DeleteRequest { id: id.to_owned(), exec_id: exec.to_owned(), ..DeleteRequest::default() };
        self.call(async |client, context| client.delete(context, &request).await).map(drop)
    }

    /// What the container `id` uses.
    pub fn metrics(&self, id: &str) -> Result<Metrics> {
        let request = StatsRequest { id: id.to_owned(), ..StatsRequest::default() };
        let answer = self
            .call(async |client, context| client.stats(context, &request).await)
            .map_err(|(code, text)| anyhow!("figures of {id}: {code:?}: {text}"))?;
        Ok(Metrics::parse_from_bytes(&answer.stats.value)?)
    }

    /// Changes the limits of the container `id`.
    pub fn update(&self, id: &str, resources: &Value) -> Result<(), Refusal> {
        let request = UpdateTaskRequest {
            id: id.to_owned(),
            resources: Some(any("LinuxResources", resources)).into(),
            ..UpdateTaskRequest::default()
        };
        self.call(async |client, context| client.update(context, &request).await).map(drop)
    }
}

/// A process to be added to a container.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewProcess<'a> {
    /// Its id.
    pub exec: &'a str,
    /// Its command.
    pub args: &'a [&'a str],
    /// Whether it has a terminal.
    pub terminal: bool,
    /// The fifo that it reads.
    pub stdin: Option<&'a Path>,
    /// The fifo that it writes.
    pub stdout: Option<&'a Path>,
    /// The fifo for its errors.
    pub stderr: Option<&'a Path>,
}

impl NewProcess<'_> {
    fn spec(&self) -> Value {
        json!({
            "user": {"uid": 0, "gid": 0},
            "args": self.args,
            "env": [crate::image::PATH],
            "cwd": "/",
            "terminal": self.terminal,
        })
    }
}

/// Why a call was refused: the code, and the text for people.
pub type Refusal = (Code, String);

/// A part of an OCI spec as containerd sends it.
pub fn any(name: &str, value: &Value) -> Any {
    Any {
        type_url: format!("types.containerd.io/opencontainers/runtime-spec/1/{name}"),
        value: value.to_string().into_bytes(),
        ..Any::default()
    }
}

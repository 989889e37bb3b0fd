//! The life of containers against an agent that does what a test tells it.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use oci_spec::runtime::{Process as OciProcess, Spec};
use skep_protocol::{
    ChannelKind, Code, Endpoint, Session, StdioRegistry,
    api::{self, Agent, Empty, TtrpcContext},
    serve_channel,
};
use tokio::{io::AsyncWriteExt, sync::watch};

use super::{stdio::StdioRequest, *};
use crate::{config::RootfsMode, journal::Journal, share::Rootfs};

const LIMIT: Duration = Duration::from_secs(60);

type Key = (String, String);

/// An agent without containers: processes are entries of a table, and end when a test says so.
struct FakeAgent {
    exits: Mutex<HashMap<Key, watch::Sender<Option<u32>>>>,
    signals: Mutex<Vec<(Key, u32, bool)>>,
    oom_kills: watch::Sender<u64>,
    updates: Mutex<Vec<String>>,
    refused: Mutex<HashSet<&'static str>>,
    stdio: StdioRegistry,
}

impl FakeAgent {
    fn check(&self, method: &'static str) -> ttrpc::Result<()> {
        if self.refused.lock().unwrap().contains(method) {
            return Err(api::error(Code::INVALID_ARGUMENT, format!("no {method} here")));
        }
        Ok(())
    }

    fn add(&self, container: &str, exec: &str) {
        let key = (container.to_owned(), exec.to_owned());
        self.exits.lock().unwrap().insert(key, watch::Sender::new(None));
    }

    fn end(&self, container: &str, exec: &str, status: u32) {
        let key = (container.to_owned(), exec.to_owned());
        self.exits.lock().unwrap()[&key].send_replace(Some(status));
    }
}

#[async_trait]
impl Agent for FakeAgent {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        self.check("create")?;
        let spec: Spec = serde_json::from_slice(&request.spec).unwrap();
        assert_eq!(spec.root().as_ref().unwrap().path(), Path::new(&request.rootfs));
        self.add(&request.container_id, "");
        if request.stdio.stdout != 0 {
            let mut stdout = self.stdio.claim(request.stdio.stdout, LIMIT).await.unwrap();
            tokio::spawn(async move {
                stdout.write_all(b"from the guest\n").await.unwrap();
                stdout.shutdown().await.unwrap();
            });
        }
        Ok(api::CreateContainerResponse { pid: 7, ..Default::default() })
    }

    async fn exec_process(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.check("exec")?;
        self.add(&request.container_id, &request.exec_id);
        if request.stdio.stdout != 0 {
            // Never ended: every second one goes on, every other one is silent.
            let mut stdout = self.stdio.claim(request.stdio.stdout, LIMIT).await.unwrap();
            let silent = self.exits.lock().unwrap().len().is_multiple_of(2);
            tokio::spawn(async move {
                while !silent && stdout.write_all(&[0; 1000]).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                std::future::pending::<()>().await;
            });
        }
        Ok(Empty::new())
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: api::StartProcessRequest,
    ) -> ttrpc::Result<api::StartProcessResponse> {
        self.check("start")?;
        let pid = if request.exec_id.is_empty() { 7 } else { 8 };
        Ok(api::StartProcessResponse { pid, ..Default::default() })
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: api::ProcessRequest,
    ) -> ttrpc::Result<api::WaitProcessResponse> {
        self.check("wait")?;
        let mut exit = {
            let exits = self.exits.lock().unwrap();
            exits[&(request.container_id, request.exec_id)].subscribe()
        };
        let exit_status = exit.wait_for(Option::is_some).await.unwrap().unwrap();
        let oom_kills = *self.oom_kills.borrow();
        Ok(api::WaitProcessResponse { exit_status, exited_at_ns: i64::MIN, oom_kills, ..Default::default() })
    }

    async fn wait_oom(
        &self,
        _: &TtrpcContext,
        request: api::WaitOomRequest,
    ) -> ttrpc::Result<api::WaitOomResponse> {
        let mut kills = self.oom_kills.subscribe();
        let oom_kills = *kills.wait_for(|kills| *kills > request.seen).await.unwrap();
        Ok(api::WaitOomResponse { oom_kills, ..Default::default() })
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: api::UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.updates.lock().unwrap().push(String::from_utf8(request.resources).unwrap());
        Ok(Empty::new())
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: api::SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        if self.refused.lock().unwrap().contains("answer") {
            std::future::pending::<()>().await;
        }
        let key = (request.container_id, request.exec_id);
        if request.signal == 9 {
            self.exits.lock().unwrap()[&key].send_replace(Some(137));
        }
        self.signals.lock().unwrap().push((key, request.signal, request.all));
        Ok(Empty::new())
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        _: api::ProcessRequest,
    ) -> ttrpc::Result<api::WaitProcessResponse> {
        Ok(api::WaitProcessResponse::new())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        _: api::ContainerRequest,
    ) -> ttrpc::Result<api::ListProcessesResponse> {
        Ok(api::ListProcessesResponse { pids: vec![7, 8, 9], ..Default::default() })
    }

    async fn pause_container(&self, _: &TtrpcContext, _: api::ContainerRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, _: api::ContainerRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }
}

/// A sandbox without a VM.
#[derive(Debug)]
struct FakeGuest {
    dir: tempfile::TempDir,
    session: Session,
    journal: Arc<Journal>,
    end: watch::Sender<Option<String>>,
}

#[async_trait]
impl Guest for FakeGuest {
    fn session(&self) -> &Session {
        &self.session
    }

    fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    fn pid(&self) -> u32 {
        77
    }

    fn stand_in(&self, _: &str) -> std::io::Result<Option<std::process::Command>> {
        Ok(None)
    }

    fn share_dir(&self) -> &Path {
        self.dir.path()
    }

    fn os(&self) -> crate::guest::GuestOs {
        crate::guest::GuestOs::Linux
    }

    fn size(&self) -> Size {
        Size { vcpus: 2, memory: 256 << 20 }
    }

    fn mark(&self, _: &str) {}

    async fn take_network(&self) -> Result<Option<api::Network>, crate::network::NetworkError> {
        Ok(None)
    }

    fn network_settled(&self) {}

    async fn ended(&self) -> GuestEnd {
        let mut end = self.end.subscribe();
        let reason = end.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        GuestEnd { out_of_memory: reason.contains("memory"), reason }
    }

    async fn kill(&self) {
        self.end.send_replace(Some("killed by the host".into()));
    }
}

struct Bench {
    agent: Arc<FakeAgent>,
    guest: Arc<FakeGuest>,
    call_limit: Duration,
    server: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let stdio = StdioRegistry::new();
        let agent = Arc::new(FakeAgent {
            exits: Mutex::default(),
            signals: Mutex::default(),
            oom_kills: watch::Sender::new(0),
            updates: Mutex::default(),
            refused: Mutex::default(),
            stdio: stdio.clone(),
        });
        let handler: Arc<dyn Agent + Send + Sync> = Arc::<FakeAgent>::clone(&agent);
        let server = tokio::spawn(async move {
            let (io, _) = listener.accept().await.unwrap();
            let _ = serve_channel(io, ChannelKind::Stream, handler, stdio).await;
        });
        let session = Session::connect(&Endpoint::Stream(socket), LIMIT).await.unwrap();
        let journal = Arc::new(Journal::create(&dir.path().join("journal")).unwrap());
        let guest = Arc::new(FakeGuest { dir, session, journal, end: watch::Sender::new(None) });
        Self { agent, guest, call_limit: LIMIT, server }
    }

    async fn create_with(&self, id: &str, stdio: StdioRequest) -> Result<Arc<Container>, ContainerError> {
        let mut spec = Spec::default();
        spec.set_root(Some(serde_json::from_str(r#"{"path": "/run/skep/share/x/rootfs"}"#).unwrap()));
        let request = CreateRequest {
            id: id.to_owned(),
            spec: GuestSpec {
                freebsd: None,
                spec,
                hostname: None,
                network: crate::network::NetworkRequest::Own,
                volumes: Vec::new(),
                notes: Vec::new(),
            },
            // No mounts at all: those need root.
            rootfs: Rootfs::Mounts(Vec::new()),
            rootfs_mode: RootfsMode::Shared,
            stdio,
            namespace: "test".into(),
            streams: Arc::default(),
            hooks: None,
            shm_bytes: None,
            call_limit: self.call_limit,
        };
        Container::create(Arc::<FakeGuest>::clone(&self.guest), request).await
    }

    async fn create(&self, id: &str) -> Arc<Container> {
        self.create_with(id, StdioRequest::default()).await.unwrap()
    }

    async fn running(&self, id: &str) -> Arc<Container> {
        let container = self.create(id).await;
        container.start(container.init()).await.unwrap();
        container
    }

    fn left_in_share(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.guest.dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

fn kind<T: std::fmt::Debug>(result: Result<T, ContainerError>) -> ErrorKind {
    result.unwrap_err().kind()
}

async fn add(container: &Container, exec: &str) -> Result<Arc<Process>, ContainerError> {
    container.exec(exec, OciProcess::default(), StdioRequest::default()).await
}

#[tokio::test]
async fn a_life() {
    let bench = Bench::new().await;
    let container = bench.create("c1").await;
    let init = container.init();
    assert_eq!(init.state(), ProcessState::Created);
    container.start(init).await.unwrap();
    assert_eq!(init.state(), ProcessState::Running);
    assert_eq!(kind(container.start(init).await), ErrorKind::FailedPrecondition);
    assert_eq!(kind(container.delete(false).await), ErrorKind::FailedPrecondition);
    // Creating and starting are one round trip each.
    assert_eq!(bench.guest.session.round_trips(), 2);

    bench.agent.end("c1", "", 3);
    let exit = soon(init.wait()).await;
    assert_eq!((exit.status, exit.reason), (3, None));
    // The guest's clock is not believed.
    assert!(exit.at.elapsed().unwrap() < LIMIT);
    assert_eq!(init.state(), ProcessState::Stopped);
    assert_eq!(kind(container.kill(init, 15, false).await), ErrorKind::NotFound);
    assert_eq!(kind(add(&container, "late").await), ErrorKind::FailedPrecondition);
    assert_eq!(container.processes().await.unwrap(), Vec::<Option<String>>::new());
    assert!(!bench.left_in_share().is_empty());
    container.delete(false).await.unwrap();
    assert!(bench.left_in_share().is_empty());
}

#[tokio::test]
async fn added_processes() {
    let bench = Bench::new().await;
    let container = bench.running("c1").await;
    let process = add(&container, "e1").await.unwrap();
    assert_eq!(kind(add(&container, "e1").await), ErrorKind::AlreadyExists);
    assert_eq!(kind(container.process("e2")), ErrorKind::NotFound);
    assert_eq!(kind(container.kill(&process, 15, false).await), ErrorKind::FailedPrecondition);
    container.start(&process).await.unwrap();
    assert_eq!(kind(container.delete_exec(&process).await), ErrorKind::FailedPrecondition);
    let listed = container.processes().await.unwrap();
    assert_eq!(listed, [Some(String::new()), Some("e1".into()), None]);
    bench.agent.end("c1", "e1", 0);
    soon(process.wait()).await;
    container.delete_exec(&process).await.unwrap();
    assert_eq!(kind(container.process("e1")), ErrorKind::NotFound);
    add(&container, "e1").await.unwrap();
}

#[tokio::test]
async fn a_guest_can_answer_anything() {
    let bench = Bench::new().await;
    let container = bench.running("c1").await;
    bench.agent.end("c1", "", 0xffff_ff05);
    assert_eq!(soon(container.init().wait()).await.status, 5);
}

#[tokio::test]
async fn the_end_of_the_vm_ends_every_process() {
    let bench = Bench::new().await;
    let container = bench.running("c1").await;
    let process = add(&container, "e1").await.unwrap();
    container.start(&process).await.unwrap();
    let waiting = add(&container, "e2").await.unwrap();
    bench.guest.end.send_replace(Some("the guest gave up: oops".into()));
    for process in [container.init(), &process] {
        let exit = soon(process.wait()).await;
        assert_eq!((exit.status, exit.reason.as_deref()), (KILLED, Some("the guest gave up: oops")));
    }
    // The agent is as dead as the VM: what is asked of it fails with the VM's reason.
    bench.server.abort();
    soon(bench.guest.session.closed()).await;
    let error = soon(container.start(&waiting)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("oops"), "{error}");
    soon(container.delete(true)).await.unwrap();
}

/// As if by the kernel that it runs on: whoever waits for the container hears of its end as of an OOM kill in it.
#[tokio::test]
async fn a_vm_without_memory_is_a_container_without() {
    let bench = Bench::new().await;
    let container = bench.running("c1").await;
    bench.guest.end.send_replace(Some("the VMM was killed for want of memory".into()));
    let exit = soon(container.init().wait()).await;
    assert_eq!((exit.status, exit.oom_kills), (KILLED, 1));
    soon(container.delete(true)).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_forgets_a_process_costs_the_vm() {
    let bench = Bench::new().await;
    bench.agent.refused.lock().unwrap().insert("wait");
    let container = bench.create("c1").await;
    let exit = soon(container.init().wait()).await;
    assert_eq!(exit.status, KILLED);
    assert!(exit.reason.unwrap().contains("no wait here"));
    assert_eq!(soon(bench.guest.ended()).await.reason, "killed by the host");
}

#[tokio::test]
async fn a_refused_creation_leaves_nothing() {
    let bench = Bench::new().await;
    bench.agent.refused.lock().unwrap().insert("create");
    let error = bench.create_with("c1", StdioRequest::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("no create here"), "{error}");
    assert!(bench.left_in_share().is_empty());
    bench.agent.refused.lock().unwrap().clear();
    bench.create("c1").await;
}

#[tokio::test]
async fn output_is_complete_when_the_container_is_deleted() {
    let bench = Bench::new().await;
    let log = bench.guest.dir.path().join("log");
    let stdio = StdioRequest::parse("", &format!("file://{}", log.display()), "", false).unwrap();
    let container = bench.create_with("c1", stdio).await.unwrap();
    container.start(container.init()).await.unwrap();
    bench.agent.end("c1", "", 0);
    soon(container.init().wait()).await;
    container.delete(true).await.unwrap();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "from the guest\n");
}

#[tokio::test]
async fn signals_are_checked() {
    let bench = Bench::new().await;
    let container = bench.running("c1").await;
    container.kill(container.init(), 15, true).await.unwrap();
    assert_eq!(*bench.agent.signals.lock().unwrap(), [(("c1".to_owned(), String::new()), 15, true)]);
    // Neither Linux nor FreeBSD has it.
    assert_eq!(kind(container.kill(container.init(), 200, false).await), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn what_was_never_started_is_killed_and_deleted() {
    let bench = Bench::new().await;
    let container = bench.create("c1").await;
    soon(container.delete(false)).await.unwrap();
    assert_eq!(container.init().exit().unwrap().status, KILLED);
}

#[tokio::test]
async fn pausing() {
    let bench = Bench::new().await;
    let container = bench.create("c1").await;
    assert_eq!(kind(container.pause().await), ErrorKind::FailedPrecondition);
    container.start(container.init()).await.unwrap();
    assert_eq!(kind(container.resume().await), ErrorKind::FailedPrecondition);
    container.pause().await.unwrap();
    assert!(container.is_paused());
    assert_eq!(kind(container.pause().await), ErrorKind::FailedPrecondition);
    assert_eq!(kind(add(&container, "e1").await), ErrorKind::FailedPrecondition);
    container.resume().await.unwrap();
    add(&container, "e1").await.unwrap();
}

#[tokio::test]
async fn kills_for_want_of_memory_are_told() {
    let bench = Bench::new().await;
    let container = bench.running("c1").await;
    let mut kills = container.oom_kills();
    assert_eq!(*kills.borrow_and_update(), 0);
    bench.agent.oom_kills.send_replace(2);
    soon(kills.changed()).await.unwrap();
    assert_eq!(*kills.borrow_and_update(), 2);
    bench.agent.oom_kills.send_replace(3);
    bench.agent.end("c1", "", 137);
    assert_eq!(soon(container.init().wait()).await.oom_kills, 3);
}

#[tokio::test]
async fn limits_change_within_the_vm() {
    let bench = Bench::new().await;
    let container = bench.create("c1").await;
    let resources = |json: &str| serde_json::from_str(json).unwrap();
    container.update(resources(r#"{"memory": {"limit": 1048576}}"#)).await.unwrap();
    assert_eq!(*bench.agent.updates.lock().unwrap(), [r#"{"memory":{"limit":1048576}}"#]);
    let error = container.update(resources(r#"{"memory": {"limit": 1073741824}}"#)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("1073741824") && error.to_string().contains("268435456"), "{error}");
    container.start(container.init()).await.unwrap();
    bench.agent.end("c1", "", 0);
    soon(container.init().wait()).await;
    assert_eq!(kind(container.update(resources("{}")).await), ErrorKind::FailedPrecondition);
    assert_eq!(bench.agent.updates.lock().unwrap().len(), 1);
}

/// A guest says that processes have ended, and never ends their output.
#[tokio::test]
async fn endless_output_of_many_holds_up_no_deletion() {
    let bench = Bench::new().await;
    let container = bench.running("a").await;
    let stdout = stdio::Target::File("/dev/null".into());
    for number in 0..64 {
        let exec = format!("e{number}");
        let streams = StdioRequest { stdout: stdout.clone(), ..StdioRequest::default() };
        let mut process = OciProcess::default();
        process.set_args(Some(vec!["yes".into()]));
        let process = container.exec(&exec, process, streams).await.unwrap();
        container.start(&process).await.unwrap();
        bench.agent.end("a", &exec, 0);
    }
    bench.agent.end("a", "", 0);
    soon(container.init().wait()).await;
    // One after another they would take more than that.
    soon(container.delete(false)).await.unwrap();
    assert!(container.execs().is_empty() && bench.left_in_share().is_empty());
}

#[tokio::test]
async fn a_guest_that_does_not_answer_is_killed_with_what_is_in_it() {
    let bench = Bench { call_limit: Duration::from_secs(3), ..Bench::new().await };
    let container = bench.running("a").await;
    bench.agent.refused.lock().unwrap().insert("answer");
    // It may still end in good order.
    assert_eq!(kind(container.kill(container.init(), 15, false).await), ErrorKind::DeadlineExceeded);
    assert_eq!(container.init().state(), ProcessState::Running);
    container.kill(container.init(), 9, false).await.unwrap();
    assert_eq!(soon(container.init().wait()).await.status, KILLED);
    soon(container.delete(false)).await.unwrap();
}

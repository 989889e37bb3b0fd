//! The table of containers, and the calls on them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_protocol::StdioRegistry;
use skep_protocol::api::{CreateContainerRequest, ExecProcessRequest, RootfsMode};

use super::heads::{ProcessHead, SpecHead};
use super::join::Joint;
use super::lifecycle::{Container, Exec};
use super::pod::Pod;
use super::start::bear;
use super::wanted::Create;
use super::{Paths, id, make};
use crate::error::{Code, Refusal};
use crate::reaper::{Exit, Reaper};
use crate::stdio::Streams;

/// Containers of one sandbox.
const CONTAINERS_MAX: usize = 256;

/// Every container of the sandbox.
#[derive(Debug)]
pub(crate) struct Containers {
    reaper: Arc<Reaper>,
    stdio: StdioRegistry,
    pod: Pod,
    table: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Debug)]
enum Entry {
    /// Being made; the id is taken.
    Making,
    Made(Arc<Container>),
}

impl Containers {
    pub(crate) fn new(reaper: Arc<Reaper>, stdio: StdioRegistry) -> Self {
        Self { reaper, stdio, pod: Pod::default(), table: Mutex::default() }
    }

    /// Makes a container; returns the pid of its first process, which waits to be started.
    pub(crate) async fn create(&self, request: CreateContainerRequest) -> Result<i32, Refusal> {
        let name = request.container_id.clone();
        id::check("container_id", &name)?;
        self.reserve(&name)?;
        let made = self.make(&request).await;
        let mut table = self.table();
        match made {
            Ok((container, pid)) => {
                let container = Arc::new(container);
                tokio::spawn(super::lifecycle::follow(Arc::clone(&container)));
                table.insert(name, Entry::Made(container));
                Ok(pid)
            }
            Err(refusal) => {
                table.remove(&name);
                Err(refusal)
            }
        }
    }

    async fn make(&self, request: &CreateContainerRequest) -> Result<(Container, i32), Refusal> {
        let id = &request.container_id;
        let head: SpecHead =
            serde_json::from_slice(&request.spec).map_err(|e| Refusal::invalid(format!("spec: {e}")))?;
        let overlay = match request.rootfs_mode.enum_value() {
            Ok(RootfsMode::ROOTFS_MODE_SHARED) => false,
            Ok(RootfsMode::ROOTFS_MODE_OVERLAY) => true,
            Err(value) => return Err(Refusal::invalid(format!("rootfs_mode {value}: unknown"))),
        };
        let spec = self.pod.share(&self.reaper, &head.linux, &request.spec).await?;
        let streams = Streams::claim(&self.stdio, &request.stdio, head.process.terminal).await?;
        let born = bear(&self.reaper, &head.process, streams, |fds, terminal| {
            let rootfs = Path::new(&request.rootfs);
            make::create(&Create { id, spec: &spec, rootfs, overlay, terminal }, fds)
        })
        .await;
        match born {
            Ok(born) => {
                let pid = born.pid;
                Ok((Container::new(id, Joint::new(&head.linux), born), pid))
            }
            Err(refusal) => {
                if let Err(error) = super::lifecycle::scrub(&Paths::new(id)).await {
                    tracing::warn!("container {id}: left behind after a failed creation: {error}");
                }
                Err(refusal)
            }
        }
    }

    /// Adds a process that waits to be started.
    pub(crate) async fn exec(&self, request: ExecProcessRequest) -> Result<(), Refusal> {
        let container = self.get(&request.container_id)?;
        id::check("exec_id", &request.exec_id)?;
        container.check_takes_processes()?;
        let head: ProcessHead = serde_json::from_slice(&request.process)
            .map_err(|e| Refusal::invalid(format!("process: {e}")))?;
        let streams = Streams::claim(&self.stdio, &request.stdio, head.terminal).await?;
        container.add_exec(request.exec_id, Exec::new(&container, request.process, head, streams))
    }

    /// Starts a process; returns its pid.
    pub(crate) async fn start(&self, container: &str, exec: &str) -> Result<i32, Refusal> {
        let container = self.get(container)?;
        if exec.is_empty() { container.start().await } else { container.start_exec(exec, &self.reaper).await }
    }

    /// Waits until a process has ended; with how many of its container were killed for want of memory by then.
    pub(crate) async fn wait(&self, container: &str, exec: &str) -> Result<(Exit, u64), Refusal> {
        let container = self.get(container)?;
        let exit = container.process(exec)?.wait().await;
        Ok((exit, container.oom_kills()))
    }

    /// Changes the limits of a container.
    pub(crate) async fn update(&self, container: &str, resources: &[u8]) -> Result<(), Refusal> {
        self.get(container)?.update(resources, &self.reaper).await
    }

    /// Forgets an exec process, or removes a container.
    pub(crate) async fn delete(&self, name: &str, exec: &str) -> Result<Exit, Refusal> {
        let container = self.get(name)?;
        if !exec.is_empty() {
            return container.delete_exec(exec);
        }
        let exit = container.delete().await?;
        self.table().remove(name);
        Ok(exit)
    }

    /// The container of that id.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Container>, Refusal> {
        match self.table().get(name) {
            Some(Entry::Made(container)) => Ok(Arc::clone(container)),
            Some(Entry::Making) => {
                Err(Refusal::precondition(format!("container {name:?}: still being created")))
            }
            None => Err(Refusal::not_found(format!("container {name:?}: not found"))),
        }
    }

    fn reserve(&self, name: &str) -> Result<(), Refusal> {
        let mut table = self.table();
        if table.len() >= CONTAINERS_MAX {
            let text = format!("container {name:?}: the sandbox has {CONTAINERS_MAX} containers already");
            return Err(Refusal::new(Code::ResourceExhausted, text));
        }
        match table.entry(name.to_owned()) {
            Slot::Occupied(_) => {
                Err(Refusal::new(Code::AlreadyExists, format!("container {name:?}: exists already")))
            }
            Slot::Vacant(slot) => {
                slot.insert(Entry::Making);
                Ok(())
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn containers() -> Containers {
        Containers::new(Arc::default(), StdioRegistry::new())
    }

    #[test]
    fn an_id_is_taken_while_its_container_is_made() {
        let containers = containers();
        containers.reserve("a").expect("free");
        assert_eq!(containers.reserve("a").expect_err("taken").code, Code::AlreadyExists);
        assert_eq!(containers.get("a").expect_err("not yet").code, Code::FailedPrecondition);
        assert_eq!(containers.get("b").expect_err("unknown").code, Code::NotFound);
    }

    #[test]
    fn the_table_is_bounded() {
        let containers = containers();
        for n in 0..CONTAINERS_MAX {
            containers.reserve(&format!("c{n}")).expect("room");
        }
        assert_eq!(containers.reserve("one-more").expect_err("full").code, Code::ResourceExhausted);
    }

    #[test]
    fn a_creation_that_fails_early_leaves_the_id_free() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let containers = containers();
        for _ in 0..2 {
            let mut request = CreateContainerRequest::new();
            request.container_id = "a".into();
            request.spec = b"{".to_vec();
            let refusal = runtime.block_on(containers.create(request)).expect_err("bad spec");
            assert_eq!(refusal.code, Code::InvalidArgument);
            assert!(refusal.message.starts_with("spec: "), "{}", refusal.message);
        }
    }
}

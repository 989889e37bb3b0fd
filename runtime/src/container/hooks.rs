//! Hooks of the OCI runtime specification that run on the host.
//!
//! They are the caller's programs and run with the rights of whoever runs this, as runc's do. Each is given the state
//! of the container on its standard input; the pid there is that of the process that stands for the container on this
//! host, and in the sandbox's network namespace. `startContainer` hooks run in the guest, in the container's root.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use oci_spec::runtime::{ContainerState, Hook, Hooks, State};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
};

use crate::{
    journal::{EntryId, Journal, JournalError},
    os::{ProcessError, ProcessIdentity, Signal},
};

/// How long a hook may take that has no timeout of its own.
const LIMIT: Duration = Duration::from_secs(300);
/// How long what a hook said last may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long a killed one may take to go.
const KILL: Duration = Duration::from_secs(2);
/// Bytes of what a hook says on standard error that go into a message.
const SAID: usize = 2048;

/// A hook did not do its part.
#[derive(Debug, thiserror::Error)]
#[error("hook {kind}[{number}] {}: {reason}", path.display())]
pub struct HookError {
    /// The list it is in.
    pub kind: &'static str,
    /// Its place there.
    pub number: usize,
    /// Its program.
    pub path: PathBuf,
    /// What went wrong.
    pub reason: Reason,
}

/// What went wrong with a hook.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// It could not be started, or not be spoken with.
    #[error("{0}")]
    System(#[from] io::Error),
    /// It could not be recorded or started.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It could not be watched.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It failed.
    #[error("{status}{}", after(.said))]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// It took too long.
    #[error("killed after {} s{}", limit.as_secs(), after(.said))]
    Timeout {
        /// How long it was given.
        limit: Duration,
        /// What it said.
        said: String,
    },
}

fn after(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// A container's hooks on the host, and what they are told of it. Can be stored, so that whoever comes after a kill of
/// this process can run the last of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostHooks {
    hooks: Hooks,
    state: State,
}

impl HostHooks {
    /// The hooks of container `id`; nothing if there are none.
    pub fn new(hooks: &Hooks, id: &str, bundle: PathBuf, spec: &oci_spec::runtime::Spec) -> Option<Self> {
        let mut host = Hooks::default();
        host.set_prestart(hooks.prestart().clone());
        host.set_create_runtime(hooks.create_runtime().clone())
            .set_poststart(hooks.poststart().clone())
            .set_poststop(hooks.poststop().clone());
        let mut state = State::default();
        state
            .set_version(spec.version().clone())
            .set_id(id.to_owned())
            .set_bundle(bundle)
            .set_annotations(spec.annotations().clone());
        let this = Self { hooks: host, state };
        this.lists().iter().any(|(_, list)| !list.is_empty()).then_some(this)
    }

    /// Whether something is to be run when the container is gone.
    pub fn has_poststop(&self) -> bool {
        self.hooks.poststop().as_ref().is_some_and(|list| !list.is_empty())
    }

    /// What belongs to the making of a container: the first failure ends it.
    pub(super) async fn create(&self, pid: u32, journal: &Journal) -> Result<(), HookError> {
        let [prestart, create_runtime, ..] = self.lists();
        for (kind, list) in [prestart, create_runtime] {
            self.run(kind, list, ContainerState::Creating, Some(pid), Some(journal)).await?;
        }
        Ok(())
    }

    /// What follows the start: a failure is logged and nothing more.
    pub(super) async fn poststart(&self, pid: u32, journal: &Journal) {
        let [_, _, (kind, list), _] = self.lists();
        for (number, hook) in list.iter().enumerate() {
            let one = self.one(kind, number, hook, ContainerState::Running, Some(pid), Some(journal));
            if let Err(error) = one.await {
                tracing::warn!("{error}");
            }
        }
    }

    /// What follows the end of the container: a failure is logged and stops nothing.
    pub async fn poststop(&self) {
        let [.., (kind, list)] = self.lists();
        for (number, hook) in list.iter().enumerate() {
            if let Err(error) = self.one(kind, number, hook, ContainerState::Stopped, None, None).await {
                tracing::warn!("{error}");
            }
        }
    }

    fn lists(&self) -> [(&'static str, &[Hook]); 4] {
        let prestart = self.hooks.prestart();
        [
            ("prestart", prestart.as_deref().unwrap_or_default()),
            ("createRuntime", self.hooks.create_runtime().as_deref().unwrap_or_default()),
            ("poststart", self.hooks.poststart().as_deref().unwrap_or_default()),
            ("poststop", self.hooks.poststop().as_deref().unwrap_or_default()),
        ]
    }

    async fn run(
        &self,
        kind: &'static str,
        hooks: &[Hook],
        status: ContainerState,
        pid: Option<u32>,
        journal: Option<&Journal>,
    ) -> Result<(), HookError> {
        for (number, hook) in hooks.iter().enumerate() {
            self.one(kind, number, hook, status, pid, journal).await?;
        }
        Ok(())
    }

    async fn one(
        &self,
        kind: &'static str,
        number: usize,
        hook: &Hook,
        status: ContainerState,
        pid: Option<u32>,
        journal: Option<&Journal>,
    ) -> Result<(), HookError> {
        let mut state = self.state.clone();
        state.set_status(status).set_pid(pid.map(u32::cast_signed));
        let fail = |reason| HookError { kind, number, path: hook.path().clone(), reason };
        let json = serde_json::to_vec(&state).map_err(|error| fail(Reason::System(error.into())))?;
        let mut command = command(hook);
        command.current_dir(self.state.bundle());
        tracing::debug!(hook = %hook.path().display(), kind, number, "running");
        perform(command, hook, json, journal).await.map_err(fail)
    }
}

fn command(hook: &Hook) -> Command {
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(arguments);
    }
    if let Some(env) = hook.env() {
        command.env_clear().envs(env.iter().filter_map(|variable| variable.split_once('=')));
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Kills a hook that nobody waits for any more, and lets nobody else find its record or its zombie.
struct Running<'a> {
    child: Child,
    process: ProcessIdentity,
    record: Option<(&'a Journal, EntryId)>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill_and_wait(KILL) {
            tracing::warn!(%error, "a hook");
            return;
        }
        // Reaps it: it has ended.
        let _ = self.child.wait();
        if let Some((journal, entry)) = self.record
            && let Err(error) = journal.strike(entry)
        {
            tracing::warn!(%error, "a hook stays in the journal");
        }
    }
}

async fn perform(
    mut command: Command,
    hook: &Hook,
    state: Vec<u8>,
    journal: Option<&Journal>,
) -> Result<(), Reason> {
    let (child, process, record) = if let Some(journal) = journal {
        let (child, process, entry) = journal.spawn("hook", command, &[])?;
        (child, process, Some((journal, entry)))
    } else {
        let child = command.spawn()?;
        let process =
            ProcessIdentity::of(child.id())?.unwrap_or(ProcessIdentity { pid: child.id(), start: 0 });
        (child, process, None)
    };
    let mut running = Running { child, process, record };
    let limit = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .map_or(LIMIT, Duration::from_secs);
    let mut text = Vec::new();
    let ended = {
        let stdin = running.child.stdin.take().map(OwnedFd::from);
        let stderr = running.child.stderr.take().map(OwnedFd::from);
        let mut talk = std::pin::pin!(async { tokio::join!(tell(stdin, &state), listen(stderr, &mut text)) });
        let exit = async {
            match process.watch()? {
                Some(watch) => watch.exited().await,
                None => Ok(()),
            }
        };
        let mut exit = std::pin::pin!(tokio::time::timeout(limit, exit));
        let (ended, quiet) = tokio::select! {
            ended = &mut exit => (ended, false),
            // Both may end long before the hook does.
            _ = &mut talk => (exit.await, true),
        };
        if !quiet {
            // What it said last; a process that it left behind may hold the pipe open for ever.
            let _ = tokio::time::timeout(LAST_WORDS, talk).await;
        }
        ended
    };
    let said = String::from_utf8_lossy(&text).trim().chars().take(SAID).collect();
    match ended {
        Err(_) => {
            process.signal(Signal::KILL)?;
            Err(Reason::Timeout { limit, said })
        }
        Ok(exited) => {
            exited?;
            let status = running.child.wait()?;
            if status.success() { Ok(()) } else { Err(Reason::Failed { status, said }) }
        }
    }
}

/// Hands over the state. A hook need not read it.
async fn tell(stdin: Option<OwnedFd>, state: &[u8]) {
    let Some(Ok(mut stdin)) = stdin.map(pipe::Sender::from_owned_fd) else { return };
    let _ = stdin.write_all(state).await;
}

/// Reads all, so that the hook never waits for it, and keeps the end.
async fn listen(stderr: Option<OwnedFd>, text: &mut Vec<u8>) {
    let Some(Ok(mut stderr)) = stderr.map(pipe::Receiver::from_owned_fd) else { return };
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        text.extend_from_slice(&buffer[..count]);
        if text.len() > SAID {
            text.drain(..text.len() - SAID);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn hooks(dir: &tempfile::TempDir, list: Value) -> HostHooks {
        let hooks: Hooks = serde_json::from_value(list).unwrap();
        let mut spec = oci_spec::runtime::Spec::default();
        spec.set_annotations(Some([("a".to_owned(), "b".to_owned())].into()));
        HostHooks::new(&hooks, "c1", dir.path().into(), &spec).unwrap()
    }

    fn sh(script: &str) -> Value {
        json!({ "path": "/bin/sh", "args": ["hook", "-c", script] })
    }

    #[tokio::test]
    async fn they_are_given_the_state_and_run_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(&dir.path().join("journal")).unwrap();
        let mut with_env = sh("echo $0 $X ${HOME-none} >>out");
        with_env["env"] = json!(["X=y"]);
        let hooks = hooks(
            &dir,
            json!({ "prestart": [sh("cat >state; echo prestart >>out")], "createRuntime": [with_env],
                    "poststop": [sh("exit 1"), sh("cat >stopped")] }),
        );
        hooks.create(77, &journal).await.unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("out"), "prestart\nhook y none\n");
        let state: Value = serde_json::from_str(&read("state")).unwrap();
        assert_eq!(
            (&state["id"], &state["status"], &state["pid"]),
            (&"c1".into(), &"creating".into(), &77.into())
        );
        assert_eq!((&state["bundle"], &state["annotations"]["a"]), (&json!(dir.path()), &"b".into()));
        assert!(journal.entries().is_empty());
        // Through a file, as after a kill; one that fails does not stop the next.
        assert!(hooks.has_poststop());
        let stored = serde_json::to_vec(&hooks).unwrap();
        let stored: HostHooks = serde_json::from_slice(&stored).unwrap();
        stored.poststop().await;
        let state: Value = serde_json::from_str(&read("stopped")).unwrap();
        assert_eq!((&state["status"], &state["pid"]), (&"stopped".into(), &Value::Null));
    }

    #[tokio::test]
    async fn a_failure_is_told_with_what_the_hook_said() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(&dir.path().join("journal")).unwrap();
        let failing = hooks(
            &dir,
            json!({ "createRuntime": [sh("true"), sh("echo no network >&2; exit 3"), sh("touch never")] }),
        );
        let error = failing.create(1, &journal).await.unwrap_err().to_string();
        assert!(error.starts_with("hook createRuntime[1] /bin/sh: exit status: 3: no network"), "{error}");
        assert!(!dir.path().join("never").exists());
        let missing = hooks(&dir, json!({ "prestart": [{ "path": "/no/such/hook" }] }));
        let error = missing.create(1, &journal).await.unwrap_err().to_string();
        assert!(error.contains("prestart[0]") && error.contains("/no/such/hook"), "{error}");
        let mut slow = sh("echo waiting >&2; exec sleep 600");
        slow["timeout"] = json!(1);
        let error = hooks(&dir, json!({ "createRuntime": [slow] })).create(1, &journal).await.unwrap_err();
        assert!(error.to_string().contains("killed after 1 s: waiting"), "{error}");
        assert!(journal.entries().is_empty());
    }
}

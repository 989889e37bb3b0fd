//! Hooks of the OCI runtime specification that run on the host.
//!
//! They are the caller's programs and run with the rights of whoever runs this, as runc's do. Each is given the state
//! of the container on its standard input; the pid there is that of the process that stands for the container on this
//! host, and in the sandbox's network namespace. `startContainer` hooks run in the guest, in the container's root.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use oci_spec::runtime::{ContainerState, Hook, Hooks, State};
use serde::{Deserialize, Serialize};

use crate::journal::{Journal, Program, ProgramError, after};

/// How long a hook may take that has no timeout of its own.
const LIMIT: Duration = Duration::from_secs(300);
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
    /// It could not be run to its end.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// It failed.
    #[error("{status}{}", after(.said))]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
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
        let json =
            serde_json::to_vec(&state).map_err(|error| fail(ProgramError::System(error.into()).into()))?;
        let mut command = command(hook);
        // What follows a container's end may come after its bundle's.
        let bundle = self.state.bundle();
        command.current_dir(if bundle.is_dir() { bundle } else { Path::new("/") });
        tracing::debug!(hook = %hook.path().display(), kind, number, "running");
        let limit = hook
            .timeout()
            .and_then(|seconds| u64::try_from(seconds).ok())
            .filter(|seconds| *seconds > 0)
            .map_or(LIMIT, Duration::from_secs);
        let program = Program { role: "hook", command, input: json, output: None, limit };
        let ended = program.run(journal).await.map_err(|error| fail(error.into()))?;
        if ended.status.success() {
            return Ok(());
        }
        Err(fail(Reason::Failed { status: ended.status, said: ended.said }))
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
    command
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
    async fn the_last_run_where_the_bundle_is_gone() {
        let (bundle, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = out.path().join("where");
        let hooks = hooks(&bundle, json!({ "poststop": [sh(&format!("pwd >{}", file.display()))] }));
        drop(bundle);
        hooks.poststop().await;
        assert_eq!(std::fs::read_to_string(file).unwrap(), "/\n");
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
        // A shell may take its time before it says something.
        let mut told = Vec::new();
        for seconds in [1, 10, 60] {
            let mut slow = sh("echo waiting >&2; exec sleep 600");
            slow["timeout"] = json!(seconds);
            let slow = hooks(&dir, json!({ "createRuntime": [slow] }));
            let error = slow.create(1, &journal).await.unwrap_err().to_string();
            assert!(error.contains(&format!("killed after {seconds} s")), "{error}");
            told.push(error);
            if told.iter().any(|error| error.contains(" s: waiting")) {
                break;
            }
        }
        assert!(told.iter().any(|error| error.contains(" s: waiting")), "{told:?}");
        assert!(journal.entries().is_empty());
    }
}

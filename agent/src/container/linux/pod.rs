//! The PID namespace that containers of a pod share whose specifications ask for it: one of its own, so that they see
//! each other's processes and none of the guest's.
//!
//! Its first process is this program under another name. It has an empty root, no capability and no other work than to be
//! there: what loses its parent in the namespace is reaped by the kernel, since it ignores SIGCHLD.

use std::borrow::Cow;
use std::convert::Infallible;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{chdir, chroot, fexecve};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::capabilities::Capabilities;
use super::head::LinuxHead;
use crate::container::faults::FaultPipe;
use crate::error::Refusal;
use crate::helper;
use crate::limits;
use crate::reaper::{ExitWatch, Reaper};

/// What it is called, as everywhere.
const NAME: &CStr = c"pause";
/// Where its root is mounted, in a mount namespace of its own.
const ROOT: &str = "/run";
/// A root in which there is nothing and never will be.
const EMPTY: MsFlags =
    MsFlags::MS_RDONLY.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// The pod's shared PID namespace, made when the first container asks for it.
#[derive(Debug, Default)]
pub(crate) struct Pod(Mutex<Option<(i32, ExitWatch)>>);

impl Pod {
    /// The container's specification with what the pod shares.
    pub(crate) async fn share<'a>(
        &self,
        reaper: &Arc<Reaper>,
        head: &LinuxHead,
        spec: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, Refusal> {
        // Users of its own have no right to enter it, and are left where the guest's processes are.
        if head.has("pid") || head.has("user") {
            return Ok(Cow::Borrowed(spec));
        }
        let init = self.init(reaper).await?;
        with_namespace(spec, &format!("/proc/{init}/ns/pid")).map(Cow::Owned)
    }

    async fn init(&self, reaper: &Arc<Reaper>) -> Result<i32, Refusal> {
        let mut made = self.0.lock().await;
        if let Some((pid, exit)) = &*made
            && exit.borrow().is_none()
        {
            return Ok(*pid);
        }
        let (pid, exit) = begin(reaper).await?;
        *made = Some((pid, exit));
        Ok(pid)
    }
}

fn with_namespace(spec: &[u8], path: &str) -> Result<Vec<u8>, Refusal> {
    let mut spec: Value = serde_json::from_slice(spec).map_err(|e| Refusal::invalid(format!("spec: {e}")))?;
    let namespace = json!({ "type": "pid", "path": path });
    match spec.pointer_mut("/linux/namespaces") {
        Some(Value::Array(namespaces)) => namespaces.push(namespace),
        _ => match spec.get_mut("linux") {
            Some(Value::Object(linux)) => {
                linux.insert("namespaces".to_owned(), json!([namespace]));
            }
            _ => return Err(Refusal::invalid("linux: missing".to_owned())),
        },
    }
    serde_json::to_vec(&spec).map_err(|e| Refusal::internal(format!("cannot write the specification: {e}")))
}

/// Makes the namespace with its first process.
async fn begin(reaper: &Arc<Reaper>) -> Result<(i32, ExitWatch), Refusal> {
    let faults = FaultPipe::new()?;
    let program = File::open("/proc/self/exe").map_err(|e| cannot("find this program", e))?;
    let born = {
        let pass: [BorrowedFd<'_>; 2] = [faults.write(), program.as_fd()];
        let home = File::open("/proc/self/ns/pid").map_err(|e| cannot("find PID namespaces", e))?;
        unshare(CloneFlags::CLONE_NEWPID).map_err(|e| cannot("make a PID namespace", e))?;
        let forked = helper::fork_into(reaper, &pass, enter);
        if let Err(error) = setns(&home, CloneFlags::CLONE_NEWPID) {
            // Every process to come would be born there.
            crate::fatal::die(&format!("cannot leave the pod's PID namespace: {error}"));
        }
        forked?
    };
    faults.into_faults()?.started(limits::helper()).await?;
    Ok(born)
}

/// The child's life until it is the program. Returns only why it is not.
fn enter(fds: &[RawFd]) -> Refusal {
    let Err(refusal) = become_init(fds);
    refusal
}

fn become_init(fds: &[RawFd]) -> Result<Infallible, Refusal> {
    let [_, program] = fds else {
        return Err(Refusal::internal(format!("a new process was given {} descriptors", fds.len())));
    };
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| cannot("make a mount namespace", e))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|e| cannot("make mounts private", e))?;
    mount(Some("none"), ROOT, Some("tmpfs"), EMPTY, none).map_err(|e| cannot("make an empty root", e))?;
    chdir(ROOT).and_then(|()| chroot(".")).map_err(|e| cannot("enter an empty root", e))?;
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: nothing of this program runs when the signal comes.
    unsafe { sigaction(Signal::SIGCHLD, &ignore) }.map_err(|e| cannot("ignore a signal", e))?;
    // Whoever may trace it is no more for that: it becomes the program without a capability.
    Capabilities::new(None, false)
        .bound()
        .map_err(|e| Refusal::internal(format!("cannot give up capabilities: {e}")))?;
    // SAFETY: the helper gave this process the descriptor, which stays open until exec.
    let program = unsafe { BorrowedFd::borrow_raw(*program) };
    fexecve(program, &[NAME], &[] as &[&CStr]).map_err(|e| cannot("run this program", e))
}

/// Lives for the namespace's sake, if this program was started for that; then it does not return.
pub(crate) fn keep(name: Option<&OsStr>) {
    if name.is_none_or(|name| name.as_bytes() != NAME.to_bytes()) {
        return;
    }
    // Without a name it is called by the number of a descriptor.
    let _ = nix::sys::prctl::set_name(NAME);
    loop {
        nix::unistd::pause();
    }
}

fn cannot(what: &str, error: impl Into<std::io::Error>) -> Refusal {
    Refusal::internal(format!("cannot {what}: {}", error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_added_to_the_others() {
        let with = |spec: &str| {
            let spec = with_namespace(spec.as_bytes(), "/proc/7/ns/pid").expect("spec");
            serde_json::from_slice::<Value>(&spec).expect("json")
        };
        let pid = json!({ "type": "pid", "path": "/proc/7/ns/pid" });
        let spec = with(r#"{"linux":{"namespaces":[{"type":"mount"}],"x":1}}"#);
        assert_eq!(spec["linux"], json!({ "namespaces": [{ "type": "mount" }, pid], "x": 1 }));
        assert_eq!(with(r#"{"linux":{}}"#)["linux"]["namespaces"], json!([pid]));
        assert!(with_namespace(b"{}", "/x").is_err());
    }

    #[test]
    fn only_who_is_called_so_stays() {
        keep(None);
        keep(Some(OsStr::new("skep-agent")));
    }
}

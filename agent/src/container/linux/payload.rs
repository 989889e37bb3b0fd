//! The last steps of a container's process, within the container: from libcontainer's process, which is root
//! with every capability, to the user's program.
//!
//! The order is that of the other OCI runtimes: the working directory, then the user and its capabilities,
//! all of it before the process waits to be started; then `no_new_privs`, seccomp and exec. Faults go to the
//! agent over a pipe that exec closes, so that "no such command" is an answer to the host and not a status.

use std::collections::HashMap;
use std::convert::Infallible;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use libcontainer::oci_spec::runtime::{LinuxSeccomp, PosixRlimit, Process, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::unistd::{Gid, Uid};

use super::capabilities::Capabilities;
use super::{masks, null};
use crate::container::faults;
use crate::container::program::{self, Program};
use crate::error::{Refusal, chain};

/// What runs in the container, and how.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    args: Vec<String>,
    env: Vec<String>,
    cwd: PathBuf,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    rlimits: Vec<PosixRlimit>,
    capabilities: Capabilities,
    no_new_privileges: bool,
    seccomp: Option<LinuxSeccomp>,
    /// What the container is not to see. Processes that join find it covered.
    masked: Vec<PathBuf>,
    /// Write end of the pipe on which faults go to the agent. Closes on exec.
    faults: RawFd,
    /// Found before the start, run after it.
    program: OnceLock<Program>,
}

impl Payload {
    /// The payload of a checked process.
    pub(crate) fn new(process: &Process, seccomp: Option<LinuxSeccomp>, faults: RawFd) -> Self {
        let user = process.user();
        let no_new_privileges = process.no_new_privileges().unwrap_or(false);
        // A filter without no_new_privs needs a privilege to the last moment.
        let loader = seccomp.is_some() && !no_new_privileges;
        Self {
            args: process.args().clone().unwrap_or_default(),
            env: process.env().clone().unwrap_or_default(),
            cwd: process.cwd().clone(),
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            rlimits: process.rlimits().clone().unwrap_or_default(),
            capabilities: Capabilities::new(process.capabilities().as_ref(), loader),
            no_new_privileges,
            seccomp,
            masked: Vec::new(),
            faults,
            program: OnceLock::new(),
        }
    }

    /// Has the container's first process cover `paths`.
    pub(crate) fn masking(self, paths: Vec<PathBuf>) -> Self {
        Self { masked: paths, ..self }
    }

    /// Where faults are told.
    pub(crate) fn faults(&self) -> RawFd {
        self.faults
    }

    /// Becomes the user, in its directory, and finds the program.
    fn prepare(&self) -> Result<Program, Refusal> {
        let internal = |what: &str, e: &dyn std::error::Error| {
            Refusal::internal(format!("cannot {what} for the container's process: {}", chain(e)))
        };
        masks::cover(&self.masked)?;
        null::repair().map_err(|e| internal("open /dev/null", &e))?;
        leave_keyring();
        program::own_stdio(self.uid);
        let entered = program::enter_cwd(&self.cwd)?;
        let syscall = create_syscall();
        for rlimit in &self.rlimits {
            syscall.set_rlimit(rlimit).map_err(|e| {
                Refusal::invalid(format!("process.rlimits {:?}: {}", rlimit.typ(), chain(&e)))
            })?;
        }
        self.capabilities.bound().map_err(|e| internal("bound capabilities", &e))?;
        self.become_user().map_err(|e| internal("change user", &e))?;
        self.capabilities.take().map_err(|e| internal("set capabilities", &e))?;
        program::settle_cwd(&self.cwd, entered)?;
        Program::find(self.args.clone(), self.env.clone(), self.uid)
    }

    fn become_user(&self) -> nix::Result<()> {
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        nix::unistd::setgroups(&groups)?;
        // Without it, the change to another user would take every capability away at once.
        nix::sys::prctl::set_keepcaps(true)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
        nix::sys::prctl::set_keepcaps(false)
    }

    /// Gives the process over to the user's program.
    fn run(&self) -> Result<Infallible, Refusal> {
        let program = self.program.get().ok_or_else(|| Refusal::internal("the program was not looked up"))?;
        // The filter may not let it do this.
        let ready = program.ready()?;
        if self.no_new_privileges {
            nix::sys::prctl::set_no_new_privs()
                .map_err(|e| Refusal::internal(format!("process.noNewPrivileges: {e}")))?;
        }
        if let Some(seccomp) = &self.seccomp {
            libcontainer::seccomp::initialize_seccomp(seccomp)
                .map_err(|e| Refusal::invalid(format!("linux.seccomp: {}", chain(&e))))?;
        }
        self.capabilities
            .finish()
            .map_err(|e| Refusal::internal(format!("cannot give up a capability: {e}")))?;
        ready.run()
    }

    /// All the steps, one after the other.
    pub(crate) fn enter(&self) -> Result<Infallible, Refusal> {
        // Set once: this is the only call.
        let _ = self.program.set(self.prepare()?);
        self.run()
    }
}

impl Executor for Payload {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let Err(refusal) = self.run();
        faults::tell(self.faults, &refusal);
        Err(ExecutorError::Other(refusal.message))
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        match self.prepare() {
            Ok(program) => {
                // Set once: libcontainer validates once.
                let _ = self.program.set(program);
                Ok(())
            }
            Err(refusal) => {
                faults::tell(self.faults, &refusal);
                Err(ExecutorValidationError::ArgValidationError(refusal.message))
            }
        }
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The program gets its environment from exec, in the order and with the duplicates it was given.
        Ok(())
    }
}

/// Gives the process a session keyring of its own, where there are keyrings.
fn leave_keyring() {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: without a name, the call touches no memory.
    if unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) }
        == -1
    {
        tracing::info!("no session keyring: {}", nix::Error::last());
    }
}

//! The last steps of a container's process, within the container: from libcontainer's process, which is root
//! with every capability, to the user's program.
//!
//! The order is that of the other OCI runtimes: the working directory, then the user and its capabilities,
//! all of it before the process waits to be started; then `no_new_privs`, seccomp and exec. Faults go to the
//! agent over a pipe that exec closes, so that "no such command" is an answer to the host and not a status.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libcontainer::oci_spec::runtime::{LinuxSeccomp, PosixRlimit, Process, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::unistd::{Gid, Uid};

use super::capabilities::Capabilities;
use super::{faults, lookup};
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
    /// Write end of the pipe on which faults go to the agent. Closes on exec.
    faults: RawFd,
    /// Found before the start, run after it.
    program: OnceLock<PathBuf>,
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
            faults,
            program: OnceLock::new(),
        }
    }

    /// Where faults are told.
    pub(crate) fn faults(&self) -> RawFd {
        self.faults
    }

    /// Becomes the user, in its directory, and finds the program.
    fn prepare(&self) -> Result<PathBuf, Refusal> {
        let internal = |what: &str, e: &dyn std::error::Error| {
            Refusal::internal(format!("cannot {what} for the container's process: {}", chain(e)))
        };
        repair_null().map_err(|e| internal("open /dev/null", &e))?;
        leave_keyring();
        own_stdio(self.uid);
        let entered = self.enter_cwd()?;
        let syscall = create_syscall();
        for rlimit in &self.rlimits {
            syscall.set_rlimit(rlimit).map_err(|e| {
                Refusal::invalid(format!("process.rlimits {:?}: {}", rlimit.typ(), chain(&e)))
            })?;
        }
        self.capabilities.bound().map_err(|e| internal("bound capabilities", &e))?;
        self.become_user().map_err(|e| internal("change user", &e))?;
        self.capabilities.take().map_err(|e| internal("set capabilities", &e))?;
        if !entered {
            // What root may not enter (a user's directory over the network, say) its user may.
            std::env::set_current_dir(&self.cwd).map_err(|e| cwd_fault(&self.cwd, &e))?;
        }
        // A directory outside the container has no path in it.
        let inside = std::env::current_dir().is_ok_and(|dir| dir.is_absolute());
        if !inside {
            return Err(Refusal::invalid(format!(
                "process.cwd {}: not within the container",
                self.cwd.display()
            )));
        }
        let command = self.args.first().map(String::as_str).unwrap_or_default();
        Ok(lookup::find(command, &self.env, self.uid)?)
    }

    /// Enters the working directory, which is made if the image has none. False: root may not.
    fn enter_cwd(&self) -> Result<bool, Refusal> {
        let enter = || std::env::set_current_dir(&self.cwd);
        let result = match enter() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&self.cwd).and_then(|()| enter())
            }
            other => other,
        };
        match result {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            Err(error) => Err(cwd_fault(&self.cwd, &error)),
        }
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
        let command = self.args.first().map(String::as_str).unwrap_or_default();
        let program = self.program.get().ok_or_else(|| Refusal::internal("the program was not looked up"))?;
        let string = |text: &str| {
            CString::new(text).map_err(|_| Refusal::invalid(format!("{text:?}: contains a NUL byte")))
        };
        let args = self.args.iter().map(|arg| string(arg)).collect::<Result<Vec<_>, _>>()?;
        let mut env = self.env.iter().map(|entry| string(entry)).collect::<Result<Vec<_>, _>>()?;
        if !self.env.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(string(&format!("HOME={}", home(self.uid)))?);
        }
        let path = string(&program.to_string_lossy())?;
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
        let Err(error) = nix::unistd::execve(&path, &args, &env);
        Err(lookup::exec_failed(program, command, error))
    }

    /// All the steps, one after the other.
    pub(crate) fn enter(&self) -> Result<Infallible, Refusal> {
        // Set once: this is the only call.
        let _ = self.program.set(self.prepare()?);
        self.run()
    }

    fn report(&self, refusal: &Refusal) {
        faults::tell(self.faults, refusal);
    }
}

impl Executor for Payload {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let Err(refusal) = self.run();
        self.report(&refusal);
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
                self.report(&refusal);
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

fn cwd_fault(cwd: &Path, error: &io::Error) -> Refusal {
    Refusal::invalid(format!("process.cwd {}: {error}", cwd.display()))
}

fn is_null(metadata: &std::fs::Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == nix::sys::stat::makedev(1, 3)
}

fn stdio() -> [(RawFd, ManuallyDrop<std::fs::File>); 3] {
    [0, 1, 2].map(|fd| {
        // SAFETY: 0 to 2 are this process's own, open for its whole life and not closed here.
        (fd, ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) }))
    })
}

/// libcontainer reopens /dev/null within the container, for reading only: writing has to work too.
fn repair_null() -> io::Result<()> {
    for (fd, file) in stdio() {
        if file.metadata().is_ok_and(|metadata| is_null(&metadata)) {
            let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
            // SAFETY: replaces one of this process's own standard descriptors.
            if unsafe { libc::dup2(null.as_raw_fd(), fd) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Makes the user the owner of its pipes or terminal, so that it can open /dev/stdout anew.
fn own_stdio(uid: u32) {
    for (_, file) in stdio() {
        let foreign = file.metadata().is_ok_and(|metadata| !is_null(&metadata) && metadata.uid() != uid);
        if foreign {
            // What cannot change its owner can still be used as it is.
            let _ = nix::unistd::fchown(&*file, Some(Uid::from_raw(uid)), None);
        }
    }
}

/// The user's home as the image has it, or the root directory.
fn home(uid: u32) -> String {
    const PASSWD_MAX: u64 = 1 << 20;
    let mut passwd = String::new();
    let read =
        std::fs::File::open("/etc/passwd").and_then(|file| file.take(PASSWD_MAX).read_to_string(&mut passwd));
    read.ok().and_then(|_| home_in(&passwd, uid)).unwrap_or_else(|| "/".to_owned())
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let same = fields.nth(2)?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (same && !home.is_empty()).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_is_the_images() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# odd line\nweb:x:33:33::/var/www:\nnone:x:4:4:::\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_in(passwd, 4), None);
        assert_eq!(home_in(passwd, 1000), None);
    }
}

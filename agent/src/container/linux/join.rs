//! Adding a process to a container: one fork of PID 1, which joins what the container is and becomes the program.
//!
//! A process enters another PID namespace only by being born in it, so PID 1 asks for its next child to be, forks,
//! and takes that back. The child does the rest itself, in the order in which it loses the right to do so.

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use libcontainer::config::PersonalityDomain;
use libcontainer::oci_spec::runtime::{IOPriorityClass, LinuxIOPriority, LinuxSeccomp, Process};
use libcontainer::syscall::syscall::create_syscall;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid};

use super::head::LinuxHead;
use super::make::{self, SECCOMP};
use super::payload::Payload;
use super::spec;
use crate::container::faults::FaultPipe;
use crate::container::heads::{ProcessHead, Size};
use crate::container::start::{Born, receive_terminal};
use crate::container::{Paths, wanted};
use crate::error::{Refusal, chain};
use crate::helper;
use crate::reaper::Reaper;
use crate::stdio::{Ends, Pipes, Streams};

/// `CLONE_NEWTIME` of linux/sched.h, which nix has no name for.
const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

/// What a process joins, as far as not every container has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Joint {
    users: bool,
    clocks: bool,
    /// Whether there is one, and whether it is that of 32-bit programs.
    personality: Option<bool>,
}

impl Joint {
    /// What the spec asks for.
    pub(crate) fn new(linux: &LinuxHead) -> Self {
        Self {
            users: linux.has("user"),
            clocks: linux.has("time"),
            personality: linux.personality().map(|domain| domain == "LINUX32"),
        }
    }

    /// The namespaces to be entered by who is in the container's PID namespace.
    fn namespaces(&self) -> CloneFlags {
        let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
        flags.set(CloneFlags::CLONE_NEWUSER, self.users);
        flags.set(CLONE_NEWTIME, self.clocks);
        flags
    }
}

/// A container as its new processes see it.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) paths: &'a Paths,
    pub(crate) joint: &'a Joint,
    /// Its first process, which lives and is not reaped while nobody waits.
    pub(crate) init: i32,
}

/// How the standard streams of a new process are made.
enum Console {
    Pipes(Pipes),
    /// Both ends of what the terminal comes over.
    Terminal(UnixStream, UnixStream),
}

impl Target<'_> {
    /// Makes a process that runs its program by the time this returns, within `limit`.
    pub(crate) async fn join(
        &self,
        reaper: &Arc<Reaper>,
        head: &ProcessHead,
        process: &[u8],
        streams: Streams,
        limit: Duration,
    ) -> Result<Born, Refusal> {
        let process: Process = wanted::parse("process", process)?;
        spec::check_process(&process)?;
        spec::check_joins(&process)?;
        let init = pidfd(self.init).map_err(|e| cannot("find the container", e))?;
        let faults = FaultPipe::new()?;
        let console = if head.terminal {
            let (ours, theirs) = UnixStream::pair().map_err(|e| cannot("make a socket", e))?;
            Console::Terminal(ours, theirs)
        } else {
            Console::Pipes(streams.pipes()?)
        };
        let (pid, exit) = {
            let mut pass: Vec<BorrowedFd<'_>> = vec![faults.write(), init.as_fd()];
            match &console {
                Console::Pipes(pipes) => pass.extend(pipes.process()),
                Console::Terminal(_, theirs) => pass.push(theirs.as_fd()),
            }
            let home = fs::File::open("/proc/self/ns/pid").map_err(|e| cannot("find PID namespaces", e))?;
            setns(&init, CloneFlags::CLONE_NEWPID).map_err(|e| cannot("enter PID namespaces", e))?;
            let forked = helper::fork_into(reaper, &pass, |fds| self.enter(&process, head.size(), fds));
            if let Err(error) = setns(&home, CloneFlags::CLONE_NEWPID) {
                // Every process to come would be born in the container.
                crate::fatal::die(&format!("cannot leave a container's PID namespace: {error}"));
            }
            forked?
        };
        // The process has its ends now: held on to, they would keep its output from ending.
        let (ends, terminal) = match console {
            Console::Pipes(pipes) => (Some(pipes.into_ends()), None),
            Console::Terminal(ours, _) => (None, Some(ours)),
        };
        if let Err(refusal) = faults.into_faults()?.started(limit).await {
            // One that told its fault is ending. That it has ended is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            return Err(refusal);
        }
        let terminal = connect(streams, ends, terminal).map_err(|e| cannot("connect its stdio", e))?;
        Ok(Born { pid, exit, terminal, faults: None })
    }

    /// The child's life until it is the program. Returns only why it is not.
    fn enter(&self, process: &Process, size: Option<Size>, fds: &[RawFd]) -> Refusal {
        let Err(refusal) = self.become_program(process, size, fds);
        refusal
    }

    fn become_program(
        &self,
        process: &Process,
        size: Option<Size>,
        fds: &[RawFd],
    ) -> Result<Infallible, Refusal> {
        let [faults, init, streams @ ..] = fds else {
            return Err(Refusal::internal(format!("a new process was given {} descriptors", fds.len())));
        };
        // What is files of the guest's comes first.
        let score = process.oom_score_adj().unwrap_or(0).to_string();
        fs::write("/proc/self/oom_score_adj", score)
            .map_err(|e| Refusal::invalid(format!("process.oomScoreAdj: {e}")))?;
        let group = make::sub_group(self.init, &self.paths.group).unwrap_or_default();
        let procs = self.paths.group_dir().join(group).join("cgroup.procs");
        fs::write(procs, "0").map_err(|e| cannot("enter the container's cgroup", e))?;
        let seccomp = self.paths.bundle.join(SECCOMP);
        let seccomp: Option<LinuxSeccomp> = if seccomp.exists() { Some(make::load(&seccomp)?) } else { None };
        // From here on the container sees this process, which has PID 1's memory and program.
        nix::sys::prctl::set_dumpable(false).map_err(|e| cannot("hide", e))?;
        // SAFETY: the helper gave this process the descriptor, which stays open until exec.
        let init = unsafe { BorrowedFd::borrow_raw(*init) };
        setns(init, self.joint.namespaces()).map_err(|e| cannot("enter its namespaces", e))?;
        if self.joint.users {
            let root = (Uid::from_raw(0), Gid::from_raw(0));
            nix::unistd::setresgid(root.1, root.1, root.1)
                .and_then(|()| nix::unistd::setresuid(root.0, root.0, root.0))
                .map_err(|e| cannot("become its root", e))?;
        }
        nix::unistd::setsid().map_err(|e| cannot("make a session", e))?;
        take_streams(streams, size)?;
        self.settle(process)?;
        Payload::new(process, seccomp, *faults).enter()
    }

    /// What a process inherits and its program may not change by itself.
    fn settle(&self, process: &Process) -> Result<(), Refusal> {
        let syscall = create_syscall();
        if let Some(narrow) = self.joint.personality {
            let domain = if narrow { PersonalityDomain::Linux32 } else { PersonalityDomain::Linux };
            syscall
                .personality(domain)
                .map_err(|e| Refusal::internal(format!("personality: {}", chain(&e))))?;
        }
        if let Some(priority) = process.io_priority() {
            let (class, value) = io_priority(priority);
            syscall
                .set_io_priority(class, value)
                .map_err(|e| Refusal::invalid(format!("process.ioPriority: {}", chain(&e))))?;
        }
        // As libcontainer leaves it: that of PID 1, which is the kernel's.
        if let Some(mask) = process.user().umask() {
            umask(Mode::from_bits_truncate(mask));
        }
        Ok(())
    }
}

/// Class and value as `ioprio_set(2)` has them.
fn io_priority(priority: &LinuxIOPriority) -> (i64, i64) {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    (class, priority.priority())
}

/// Makes the streams that the process was given its 0, 1 and 2.
fn take_streams(fds: &[RawFd], size: Option<Size>) -> Result<(), Refusal> {
    match fds {
        [socket] => {
            let syscall = create_syscall();
            libcontainer::tty::setup_console(syscall.as_ref(), *socket, false)
                .map_err(|e| Refusal::internal(format!("cannot make a terminal: {}", chain(&e))))?;
            if let Some(size) = size {
                let size = size.window();
                // SAFETY: 0 is this process's terminal, and the size a live winsize, which TIOCSWINSZ reads.
                if unsafe { libc::ioctl(0, libc::TIOCSWINSZ, &raw const size) } == -1 {
                    tracing::warn!("cannot size a terminal: {}", nix::Error::last());
                }
            }
            Ok(())
        }
        [_, _, _] => {
            for (target, fd) in (0..).zip(fds) {
                // SAFETY: replaces one of this process's own standard descriptors by one that it was given.
                if unsafe { libc::dup2(*fd, target) } == -1 {
                    return Err(cannot("take its stdio", nix::Error::last()));
                }
            }
            Ok(())
        }
        _ => Err(Refusal::internal(format!("a new process was given {} streams", fds.len()))),
    }
}

fn connect(
    streams: Streams,
    ends: Option<Ends>,
    terminal: Option<UnixStream>,
) -> std::io::Result<Option<crate::stdio::Terminal>> {
    if let Some(socket) = terminal {
        let master = receive_terminal(&socket)?;
        streams.pump_terminal(&master);
        return Ok(Some(master));
    }
    if let Some(ends) = ends {
        streams.pump_pipes(ends)?;
    }
    Ok(None)
}

/// A descriptor for a child that has not been reaped.
fn pidfd(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open touches no memory.
    let fd = nix::errno::Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| nix::Error::EBADF)?;
    // SAFETY: the kernel made the descriptor just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn cannot(what: &str, error: impl Into<std::io::Error>) -> Refusal {
    Refusal::internal(format!("cannot add a process to the container: cannot {what}: {}", error.into()))
}

//! A process in a jail, from the helper's fork to the user's program.

use std::convert::Infallible;
use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, Gid, Uid, fork};
use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process};

use crate::container::faults;
use crate::container::program::{self, Program};
use crate::error::Refusal;

/// A process to make.
#[derive(Debug)]
pub(super) struct Birth<'a> {
    pub(super) jid: i32,
    pub(super) process: &'a Process,
    /// Where its terminal is sent, if it has one.
    pub(super) terminal: Option<&'a Path>,
    /// On what it waits to be started.
    pub(super) start: &'a UnixListener,
}

/// What a jail cannot give.
pub(super) fn check(process: &Process) -> Result<(), Refusal> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(Refusal::invalid("process.args: no command"));
    }
    if !process.cwd().is_absolute() {
        return Err(Refusal::invalid(format!("process.cwd {}: not absolute", process.cwd().display())));
    }
    process.rlimits().iter().flatten().try_for_each(|rlimit| resource(rlimit).map(drop))
}

/// Forks the process; returns its pid once it is ready to run its program.
pub(super) fn bear(birth: &Birth<'_>, fds: &[RawFd]) -> Result<i32, Refusal> {
    let [told, given @ ..] = fds else {
        return Err(Refusal::internal("a helper was given no descriptors"));
    };
    let terminal = birth.terminal.map(open_terminal).transpose()?;
    let stdio = match (&terminal, given) {
        (Some(terminal), []) => [terminal.as_raw_fd(); 3],
        (None, [stdin, stdout, stderr]) => [*stdin, *stdout, *stderr],
        _ => return Err(Refusal::internal(format!("a helper was given {} descriptors", fds.len()))),
    };
    let (mut ready, mut to_helper) =
        UnixStream::pair().map_err(|e| Refusal::internal(format!("cannot make a socket: {e}")))?;
    // SAFETY: the helper has a single thread, so the child finds no lock taken and may run any code.
    match unsafe { fork() }.map_err(|e| Refusal::internal(format!("cannot fork: {e}")))? {
        ForkResult::Parent { child } => {
            drop(to_helper);
            let mut byte = [0];
            match ready.read_exact(&mut byte) {
                Ok(()) => Ok(child.as_raw()),
                // What it has to say of it is in the fault pipe.
                Err(_) => Err(Refusal::internal("cannot make the process")),
            }
        }
        ForkResult::Child => {
            drop(ready);
            crate::fatal::answer_on(*told);
            let Err(refusal) = live(birth, stdio, terminal.is_some(), &mut to_helper);
            faults::tell(*told, &refusal);
            // SAFETY: ends this process at once, as nothing of the helper's is its own.
            unsafe { libc::_exit(127) }
        }
    }
}

/// The first process's life until its program has it.
fn live(
    birth: &Birth<'_>,
    stdio: [RawFd; 3],
    terminal: bool,
    ready: &mut UnixStream,
) -> Result<Infallible, Refusal> {
    let program = enter(birth.jid, birth.process, stdio, terminal)?;
    // The helper may have been killed; then nobody starts this.
    let _ = ready.write_all(b"r");
    // To its end: whoever starts this has then said it all.
    let started = birth.start.accept().and_then(|(mut word, _)| word.read_to_end(&mut Vec::new()));
    started.map_err(|e| Refusal::internal(format!("cannot wait to be started: {e}")))?;
    program.ready()?.run()
}

/// Turns this process into one of the jail, with its streams and its user, and finds its program.
pub(super) fn enter(
    jid: i32,
    process: &Process,
    stdio: [RawFd; 3],
    terminal: bool,
) -> Result<Program, Refusal> {
    let internal = |what: &'static str| {
        move |e: nix::Error| Refusal::internal(format!("cannot {what} for the container's process: {e}"))
    };
    nix::unistd::setsid().map_err(internal("make a session"))?;
    for (to, from) in (0..).zip(stdio) {
        // SAFETY: replaces this process's standard descriptors.
        nix::errno::Errno::result(unsafe { libc::dup2(from, to) }).map_err(internal("connect stdio"))?;
    }
    if terminal {
        // SAFETY: TIOCSCTTY takes no argument; 0 is the terminal by now.
        let controls = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
        nix::errno::Errno::result(controls).map_err(internal("take the terminal"))?;
    }
    // SAFETY: touches no memory.
    nix::errno::Errno::result(unsafe { libc::jail_attach(jid) }).map_err(internal("enter the jail"))?;
    let user = process.user();
    program::own_stdio(user.uid());
    let entered = program::enter_cwd(process.cwd())?;
    process.rlimits().iter().flatten().try_for_each(limit)?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    // The first is the effective one and no other for programs linked as before FreeBSD 15 (setgroups(2), HISTORY), as
    // this one is.
    let others = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid));
    let groups: Vec<Gid> = std::iter::once(gid).chain(others).collect();
    nix::unistd::setgroups(&groups).map_err(internal("set groups"))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(internal("change group"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(internal("change user"))?;
    program::settle_cwd(process.cwd(), entered)?;
    let mask = libc::mode_t::try_from(user.umask().unwrap_or(0o022) & 0o777).unwrap_or(0o022);
    umask(Mode::from_bits_truncate(mask));
    if process.no_new_privileges() == Some(true) {
        no_new_privileges().map_err(internal("renounce privileges"))?;
    }
    let args = process.args().clone().unwrap_or_default();
    Program::find(args, process.env().clone().unwrap_or_default(), user.uid())
}

/// What this process executes gains nothing by set-user-ID: procctl(2).
fn no_new_privileges() -> nix::Result<()> {
    /// sys/procctl.h
    const PROC_NO_NEW_PRIVS_CTL: libc::c_int = 19;
    const PROC_NO_NEW_PRIVS_ENABLE: libc::c_int = 1;
    let mut enable = PROC_NO_NEW_PRIVS_ENABLE;
    // SAFETY: the command reads an int, which lives through the call; 0 is this process.
    let result = unsafe { libc::procctl(libc::P_PID, 0, PROC_NO_NEW_PRIVS_CTL, (&raw mut enable).cast()) };
    nix::errno::Errno::result(result).map(drop)
}

/// Makes a terminal: the agent's side and the process's. Not by openpty(3): that is in a library whose version differs
/// between releases of FreeBSD.
pub(super) fn terminal() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = nix::pty::posix_openpt(flags)?;
    nix::pty::grantpt(&master)?;
    nix::pty::unlockpt(&master)?;
    // SAFETY: the name is in a buffer of the C library's, and this program has a single thread.
    let name = unsafe { nix::pty::ptsname(&master) }?;
    let slave = nix::fcntl::open(name.as_str(), flags, Mode::empty())?;
    Ok((OwnedFd::from(master), slave))
}

/// Makes a terminal, sends its one side to the agent and keeps the other.
fn open_terminal(socket: &Path) -> Result<OwnedFd, Refusal> {
    let fail = |e: std::io::Error| Refusal::internal(format!("cannot make a terminal: {e}"));
    let (master, slave) = terminal().map_err(fail)?;
    let stream = UnixStream::connect(socket).map_err(fail)?;
    let fds = [master.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"t")], &rights, MsgFlags::empty(), None);
    sent.map_err(|e| fail(e.into()))?;
    Ok(slave)
}

fn resource(rlimit: &PosixRlimit) -> Result<libc::c_int, Refusal> {
    Ok(match rlimit.typ() {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        other => {
            return Err(Refusal::invalid(format!("process.rlimits {other:?}: FreeBSD has no such limit")));
        }
    })
}

fn limit(rlimit: &PosixRlimit) -> Result<(), Refusal> {
    // Beyond what the kernel counts is no limit.
    let value = |value: u64| libc::rlim_t::try_from(value).unwrap_or(libc::RLIM_INFINITY);
    let limits = libc::rlimit { rlim_cur: value(rlimit.soft()), rlim_max: value(rlimit.hard()) };
    // SAFETY: the limits live through the call.
    let result = unsafe { libc::setrlimit(resource(rlimit)?, &raw const limits) };
    nix::errno::Errno::result(result)
        .map(drop)
        .map_err(|e| Refusal::invalid(format!("process.rlimits {:?}: {e}", rlimit.typ())))
}

//! A container's jail as the group of its processes: stopping, killing, and its end.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::members::{GroupError, jid, members, members_of};
use super::{limits, oom};

/// Kills every process in the jail, which goes with them. A jail that is gone has none.
pub(crate) fn kill(jail: &Path) -> Result<(), GroupError> {
    if let Some(jid) = jid(jail)? {
        // SAFETY: touches no memory. One that has just gone is as good.
        unsafe { libc::jail_remove(jid) };
    }
    Ok(())
}

/// The first process has ended: whoever it left ends with it.
pub(crate) fn init_ended(jail: &Path) -> Result<(), GroupError> {
    kill(jail)
}

/// The processes of the jail.
pub(crate) fn pids(jail: &Path) -> Result<Vec<u32>, GroupError> {
    let members = members_of(jail)?;
    let mut pids: Vec<u32> = members.iter().filter_map(|member| u32::try_from(member.pid).ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// Stops or continues every process and waits until it is done. A process that is made meanwhile is found the next
/// time round.
pub(crate) async fn freeze(jail: &Path, frozen: bool, limit: Duration) -> Result<(), GroupError> {
    let (signal, what) = if frozen { (Signal::SIGSTOP, "stop") } else { (Signal::SIGCONT, "continue") };
    let deadline = Instant::now() + limit;
    loop {
        let Some(jid) = jid(jail)? else { return Ok(()) };
        let others: Vec<_> = members(jid)?.into_iter().filter(|member| member.stopped != frozen).collect();
        if others.is_empty() {
            return Ok(());
        }
        for member in others {
            // It may have ended.
            let _ = send(Pid::from_raw(member.pid), signal);
        }
        if Instant::now() >= deadline {
            return Err(GroupError::Late { what, name: jail.to_owned(), limit });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Removes the jail and waits until it is gone.
pub(crate) async fn remove(jail: &Path, limit: Duration) -> Result<(), GroupError> {
    let deadline = Instant::now() + limit;
    loop {
        kill(jail)?;
        if jid(jail)?.is_none() {
            limits::forget(jail);
            oom::forget(jail);
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(GroupError::Late { what: "end", name: jail.to_owned(), limit });
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

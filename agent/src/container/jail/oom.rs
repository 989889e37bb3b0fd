//! Processes killed for want of memory.
//!
//! A rule of rctl(8) that kills would take whichever process is found to have grown a little when the jail is beyond its
//! limit (`vm_daemon` in `sys/vm/vm_swapout.c` looks once a second, at each process in its turn; `rctl_enforce` in
//! `sys/kern/kern_rctl.c` signals the one that is looked at): as a rule the first, who took nothing. So the rule only keeps
//! the limit, and the largest processes are killed from here, as Linux does it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;

use super::limits::{self, LimitsError};
use super::members::{GroupError, Member, members_of};

/// How often the kernel counts.
const INTERVAL: Duration = Duration::from_secs(1);

/// How many were killed of each jail.
static KILLS: Mutex<BTreeMap<PathBuf, watch::Sender<u64>>> = Mutex::new(BTreeMap::new());

fn all() -> MutexGuard<'static, BTreeMap<PathBuf, watch::Sender<u64>>> {
    KILLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many processes of the jail were killed so far. What the guest's kernel kills when the guest itself has no memory
/// left is not known to be for that.
pub(crate) fn kills(jail: &Path) -> u64 {
    all().get(jail).map_or(0, |count| *count.borrow())
}

/// Waits until more than `seen` were; how many were.
pub(crate) async fn more_kills(jail: &Path, seen: u64) -> Result<u64, GroupError> {
    let mut count = all().entry(jail.to_owned()).or_default().subscribe();
    match count.wait_for(|count| *count > seen).await {
        Ok(count) => Ok(*count),
        // The jail is removed.
        Err(_) => Ok(seen),
    }
}

/// The jail is gone.
pub(super) fn forget(jail: &Path) {
    all().remove(jail);
}

/// Holds the jail to its limit as long as this is awaited.
pub(crate) async fn enforce(jail: &Path) -> Infallible {
    let mut dying = Vec::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Err(error) = look(jail, &mut dying) {
            tracing::warn!("the memory of jail {}: {error}", jail.display());
        }
    }
}

/// What keeps a jail from being held to its limit.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Limits(#[from] LimitsError),
    #[error(transparent)]
    Group(#[from] GroupError),
}

/// `dying`: who was killed and may not have ended yet.
fn look(jail: &Path, dying: &mut Vec<Member>) -> Result<(), LookError> {
    let limits = limits::set(jail)?;
    let Some((_, limit)) = limits.into_iter().find(|(resource, _)| resource == limits::MEMORY) else {
        return Ok(());
    };
    let members = members_of(jail)?;
    let same = |one: &Member, other: &Member| (one.pid, one.start) == (other.pid, other.start);
    dying.retain(|member| members.iter().any(|other| same(member, other)));
    let living = members.into_iter().filter(|member| !dying.iter().any(|other| same(member, other)));
    let mut killed = 0;
    for victim in beyond(living.collect(), limit) {
        tracing::info!(
            "process {} of {} bytes is killed: jail {} is beyond its {limit} bytes",
            victim.pid,
            victim.resident,
            jail.display()
        );
        // It may have ended.
        if kill(Pid::from_raw(victim.pid), Signal::SIGKILL).is_ok() {
            killed += 1;
            dying.push(victim);
        }
    }
    if killed > 0 {
        all().entry(jail.to_owned()).or_default().send_modify(|count| *count += killed);
    }
    Ok(())
}

/// The largest, as many as have to go for the others to be within the limit.
fn beyond(mut members: Vec<Member>, limit: u64) -> Vec<Member> {
    members.sort_by_key(|member| std::cmp::Reverse(member.resident));
    let mut used: u64 = members.iter().map(|member| member.resident).sum();
    members
        .into_iter()
        .take_while(|member| {
            let too_much = used > limit;
            used -= member.resident;
            too_much
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_go_and_no_more_than_needed() {
        let members = |sizes: &[u64]| -> Vec<Member> {
            (1..)
                .zip(sizes)
                .map(|(pid, size)| Member { pid, start: (0, 0), stopped: false, resident: *size })
                .collect()
        };
        let pids = |sizes: &[u64], limit| -> Vec<i32> {
            beyond(members(sizes), limit).iter().map(|member| member.pid).collect()
        };
        assert!(pids(&[3, 50, 3], 56).is_empty());
        assert_eq!(pids(&[3, 50, 3], 55), [2]);
        assert_eq!(pids(&[3, 50, 40], 10), [2, 3]);
        assert_eq!(pids(&[3], 0), [1]);
        assert!(pids(&[], 0).is_empty());
    }

    #[tokio::test]
    async fn kills_are_told_until_the_jail_is_gone() {
        let jail = Path::new("skep-test-told");
        let waiting = tokio::spawn(more_kills(jail, 0));
        tokio::task::yield_now().await;
        all().entry(jail.to_owned()).or_default().send_modify(|count| *count += 2);
        assert_eq!(waiting.await.expect("join").expect("told"), 2);
        assert_eq!(kills(jail), 2);
        let waiting = tokio::spawn(more_kills(jail, 2));
        tokio::task::yield_now().await;
        forget(jail);
        assert_eq!(waiting.await.expect("join").expect("gone"), 2);
        assert_eq!(kills(jail), 0);
    }
}

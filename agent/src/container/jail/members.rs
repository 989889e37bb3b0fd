//! Which processes a jail has.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use super::params::{self, JailError};
use crate::error::{Code, Refusal};

/// Processes of the guest that are looked at.
const PROCESSES_MAX: usize = 65_536;
/// Bytes of a page, sys/amd64/include/param.h.
const PAGE: u64 = 4096;
/// `SSTOP` and `SZOMB`, sys/proc.h.
const STOPPED: libc::c_char = 4;
const ZOMBIE: libc::c_char = 5;

/// What goes wrong with a jail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    #[error("cannot {what} jail {name}: {source}", name = .name.display())]
    Control { what: &'static str, name: PathBuf, source: JailError },
    #[error("cannot list processes: {0}")]
    Processes(io::Error),
    #[error("the processes of jail {name} did not {what} within {} s", .limit.as_secs(), name = .name.display())]
    Late { what: &'static str, name: PathBuf, limit: Duration },
}

impl From<GroupError> for Refusal {
    fn from(error: GroupError) -> Self {
        let code = match &error {
            GroupError::Late { .. } => Code::DeadlineExceeded,
            _ => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// A living process of a jail.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) pid: i32,
    /// When it was made, seconds and microseconds: a pid may be another's later.
    pub(super) start: (libc::time_t, libc::suseconds_t),
    pub(super) stopped: bool,
    /// Bytes of memory that it has mapped and that are there, shared ones included.
    pub(super) resident: u64,
}

/// The jail's number, if there is one of that name.
pub(super) fn jid(jail: &Path) -> Result<Option<i32>, GroupError> {
    params::find(jail).map_err(|source| GroupError::Control { what: "find", name: jail.to_owned(), source })
}

/// The living processes of the jail.
pub(super) fn members_of(jail: &Path) -> Result<Vec<Member>, GroupError> {
    jid(jail)?.map_or(Ok(Vec::new()), members)
}

/// `kern.proc.proc`, sysctl(3), as far as it is in the jail and lives.
pub(super) fn members(jid: i32) -> Result<Vec<Member>, GroupError> {
    let mib = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PROC];
    loop {
        let mut size = 0;
        // SAFETY: with no buffer the kernel only says how large it would be.
        let asked = unsafe {
            libc::sysctl(mib.as_ptr(), 3, std::ptr::null_mut(), &raw mut size, std::ptr::null(), 0)
        };
        Errno::result(asked).map_err(|e| GroupError::Processes(e.into()))?;
        // Room for those that are made meanwhile.
        let count = (size / size_of::<libc::kinfo_proc>() + 16).min(PROCESSES_MAX);
        let mut all: Vec<libc::kinfo_proc> = Vec::with_capacity(count);
        let mut size = count * size_of::<libc::kinfo_proc>();
        // SAFETY: the buffer has `size` bytes.
        let told = unsafe {
            libc::sysctl(mib.as_ptr(), 3, all.as_mut_ptr().cast(), &raw mut size, std::ptr::null(), 0)
        };
        match Errno::result(told) {
            Ok(_) => {}
            Err(Errno::ENOMEM) if count < PROCESSES_MAX => continue,
            Err(error) => return Err(GroupError::Processes(error.into())),
        }
        // SAFETY: the kernel filled that many whole elements.
        unsafe { all.set_len((size / size_of::<libc::kinfo_proc>()).min(count)) };
        let living = all.iter().filter(|info| info.ki_jid == jid && info.ki_stat != ZOMBIE);
        return Ok(living
            .map(|info| Member {
                pid: info.ki_pid,
                start: (info.ki_start.tv_sec, info.ki_start.tv_usec),
                stopped: info.ki_stat == STOPPED,
                resident: u64::try_from(info.ki_rssize).unwrap_or(0) * PAGE,
            })
            .collect());
    }
}

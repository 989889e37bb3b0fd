//! The guest's own end, when the host asks for it.

use std::convert::Infallible;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long the answer to `Shutdown` gets to leave before the power goes.
const ANSWER_TIME: Duration = Duration::from_millis(20);

/// Ends every other process and puts what was written where it belongs.
pub(crate) fn settle(shares: &[String]) {
    // To PID 1, -1 means everybody else. Nobody left is as good.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    nix::unistd::sync();
    for share in shares {
        if let Err(error) = umount2(share.as_str(), MntFlags::MNT_DETACH) {
            tracing::warn!("cannot unmount {share}: {error}");
        }
    }
}

/// Powers the machine off once the answer had time to leave.
pub(crate) async fn off() -> Infallible {
    tokio::time::sleep(ANSWER_TIME).await;
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    crate::fatal::die(&format!("cannot power off: {error}"))
}

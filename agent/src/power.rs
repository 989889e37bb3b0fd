//! The guest's own end, when the host asks for it.

use std::convert::Infallible;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::os::{machine, share};

/// How long the answer to `Shutdown` gets to leave before the power goes.
const ANSWER_TIME: Duration = Duration::from_millis(20);

/// Ends every other process and puts what was written where it belongs.
pub(crate) fn settle(shares: &[String]) {
    // To PID 1, -1 means everybody else. Nobody left is as good.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    nix::unistd::sync();
    for mount_point in shares {
        if let Err(error) = share::detach(mount_point) {
            tracing::warn!("cannot unmount {mount_point}: {error}");
        }
    }
}

/// Powers the machine off once the answer had time to leave.
pub(crate) async fn off() -> Infallible {
    tokio::time::sleep(ANSWER_TIME).await;
    let error = machine::power_off();
    crate::fatal::die(&format!("cannot power off: {error}"))
}
